"""The model card beside a SavedModel: README.md and metadata.json."""

from __future__ import annotations

import os
import re
from typing import Any

import keras
import tensorflow as tf

from seed_tf.io.files import write_json
from seed_tf.io.text import visible
from seed_tf.reporting.tables import table
from seed_tf.version import __version__

PREPROCESSING = {
    "files": ["JPEG", "PNG", "WebP"],
    "orientation": "by EXIF",
    "transparency": "dropped",
    "resampling": "bilinear, antialiased, as Pillow's",
    "crop": "central square",
    "normalisation": "inside the network; pixels are RGB in [0, 255]",
}
# Settings of a run in README.md. metadata.json has all settings.
_SETTINGS = (
    *("recipe", "student", "encoder", "teacher", "teacher_fingerprint"),
    *("teacher_license",),
    *("dataset", "data_dir", "split", "image_size", "views", "epochs"),
    *("batch_size", "queue_size", "learning_rate", "weight_decay", "seed"),
)
_METRICS = ("loss", "gap", "agreement", "cosine", "knn")


def write(folder: str, facts: dict[str, Any]) -> None:
    """Writes `README.md` and `metadata.json`.

    Args:
        folder: folder of a SavedModel.
        facts: JSON dict from `seed_tf.export.saved_model`.
    """
    facts = {
        "license": None,
        **facts,
        "versions": {
            "seed_tf": __version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
    }
    write_json(os.path.join(folder, "metadata.json"), facts)
    with open(os.path.join(folder, "README.md"), "w") as file:
        file.write(_readme(facts))


def _readme(facts):
    name, sides = facts["name"], facts["preprocessing"]
    size = sides["image_size"]
    parts = [
        f"# {name}, version {facts['version']}",
        f"An image encoder with {facts['parameters']:,} parameters: images to "
        f"embeddings of {facts['widths']['embedding']} numbers, with length 1, "
        f"and {facts['widths']['features']} features. License: "
        f"{facts['license'] or 'not stated'}. Exported "
        f"{facts['created'][:10]} by seed_tf {facts['versions']['seed_tf']}; "
        f"fingerprint {facts['fingerprint']}.",
        "## Use",
        _USE.format(name=name),
        _markdown(
            {
                "signature": name,
                "images": _shapes(signature["inputs"]),
                "outputs": _shapes(signature["outputs"]),
            }
            for name, signature in facts["signatures"].items()
        ),
        "## Preprocessing",
        f"The graph turns files ({', '.join(sides['files'])}) upright by EXIF, "
        "drops transparency, resizes the shorter side to "
        f"{sides['resize']} pixels (bilinear, antialiased, like Pillow), and "
        f"crops the central {size} x {size}. `serving_default` resizes and "
        f"crops pixels in the same way, unless they are {size} x {size} "
        "already. A damaged image causes an INVALID_ARGUMENT error with its "
        "position in the batch.",
        "## Training",
        _training(facts),
        "## Agreement with Keras",
        f"{facts['checked']['images']} image files, compared with the decoder "
        "of evaluation and the Keras model:",
        _markdown(
            {
                "output": name,
                "largest difference": f"{difference:.2g}",
                "mean cosine": f"{facts['checked']['mean_cosine'][name]:.7f}",
            }
            for name, difference in facts["checked"][
                "largest_difference"
            ].items()
        ),
        "metadata.json holds the same facts and all settings, for programs.",
    ]
    return "\n\n".join(parts) + "\n"


def _training(facts):
    config, summary = facts.get("config"), facts.get("summary") or {}
    if not config:
        return "Not recorded."
    rows = [
        {"": key.replace("_", " "), "value": config[key]}
        for key in _SETTINGS
        if config.get(key) is not None
    ]
    last = summary.get("last", {})
    rows += [
        {"": f"{key}, at the end", "value": f"{last[key]:.4g}"}
        for key in _METRICS
        if key in last
    ]
    if facts["probe"]:
        rows.append(
            {
                "": "linear probe, top-1",
                "value": f"{100 * facts['probe']['top-1']:.1f} %",
            }
        )
    command = config.get("command")
    # The fence is longer than any in the command.
    runs = re.findall("`+", str(command))
    fence = "`" * max([3, *(len(run) + 1 for run in runs)])
    block = (
        f"{fence}sh\n{visible(str(command))}\n{fence}\n\n" if command else ""
    )
    return block + _markdown(rows)


def _shapes(tensors):
    return ", ".join(
        f"`{name}` {x['dtype']} "
        f"[{', '.join('?' if n is None else str(n) for n in x['shape'])}]"
        for name, x in tensors.items()
    )


def _markdown(rows):
    rows = list(rows)
    return table(rows, list(rows[0]), fmt="markdown")


_USE = """\
Without a server, in this folder:

```python
import tensorflow as tf

model = tf.saved_model.load(".")
files = tf.constant([open("image.jpg", "rb").read()])
embedding = model.signatures["serve_bytes"](images=files)["embedding"]
```

With TensorFlow Serving, which watches the parent folder:

```sh
{{ printf '{{"signature_name": "serve_bytes", "instances": [{{"b64": "'
  base64 < image.jpg | tr -d '\\n'
  printf '"}}]}}'; }} |
  curl -d @- http://localhost:8501/v1/models/{name}:predict
```
""".strip()
