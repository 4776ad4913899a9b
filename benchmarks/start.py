"""Seconds from the command to the end of the first training step.

    python -m benchmarks.start --data_dir=photos

Runs `experiments.distill` on JPEG files with a ResNet-50 of random weights as
the teacher, once to warm the disk's cache and then as often as told, and
listens for the line of the first step. Then the run is stopped.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from seed_tf import Encoder

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Folder of images.", required=True)
flags.DEFINE_multi_string(
    "student",
    ["mobilenet_v3_large", "resnet18", "efficientnet_b0"],
    "The registry's name.",
)
flags.DEFINE_integer("image_size", 224, "Pixels.", 1)
flags.DEFINE_integer("batch_size", 16, "Images per step.", 1)
flags.DEFINE_integer("repeats", 3, "Starts of each.", 1)


def seconds(teacher, student, output):
    """Until the first step has ended, float."""
    command = (
        *(sys.executable, "-m", "experiments.distill", "--held_out=0"),
        *(f"--data_dir={FLAGS.data_dir}", f"--teacher={teacher}"),
        *(f"--student={student}", f"--image_size={FLAGS.image_size}"),
        *(f"--batch_size={FLAGS.batch_size}", "--epochs=2", "--knn_every=0"),
        f"--output={output}",
    )
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("  step 1/"):
                taken = time.perf_counter() - start
                process.kill()
                return taken
    raise SystemExit(f"{command} ended without a step.")


def main(_):
    with tempfile.TemporaryDirectory() as folder:
        teacher = os.path.join(folder, "teacher.keras")
        Encoder("resnet50").save(teacher)
        for student in FLAGS.student:
            taken = [
                seconds(teacher, student, os.path.join(folder, f"{student}{i}"))
                for i in range(FLAGS.repeats + 1)
            ][1:]
            print(
                f"{student}: {statistics.median(taken):.1f} s to the first step"
                f" ({min(taken):.1f} to {max(taken):.1f})",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
