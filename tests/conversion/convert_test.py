"""seed-tf convert, and what it tells of a checkpoint."""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import PIL.Image
import pytest
from absl.testing import absltest, parameterized
from helpers.published import (
    PublishedTestCase,
    SimCLR,
    needs_torch,
    random_images,
    tiny_encoder,
)
from helpers.runs import command, tiny_teacher

import seed_tf
from seed_tf.checkpoints import layouts, loading
from seed_tf.cli import convert
from seed_tf.conversion import converting, explaining
from seed_tf.encoders import resnet

try:
    import torch
    from helpers import torch_layouts
except ImportError:
    torch = None


def explanation(path, **kwargs):
    return "\n".join(explaining.explain(path, **kwargs))


class HalfFileTest(parameterized.TestCase):
    """A file that cannot be written whole is not there."""

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.path = str(self.folder / "encoder.keras")
        tiny_teacher(self.path)

    def refused(self, error, **kwargs):
        name = "half.pth" if kwargs else "half.keras"
        output = str(self.folder / name)
        with self.assertRaisesRegex(error, f"{name}' .*Make room"):
            converting.convert(self.path, output, **kwargs)
        self.assertEqual(os.listdir(self.folder), ["encoder.keras"])

    @parameterized.parameters({}, {"to": "torch"})
    def test_full_disk(self, **kwargs):
        def full(encoder, path):
            pathlib.Path(path).write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with (
            mock.patch.object(seed_tf.Encoder, "save", full),
            mock.patch.object(converting, "save_torch", full),
        ):
            self.refused(OSError, **kwargs)
        free = shutil.disk_usage("/")._replace(free=100)
        with mock.patch.object(shutil, "disk_usage", return_value=free):
            self.refused(OSError, **kwargs)

    @pytest.mark.slow
    def test_killed_while_writing(self):
        """The same command then writes the file."""
        output = self.folder / "copy.keras"
        script = (
            "import os, signal, sys\n"
            "from seed_tf.conversion import converting\n"
            "if len(sys.argv) > 3:\n"
            "    os.fsync = lambda f: os.kill(os.getpid(), signal.SIGKILL)\n"
            "converting.convert(*sys.argv[1:3])\n"
        )
        line = [sys.executable, "-c", script, self.path, str(output)]
        killed = subprocess.run([*line, "kill"], stderr=subprocess.DEVNULL)
        self.assertEqual(killed.returncode, -signal.SIGKILL)
        self.assertFalse(output.exists())
        subprocess.run(line, check=True, stderr=subprocess.DEVNULL)
        self.assertCountEqual(
            os.listdir(self.folder), ["encoder.keras", "copy.keras"]
        )
        keras.saving.load_model(output)


@needs_torch
class ConvertTest(PublishedTestCase):
    @pytest.mark.slow
    def test_to_keras_and_back(self):
        net = self.network("resnet18", "mlp_bn", width=8)
        self.save(torch_layouts.swav_file(net))
        folder = self.create_tempdir().full_path
        teacher = os.path.join(folder, "teacher.keras")
        back = os.path.join(folder, "back.pth")
        printed = command(
            "convert", f"--encoder={self.path}", f"--output={teacher}"
        )
        for pattern in (
            r"source +swav \(SwAV\)",
            r"network +resnet18_width_8",
            r"embeddings +128 wide \(projection head Dense-BatchNorm",
            r"parameters +[\d,]+",
            r"used +108: module.conv1.weight",
            r"left out +counters of BatchNorm: 21",
            r"prototypes: 1: module.prototypes.weight",
            r"teacher.keras \([\d,]+ bytes\)",
        ):
            self.assertRegex(printed, pattern)
        # Training needs no PyTorch then.
        with mock.patch.dict(sys.modules, {"torch": None}):
            encoder = seed_tf.checkpoints.load_encoder(teacher)
        self.assert_same(encoder, net, (64,))
        printed = converting.convert(teacher, back, to="torch", head=False)
        self.assertIn("no projection head", printed)
        self.assertEqual(set(torch.load(back)), set(net.backbone.state_dict()))
        again = seed_tf.checkpoints.load_encoder(back)
        images = random_images(2, 64)
        np.testing.assert_allclose(
            again(images), encoder.features(images), 1e-5, 1e-6
        )

    def test_head_of_a_pytorch_file(self):
        net = self.network("resnet18", "mlp", width=8)
        self.save(torch_layouts.seed_file(net))
        path = os.path.join(self.create_tempdir(), "student.keras")
        printed = converting.convert(self.path, path, head=False)
        self.assertRegex(printed, "projection head: 4: module.student.fc.0")
        net.head = torch.nn.Sequential()
        student = seed_tf.checkpoints.load_encoder(path)
        self.assert_same(student, net, (64,))

    def test_choices_by_flag(self):
        nets = [
            self.network("resnet18", None, width=8, stem="cifar", seed=i)
            for i in (0, 1)
        ]
        self.save({**nets[0].state("one."), **nets[1].state("two.")})
        folder = self.create_tempdir().full_path
        words = ["convert", f"--encoder={self.path}", f"--output={folder}/a"]
        words[-1] += ".keras"
        printed = command(*words, code=1)
        self.assertRegex(printed, "--branch.* 'one', 'two'")
        printed = command(*words, "--branch=two", code=1)
        self.assertRegex(printed, "--stem.* cifar, cifar_padding_2")
        words += ["--branch=two", "--stem=cifar"]
        printed = command(*words, "--mean=0.5,0.5,0.5", "--std=1,1,1")
        self.assertRegex(printed, "branch +two\n")
        self.assertIn("(images / 255 - (0.5, 0.5, 0.5)) / (1, 1, 1)", printed)
        self.assertRegex(printed, "assumed .*cannot be checked")
        encoder = seed_tf.checkpoints.load_encoder(f"{folder}/a.keras")
        images = random_images(2, 32)
        pixels = (images / 255 - 0.5).astype("f4").transpose(0, 3, 1, 2)
        with torch.inference_mode():
            expected = nets[1].backbone(torch.from_numpy(pixels))
        self.assert_near(encoder(images), expected)
        explained = explanation(
            self.path, branch="two", stem="cifar", image_size=32
        )
        self.assertRegex(explained, r"relu +\d\.\de-0[678]")

    @pytest.mark.slow
    def test_bad_input(self):
        folder = self.create_tempdir().full_path
        other, output = (os.path.join(folder, f"{x}.keras") for x in "ab")
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(other)
        with self.assertRaisesRegex(ValueError, "a.keras' exists already"):
            converting.convert("x.pth", other)
        with self.assertRaisesRegex(ValueError, "must end in .keras.*x.h5"):
            converting.convert(other, "x.h5")
        with self.assertRaisesRegex(ValueError, "Only an Encoder has a proj"):
            converting.convert(other, output, head=False)
        with self.assertRaisesRegex(ValueError, "Only an Encoder has a PyTo"):
            converting.convert(other, output, to="torch")
        self.assertEqual(os.listdir(folder), ["a.keras"])
        printed = command("convert", f"--encoder={other}", code=1)
        self.assertRegex(printed, "Error: .*--encoder and --output, or --ex")
        self.assertNotIn("Traceback", printed)


@needs_torch
class ExplainTest(PublishedTestCase):
    @parameterized.parameters(
        ("resnet50", "mlp_bn"),
        ("resnet34", "linear"),
        ("mobilenet_v3_large", "mlp"),
        ("efficientnet_b0", "mlp"),
        ("efficientnet_b1", None),
    )
    @pytest.mark.slow
    def test_block_by_block(self, name, head):
        """None differs; a spoilt one does, and all that come after it."""
        net = self.network(name, head, width=16)
        self.save(torch_layouts.seed_file(net))
        contents = loading.read(self.path)
        encoder = loading.build(contents, self.path)
        images = random_images(2, 96)
        compare = explaining.torch_reference.compare_blocks
        rows = compare(encoder, contents, images)
        self.assertLess(max(alone for _, alone, _ in rows), 1e-4)
        self.assertLess(rows[0][2], 1e-5)
        self.assertEqual(rows[-1][0] == "head", head is not None)
        # The reference is the published network, and not what Keras has.
        with torch.inference_mode():
            steps = explaining.torch_reference.blocks(
                contents.tensors, encoder.backbone
            )
            x = torch.randn(1, 3, 96, 96)
            expected = net.backbone(x)
            for _, block in steps:
                x = block(x)
        x = x.mean((2, 3)) if x.ndim == 4 else x
        np.testing.assert_allclose(x, expected, 1e-2, 1e-3)

        spoilt = len(rows) // 2
        layers = [layer.name for layer in encoder.backbone.layers]
        first = layers.index(rows[spoilt - 1][0]) + 1
        last = layers.index(rows[spoilt][0]) + 1
        for layer in encoder.backbone.layers[first:last]:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.beta.assign_add(0.1 + keras.ops.zeros_like(layer.beta))
        for i, (block, alone, together) in enumerate(
            compare(encoder, contents, images)
        ):
            with self.subTest(block):
                self.assertEqual(alone > 1e-3, i == spoilt)
                if i >= spoilt:
                    self.assertGreater(together, 1e-5)

    def test_simclr_in_tensorflow(self):
        prefix = os.path.join(self.create_tempdir(), "model.ckpt-1")
        SimCLR(random_images(4, 64), width=8).save(prefix)
        contents = loading.read(prefix)
        encoder = loading.build(contents, prefix)
        for size in (64, 90):
            rows = explaining.torch_reference.compare_blocks(
                encoder, contents, random_images(2, size)
            )
            self.assertLess(max(alone for _, alone, _ in rows), 1e-5)
        with mock.patch.dict(sys.modules, {"torch": None}):
            printed = explanation(prefix)
        self.assertIn("With PyTorch installed", printed)

    def test_a_file_that_fits(self):
        self.save(
            torch_layouts.moco_file(self.network("resnet18", "mlp", width=8))
        )
        folder = self.create_tempdir().full_path
        for i, image in enumerate(random_images(5, 80)):
            PIL.Image.fromarray(image).save(f"{folder}/{i}.png")
        # The sixth is the first one, but for its borders.
        PIL.Image.fromarray(random_images(5, 80)[0]).save(f"{folder}/same.png")
        printed = command(
            "convert",
            f"--explain={self.path}",
            f"--data_dir={folder}",
            "--image_size=64",
        )
        for pattern in (
            r"source +moco_v2 \(MoCo v2\)",
            r"network 'encoder_k': 124: module\.encoder_k\.conv1",
            r"queue: 2: module\.queue, module\.queue_ptr",
            r"no weights of the network: 3: arch, epoch \.\.\.",
            r"missing +none",
            r"Embeddings of 6 images: norm [\d.]+ ± [\d.]+; mean cosine",
            r"\n  0.png: same.png 1.000, ",
            r"layer2_1_relu +\d\.\de-0\d +\d\.\de-0\d",
            r"Largest of a single block: \d\.\de-0[678]",
            "says nothing about them",
        ):
            self.assertRegex(printed, pattern)

    def test_a_file_that_does_not(self):
        state = self.network("resnet18", "mlp", width=8).state("module.")
        del state["module.layer1.0.bn1.bias"]
        state["module.layer1.0.gate.weight"] = torch.zeros(2)
        state["module.bn1.bias"] = torch.full((8,), torch.nan)
        state["module.conv1.weight"] = torch.zeros(16, 3, 7, 7)
        self.save(state)
        printed = explanation(self.path)
        for pattern in (
            r"missing +1: layer1\.0\.bn1\.bias",
            r"unknown +1: module\.layer1\.0\.gate\.weight",
            r"shape +\d+: 'module\.bn1\.bias' must have shape \(16,\)",
            "cannot be loaded",
        ):
            self.assertRegex(printed, pattern)
        self.assertNotIn("Difference", printed)

    def test_files_of_keras(self):
        path = os.path.join(self.create_tempdir(), "teacher.keras")
        tiny_encoder().save(path)
        printed = explanation(path)
        self.assertRegex(printed, "features +4 wide\nembeddings +8 wide")
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(path)
        self.assertRegex(explanation(path), "parameters +10")

    def test_images(self):
        path = os.path.join(self.create_tempdir(), "teacher.keras")
        tiny_encoder().save(path)
        folder = self.create_tempdir().full_path
        with self.assertRaisesRegex(ValueError, "No images in"):
            explanation(path, images=folder)
        image = os.path.join(folder, "a.JPG")
        open(image, "w").close()
        with self.assertRaisesRegex(ValueError, "a.JPG' cannot be read"):
            explanation(path, images=folder)
        PIL.Image.fromarray(random_images(1, 40)[0]).save(image)
        printed = explanation(path, images=folder, image_size=32)
        self.assertIn("Embeddings of 1 images: norm", printed)
        self.assertNotIn("cosine", printed)


@needs_torch
class NetworksTest(absltest.TestCase):
    def test_they_need_no_tensorflow(self):
        """`benchmarks.step_gpu` runs them on a machine that has none."""
        program = (
            "import sys\n"
            "sys.modules.update(tensorflow=None, keras=None)\n"
            "from seed_tf.conversion import torch_networks\n"
            "print(torch_networks.backbone('resnet18').width)"
        )
        printed = subprocess.run(
            [sys.executable, "-c", program],
            cwd=pathlib.Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
        )
        self.assertEqual(printed.stdout, "512\n", printed.stderr)


class DocsTest(absltest.TestCase):
    def test_every_source_is_documented(self):
        docs = pathlib.Path(__file__).resolve().parents[2] / "docs"
        page = (docs / "checkpoints.md").read_text()
        for name in (*layouts.LAYOUTS, *resnet.STEMS):
            self.assertIn(f"`{name}`", page)
        self.assertEqual(convert.SOURCES, ("auto", "keras", *layouts.LAYOUTS))
        self.assertEqual(convert.STEMS, tuple(resnet.STEMS))


if __name__ == "__main__":
    absltest.main()
