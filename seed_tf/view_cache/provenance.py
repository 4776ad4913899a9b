"""What a view cache was made of, and how that differs from what is given."""

from seed_tf import views as seed_views
from seed_tf.encoders import Encoder
from seed_tf.io.files import as_json
from seed_tf.io.fingerprints import fingerprint
from seed_tf.views.layers import SeededAugmentation

# Of a layer's configuration: what does not decide what it draws from its key.
_NO_MATTER = ("name", "trainable", "dtype", "seed")


def of_teacher(teacher):
    """What decides the embeddings of a teacher, as JSON can hold it."""
    facts = {"fingerprint": fingerprint(teacher)}
    if isinstance(teacher, Encoder):
        config = teacher.get_config()
        facts |= {key: config[key] for key in ("mean", "std")}
    return as_json(facts)


def of_views(views, squares=None):
    """What decides a view besides the image and its key.

    Args:
        views: `View` or `MultiCrop`.
        squares: dict of how whole images are cut, None if views are crops of
            the encoded image.

    Returns:
        dict of names and settings of layers, as JSON can hold it.

    Raises:
        ValueError: if views are not functions of the image and its key.
    """
    if isinstance(views, seed_views.MultiCrop):
        parts = {"large": views.global_view, "small": views.small_view}
        facts = {"num_small": views.num_small}
    else:
        parts, facts = {"layers": views}, {}
    for name, view in parts.items():
        facts[name] = {}
        for i, layer in enumerate(getattr(view, "layers", [None])):
            if not isinstance(layer, SeededAugmentation):
                raise ValueError(
                    "A view cache needs views that can be made again from "
                    "their keys: those of `seed_tf.views`, of its layers "
                    f"only. Received: {view if layer is None else layer!r}."
                )
            settings = {
                key: value
                for key, value in layer.get_config().items()
                if key not in _NO_MATTER
            }
            facts[name][f"{i + 1} {type(layer).__name__}"] = settings
    return as_json({**facts, "squares": squares})
