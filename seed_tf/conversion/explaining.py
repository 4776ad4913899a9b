"""Describes checkpoints in words and numbers."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from seed_tf.checkpoints import loading
from seed_tf.checkpoints.layouts import LAYOUTS, Contents
from seed_tf.checkpoints.weights import assign, misfits, parameters
from seed_tf.conversion import torch_reference
from seed_tf.datasets import centre_crops, image_files
from seed_tf.datasets.walking import found_images, no_images
from seed_tf.encoders import Encoder
from seed_tf.evaluation import embed, nearest_neighbours
from seed_tf.io.text import visible

MOST_IMAGES = 256

_ASSUMED = """\
A state dict does not record the following, which cannot be checked:
the normalisation of images (`mean`, `std`); stride, padding and pooling
of the stem (`stem`); where blocks stride; dilation; anti-aliasing;
epsilon."""


def summary(encoder: keras.Model, contents: Contents | None = None) -> str:
    """Describes an encoder, and the parts of its file that were left out.

    Args:
        encoder: keras.Model, e.g. an `Encoder`.
        contents: the contents that it was built from; None for a file of
            Keras.

    Returns:
        Text of several lines.
    """
    rows = {"parameters": f"{encoder.count_params():,}"}
    if isinstance(encoder, Encoder):
        rows = {
            "features": f"{encoder.feature_dim} wide",
            "embeddings": f"{encoder.embedding_dim} wide ({_head(encoder)})",
            "images": f"(images / 255 - {_constants(encoder, 'mean')}) / "
            f"{_constants(encoder, 'std')}",
            **rows,
        }
    if contents is None:
        return _lines({"network": encoder.name, **rows})
    title = LAYOUTS[contents.source].title
    return _lines(
        {
            "source": f"{contents.source} ({title})",
            "network": contents.description,
            "branch": contents.branch or "(no prefix)",
            **rows,
            "used": _keys(contents.keys.values()),
            "left out": _left_out(contents.left_out),
            "chosen": "\n".join(contents.notes) or "nothing",
            "assumed": _ASSUMED,
        }
    )


def explain(
    path: str,
    *,
    source: str = "auto",
    images: str | None = None,
    image_size: int = 224,
    **choices: Any,
) -> Iterator[str]:
    """Describes a checkpoint, also one that cannot be loaded.

    Args:
        path, source: as of `load_encoder`.
        images: folder of images to embed, or None.
        image_size: side of the images' centre crops, in pixels.
        **choices: `branch`, `stem`, `mean` and `std` of `load_encoder`.

    Yields:
        Parts of the report, each as soon as it is known.

    Raises:
        ValueError: if the file cannot be read, its network is unknown, or the
            folder has no images.
    """
    files = None
    if images is not None:
        files, line = _files(images)
        yield line
    encoder, contents = loading.open_file(path, source=source, **choices)
    if contents is not None:
        encoder = Encoder(contents.backbone(), **contents.encoder)
        wanted = parameters(encoder)
        problems = misfits(contents, wanted)
        yield summary(encoder, contents)
        yield _lines({k: _keys(v) for k, v in problems.items()})
        if any(problems.values()):
            yield "The file does not fit, and cannot be loaded."
            return
        assign(contents, wanted)
    else:
        yield summary(encoder)
    pixels = _noise(image_size)
    if files:
        pixels = centre_crops(files, image_size)
        names = [visible(os.path.basename(file)) for file in files]
        yield _embeddings(encoder, pixels, names)
    if contents is not None:
        yield _blocks(encoder, contents, pixels[:2])


def _embeddings(
    encoder: keras.Model, pixels: np.ndarray, names: list[str]
) -> str:
    z = embed(encoder, pixels, batch_size=16, output="embeddings")
    norms = np.linalg.norm(z, axis=1)
    lines = [
        f"Embeddings of {len(names)} images: norm {norms.mean():.4g} "
        f"± {norms.std():.2g}"
    ]
    if len(names) > 1:
        cosines, indices = nearest_neighbours(z, z, min(4, len(names)))
        unit = z / norms[:, None]
        # The sum over all pairs of images, less each image with itself.
        total = np.square(unit.sum(0)).sum() - len(unit)
        mean = total / (len(unit) * (len(unit) - 1))
        lines[0] += f"; mean cosine of two of them {mean:.3f}"
        lines.append("Nearest neighbours, by cosine:")
        for i in np.linspace(0, len(names) - 1, min(5, len(names))).astype(int):
            others = [
                f"{names[j]} {cosine:.3f}"
                for cosine, j in zip(cosines[i], indices[i], strict=True)
                if j != i
            ][:3]
            lines.append(f"  {names[i]}: {', '.join(others)}")
    return "\n".join(lines)


def _blocks(encoder: Encoder, contents: Contents, pixels: np.ndarray) -> str:
    try:
        rows = torch_reference.compare_blocks(encoder, contents, pixels)
    except ImportError:
        return "With PyTorch installed, each block is compared with PyTorch."
    lines = [
        "Difference from PyTorch's functions on the same weights, relative:",
        f"  {'block':24} {'alone':>8} {'from the image on':>18}",
        *[f"  {n:24} {one:8.1e} {all_:18.1e}" for n, one, all_ in rows],
    ]
    worst = max(rows, key=lambda row: row[1])
    lines.append(
        f"Largest of a single block: {worst[1]:.1e} in {worst[0]}; rounding "
        "explains up to about 1e-4. Both sides share the assumptions above, so "
        "that this says nothing about them."
    )
    return "\n".join(lines)


def _files(folder: str) -> tuple[list[str], str]:
    """Returns evenly spaced image files below a folder, and a line on all."""
    left_out: collections.Counter[str] = collections.Counter()
    files = list(image_files(os.path.expanduser(folder), left_out))
    if not files:
        raise no_images(folder, left_out)
    chosen = np.linspace(0, len(files) - 1, min(len(files), MOST_IMAGES))
    folders = len(set(map(os.path.dirname, files)))
    found = found_images(len(files), folders, folder, left_out)
    return [files[i] for i in chosen.astype(int)], f"{found}."


def _noise(size: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (2, size, size, 3), dtype=np.uint8)


def _head(encoder: Encoder) -> str:
    if encoder.head is None:
        return "no projection head"
    names = [type(layer).__name__ for layer in encoder.head.layers]
    return "projection head " + "-".join(names)


def _constants(encoder: Encoder, name: str) -> str:
    return "(" + ", ".join(f"{x:g}" for x in encoder.get_config()[name]) + ")"


def _left_out(reasons: Mapping[str, str]) -> str:
    """Returns counts and examples by reason."""
    keys = collections.defaultdict(list)
    for key, reason in reasons.items():
        keys[reason].append(key)
    found = [f"{reason}: {_keys(x)}" for reason, x in keys.items()]
    return "\n".join(found) or "nothing"


def _keys(names: Iterable[str]) -> str:
    keys = list(names)
    if not keys:
        return "none"
    return f"{len(keys)}: {', '.join(keys[:2])}{' ...' if keys[2:] else ''}"


def _lines(rows: Mapping[str, str]) -> str:
    return "\n".join(
        f"{name if i == 0 else '':12} {line}"
        for name, text in rows.items()
        for i, line in enumerate(text.splitlines())
    )
