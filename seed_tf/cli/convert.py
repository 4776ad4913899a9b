"""Turns published checkpoints into .keras files, and back into PyTorch's.

    python -m experiments.convert --checkpoint=moco_v2_800ep_pretrain.pth.tar \\
        --output=teacher.keras
    python -m experiments.convert --checkpoint=runs/student --to=torch \\
        --output=student.pth
    python -m experiments.convert --explain=mystery.pth --images=photos

--explain writes nothing: it tells what a file holds, whether all of it fits,
and how the network behaves. docs/checkpoints.md lists what can be read.
"""

import os

from absl import flags

from seed_tf.checkpoints.layouts import LAYOUTS
from seed_tf.conversion import (
    converting,
    explaining,
)

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "The file or run folder to convert.")
flags.DEFINE_string("output", None, "The file to write.")
flags.DEFINE_enum(
    "to",
    "keras",
    ["keras", "torch"],
    "'torch' writes a state dict: torchvision's layout of a ResNet, the "
    "authors' of the others.",
)
flags.DEFINE_string("explain", None, "A file to tell all about.")
flags.DEFINE_enum(
    "source",
    "auto",
    ["auto", "keras", *LAYOUTS],
    "Where the file is from; by default its keys tell. 'seed_teacher' takes "
    "the teacher out of a file of the authors.",
)
flags.DEFINE_boolean(
    "head",
    True,
    "Keep the projection head. Teachers need theirs; --nohead gives pooled "
    "features.",
)
flags.DEFINE_string("images", None, "Folder of images for --explain to embed.")
flags.DEFINE_integer("image_size", 224, "Pixels of their centre crops.", 32)


def main(_):
    if FLAGS.explain:
        for part in explaining.explain(
            FLAGS.explain,
            source=FLAGS.source,
            images=FLAGS.images,
            image_size=FLAGS.image_size,
        ):
            print(part + "\n", flush=True)
    elif FLAGS.checkpoint and FLAGS.output:
        print(
            converting.convert(
                FLAGS.checkpoint,
                FLAGS.output,
                to=FLAGS.to,
                source=FLAGS.source,
                head=FLAGS.head,
            )
        )
        size = os.path.getsize(FLAGS.output)
        print(f"\nWrote {FLAGS.output} ({size:,} bytes).")
    else:
        raise ValueError(
            "Expected --checkpoint and --output, or --explain. Try --help."
        )
