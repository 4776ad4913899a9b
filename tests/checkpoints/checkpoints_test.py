"""Loading trained encoders: what comes back, and what is refused."""

import json
import os
import pickle
import struct
import sys
import zipfile
from unittest import mock

import keras
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from helpers.published import (
    PublishedTestCase,
    SimCLR,
    needs_torch,
    random_images,
    tiny_encoder,
)

import seed_tf
from seed_tf.checkpoints import layouts, loading, torch_files
from seed_tf.encoders.resnet import resnet
from seed_tf.evaluation import protocols

try:
    import torch
    from helpers import torch_layouts

    from seed_tf.conversion import torch_networks
except ImportError:
    torch = None


def tiny_moco():
    return seed_tf.MoCo(
        tiny_encoder(), views=keras.layers.Identity(), queue_size=8
    )


class KerasFilesTest(parameterized.TestCase):
    def test_a_file_and_a_run_folder(self):
        folder = self.create_tempdir().full_path
        encoder = tiny_encoder()
        path = os.path.join(folder, "student.keras")
        encoder.save(path)
        images = np.random.default_rng(0).integers(
            0, 256, (2, 8, 8, 3), dtype=np.uint8
        )
        for name in (path, folder):
            loaded = seed_tf.checkpoints.load_encoder(name)
            self.assertIsInstance(loaded, seed_tf.Encoder)
            np.testing.assert_allclose(
                loaded(images), encoder(images), rtol=1e-6
            )

    def test_the_old_name_is_the_same_function(self):
        checkpoints = seed_tf.checkpoints
        self.assertIs(checkpoints.load_teacher, checkpoints.load_encoder)

    @parameterized.parameters("auto", "keras", "moco_v2")
    def test_nothing_there(self, source):
        folder = self.create_tempdir().full_path
        for name in (folder, os.path.join(folder, "missing.keras")):
            with self.assertRaisesRegex(ValueError, "student.keras.*Received"):
                seed_tf.checkpoints.load_encoder(name, source=source)

    def test_a_damaged_file(self):
        path = os.path.join(self.create_tempdir(), "teacher.keras")
        tiny_encoder().save(path)
        with open(path, "rb+") as f:
            f.truncate(os.path.getsize(path) // 2)
        with self.assertRaisesRegex(ValueError, "teacher.keras.*cannot be"):
            seed_tf.checkpoints.load_encoder(path)

    def refused(self, path, pattern):
        with self.assertRaisesRegex(ValueError, pattern):
            seed_tf.checkpoints.load_encoder(path)

    def test_a_backbone_alone(self):
        """It does not normalise images, so its features would be others."""
        folder = self.create_tempdir().full_path
        path = os.path.join(folder, "resnet.keras")
        network = resnet("tiny", depths=(1, 1, 1, 1), width=2, stem="imagenet")
        network.save(path)
        self.refused(path, "backbone alone.*seed_tf.Encoder")
        with self.assertRaisesRegex(ValueError, "backbone alone"):
            protocols.load_encoder(path)  # the one of evaluate and detect
        whole = seed_tf.Encoder(network, head=None)
        whole.save(os.path.join(folder, "student.keras"))
        whole.save(os.path.join(folder, "net.keras"))
        # A backbone of the user's, known by the encoder beside it.
        for name, right in (
            ("backbone.keras", "student.keras"),
            ("net_backbone.keras", "net.keras"),
        ):
            path = os.path.join(folder, name)
            tiny_encoder().backbone.save(path)
            self.refused(path, f"backbone alone.*Load '.*{right}'")
        self.assertIsNone(seed_tf.checkpoints.load_encoder(folder).head)
        # One that normalises is a network like any other.
        images = keras.Input((None, None, 3))
        scaled = keras.layers.Rescaling(1 / 127.5, -1)(images)
        normalised = keras.models.clone_model(network)
        path = os.path.join(folder, "other.keras")
        outputs = normalised(scaled)
        keras.Model(images, outputs).save(path)
        self.assertEqual(
            seed_tf.checkpoints.load_encoder(path).output_shape[-1], 16
        )

    @parameterized.parameters(np.nan, -np.inf)
    def test_values(self, value):
        path = os.path.join(self.create_tempdir(), "teacher.keras")
        encoder = tiny_encoder()
        encoder.head.layers[-1].bias.assign([0, value] + 6 * [0])
        encoder.save(path)
        self.refused(path, r"bias' \(8,\) has 1 values that are NaN")

    def test_bombs(self):
        folder = self.create_tempdir().full_path
        path = os.path.join(folder, "teacher.keras")
        tiny_encoder().save(path)
        with zipfile.ZipFile(path) as archive:
            entries = {x: archive.read(x) for x in archive.namelist()}
        config = entries["config.json"]

        def write(**changed):
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in {**entries, **changed}.items():
                    archive.writestr(name, data)

        with mock.patch.object(
            keras.saving, "load_model", side_effect=AssertionError
        ):
            write(**{"config.json": config + b" " * 2**26})
            self.refused(path, "config of at most 33,554,432 bytes.*67,")
            write(**{"assets/a": bytes(2**27)})
            self.refused(path, "entries declare 134,")
            for layer, message in (
                (keras.layers.Dense(3), "keras.Model.*'Dense'"),
                (tiny_moco(), "whole seed_tf>MoCo"),
            ):
                made = keras.saving.serialize_keras_object(layer)
                write(**{"config.json": json.dumps(made)})
                self.refused(path, message)
            write(**{"config.json": b"[]"})
            self.refused(path, "Expected the config of a model")
        # A layer of terabytes, in the config alone.
        huge = config.replace(b'"filters": 4', b'"filters": 100000000000')
        self.assertNotEqual(huge, config)
        write(**{"config.json": huge})
        self.refused(path, "layers ask for 10,800,000,000,000 bytes")
        write(**{"config.json": b'{"config":' * 10**5})
        self.refused(path, "teacher.keras' cannot be loaded")

    def test_an_unknown_source(self):
        with self.assertRaisesRegex(ValueError, "source='dino'"):
            seed_tf.checkpoints.load_encoder("x.keras", source="dino")

    @pytest.mark.slow
    def test_any_keras_model_as_teacher(self):
        """As docs/checkpoints.md shows, without its weights from the net."""
        network = keras.applications.ConvNeXtTiny(
            include_top=False, weights=None
        )
        # It normalises images itself.
        teacher = seed_tf.Encoder(
            network, head=None, mean=(0,) * 3, std=(1 / 255,) * 3
        )
        images = random_images(2, 64)
        maps = network(images.astype("float32"))
        expected = keras.ops.mean(maps, axis=(1, 2))
        np.testing.assert_allclose(teacher(images), expected, 1e-4, 1e-4)
        path = os.path.join(self.create_tempdir(), "teacher.keras")
        teacher.save(path)
        loaded = seed_tf.checkpoints.load_encoder(path)
        np.testing.assert_allclose(loaded(images), teacher(images), 1e-5, 1e-6)
        for other, message in (
            (teacher, "backbones of seed_tf.backbone.*convnext_tiny"),
            (tiny_encoder(), "Expected the keys of a ResNet"),
            (network, "Only an Encoder.*convnext_tiny"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                seed_tf.checkpoints.save_torch(other, path)


NARROW = {"width": 16}  # a quarter of the channels


@needs_torch
class TeachersTest(PublishedTestCase):
    # The narrow one has the shapes of SwAV's x5, a twentieth as wide; x4 and
    # x5 themselves would take gigabytes, see `test_recognised_by_shapes`.
    @parameterized.named_parameters(
        ("moco_v1", "moco_file", "moco_v1", "resnet50", "linear", NARROW),
        ("moco_v2", "moco_file", "moco_v2", "resnet50", "mlp", {}),
        ("simclr", "simclr_file", "simclr", "resnet50", "mlp_bn", NARROW),
        ("swav", "swav_file", "swav", "resnet50", "mlp_bn", {}),
        ("swav_x2", "swav_file", "swav", "resnet50w2", "mlp_bn", NARROW),
        (
            *("swav_x5_narrow", "swav_file", "swav", "resnet50w5", "mlp"),
            {"width": 4, "hidden": 640},
        ),
        (
            *("deepcluster_v2", "deepcluster_file", "deepcluster_v2"),
            *("resnet50", "mlp_bn", NARROW),
        ),
        ("supervised", "classifier_file", "torchvision", "resnet34", None, {}),
    )
    def test_features_and_embeddings(self, file, source, name, head, size):
        net = self.network(name, head, **size)
        self.save(getattr(torch_layouts, file)(net))
        teacher = seed_tf.checkpoints.load_encoder(self.path)
        self.assertEqual(loading.read(self.path).source, source)
        self.assert_same(teacher, net)

    # In float64: rounding to float32 grows to 1e-4 through 150 random layers.
    @pytest.mark.slow
    def test_deep_moco(self):
        self.set_precision("float64")
        net = self.network("resnet152", "mlp")
        self.save(torch_layouts.moco_file(net))
        teacher = seed_tf.checkpoints.load_encoder(self.path, source="moco_v2")
        self.assert_same(teacher, net.double(), sizes=(64,))

    @parameterized.parameters(
        ("resnet50w4", "mlp_bn", 8192),
        ("resnet50w5", "mlp", 10240),
        ("resnet50w2", "mlp_bn", 2048),
    )
    def test_recognised_by_shapes(self, name, head, hidden):
        """Without their weights, which are up to 2.4 GB."""
        with torch.device("meta"):
            net = torch.nn.Module()
            net.backbone = torch_networks.backbone(name)
            width = net.backbone.width
            net.head = torch_networks.head(head, width, hidden, 128)
        state = torch_layouts.Network.state(net, "module.", "projection_head")
        contents = layouts.recognise(state)
        self.assertEqual(contents.source, "swav")
        self.assertEqual(contents.description, name)
        self.assertEqual(
            contents.encoder,
            {"head": "mlp", "hidden_dim": hidden, "embedding_dim": 128}
            | ({"head_batch_norm": True} if head == "mlp_bn" else {}),
        )

    @parameterized.product(
        dtype=["float16", "bfloat16", "float64"], new=[True, False]
    )
    @pytest.mark.slow
    def test_older_files_and_other_precisions(self, dtype, new):
        """Files as before PyTorch 1.6, and weights not in float32."""
        dtype = getattr(torch, dtype)
        net = self.network("resnet18", "mlp", width=8).to(dtype)
        state = net.state("module.encoder_q.")
        self.save({"state_dict": state}, _use_new_zipfile_serialization=new)
        teacher = seed_tf.checkpoints.load_encoder(self.path)
        self.assert_same(teacher, net.float(), sizes=(64,))

    def test_global_policy(self):
        """Of the student, which the teacher does not follow."""
        net = self.network("resnet18", "mlp", width=8)
        self.save(net.state())
        self.addCleanup(keras.mixed_precision.set_global_policy, "float32")
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
        teacher = seed_tf.checkpoints.load_encoder(self.path)
        self.assert_same(teacher, net, sizes=(64,))

    def test_small_stem(self):
        net = self.network("resnet18", "mlp", width=8, stem="cifar")
        self.save(net.state())
        load = seed_tf.checkpoints.load_encoder
        with self.assertRaisesRegex(ValueError, "cifar, cifar_padding_2.*auto"):
            load(self.path)
        teacher = load(self.path, stem="cifar")
        self.assert_same(teacher, net, sizes=(32,))


@needs_torch
class StudentsTest(PublishedTestCase):
    # In float64, since deep networks with depthwise convolutions and random
    # weights are chaotic: rounding to float32 grows to 1e-2 through B1.
    @parameterized.parameters(
        ("resnet18", "float32"),
        ("resnet34", "float32"),
        ("resnet50", "float32"),
        ("mobilenet_v3_large", "float64"),
        ("efficientnet_b0", "float64"),
        ("efficientnet_b1", "float64", 240),
    )
    @pytest.mark.slow
    def test_features_and_embeddings(self, name, dtype, *sizes):
        self.set_precision(dtype)
        net = self.network(name, "mlp")
        self.save(torch_layouts.seed_file(net, small_patches="b" in name))
        net = net.to(getattr(torch, dtype))
        student = seed_tf.checkpoints.load_student(self.path, head=True)
        self.assert_same(student, net, (224, 96, *sizes))

    def test_without_head(self):
        net = self.network("resnet18", "mlp", width=8)
        self.save(torch_layouts.seed_file(net))
        student = seed_tf.checkpoints.load_student(self.path)
        self.assertIsNone(student.head)
        net.head = torch.nn.Sequential()
        self.assert_same(student, net, (64,))

    @pytest.mark.slow
    def test_padding_of_efficientnet(self):
        """Where H is no multiple of 32, padding follows the map at hand."""
        self.set_precision("float64")
        net = self.network("efficientnet_b0", "mlp")
        self.save(torch_layouts.seed_file(net))
        net = net.double()
        student = seed_tf.checkpoints.load_student(self.path, head=True)
        with self.assertRaises(AssertionError):
            self.assert_same(student, net, (200,))
        with mock.patch.object(torch_networks.SameConv, "dynamic", True):
            self.assert_same(student, net, (200,))

    def test_students_of_moco_v1_have_a_linear_head(self):
        net = self.network("resnet18", "linear", width=8)
        self.save(torch_layouts.seed_file(net))
        student = seed_tf.checkpoints.load_encoder(self.path)
        self.assert_same(student, net, (64,))

    def test_both_networks_of_a_file(self):
        student = self.network("resnet18", "mlp", width=8)
        teacher = self.network("resnet50", "mlp_bn", width=16, seed=1)
        self.save(torch_layouts.seed_file(student, teacher))
        load = seed_tf.checkpoints.load_encoder
        self.assert_same(load(self.path), student, (96,))
        self.assert_same(load(self.path, source="seed"), student, (96,))
        self.assert_same(load(self.path, source="seed_teacher"), teacher, (96,))

    def test_a_file_without_student(self):
        net = self.network("resnet18", "mlp_bn", width=8)
        self.save(torch_layouts.swav_file(net))
        with self.assertRaisesRegex(ValueError, "distilled by SEED.*swav"):
            seed_tf.checkpoints.load_student(self.path)


@needs_torch
class ToTorchTest(PublishedTestCase):
    @parameterized.parameters(
        ("resnet18", "mlp"),
        ("resnet50", "mlp_bn"),
        ("resnet50", "linear"),
        ("resnet34", None),
        ("mobilenet_v3_large", "mlp"),
        ("efficientnet_b0", "mlp"),
        ("efficientnet_b1", None),
    )
    def test_round_trip(self, name, head):
        net = self.network(name, head, width=16)
        state = net.state()
        if head == "linear":  # `fc.weight` would be taken for a classifier
            state["fc.0.weight"] = state.pop("fc.weight")
            state["fc.0.bias"] = state.pop("fc.bias")
        self.save(state)
        encoder = seed_tf.checkpoints.load_encoder(self.path)
        back = os.path.join(self.create_tempdir(), "back.pth")
        seed_tf.checkpoints.save_torch(encoder, back)
        written = torch.load(back, weights_only=True)
        self.assertEqual(set(written), set(state))
        for key, tensor in state.items():
            if not key.endswith("num_batches_tracked"):
                self.assertTrue(torch.equal(written[key], tensor), key)
        images = random_images(2, 96)
        again = seed_tf.checkpoints.load_encoder(back)
        np.testing.assert_allclose(again(images), encoder(images), 1e-5, 1e-6)
        # PyTorch takes it as it is.
        backbone = {k: v for k, v in written.items() if k[:3] != "fc."}
        net.backbone.load_state_dict(backbone, strict=True)

    def test_what_has_no_counterpart(self):
        encoder = seed_tf.Encoder("mobilenet_v3_large", stem="cifar")
        with self.assertRaisesRegex(ValueError, 'stem="imagenet"'):
            seed_tf.checkpoints.save_torch(encoder, self.path)
        self.assertFalse(os.path.exists(self.path))


class TensorflowTest(PublishedTestCase):
    def setUp(self):
        super().setUp()
        self.prefix = os.path.join(self.create_tempdir(), "model.ckpt-225206")

    @pytest.mark.slow
    def test_simclr(self):
        self.set_precision("float64")
        net = SimCLR(random_images(4, 64, seed=1))
        net.save(self.prefix)
        folder = os.path.dirname(self.prefix)
        for path in (self.prefix, f"{self.prefix}.index", folder):
            teacher = seed_tf.checkpoints.load_encoder(path)
        self.assertIsNone(teacher.head)
        # Where maps of the max-pooling are even, and where they are odd.
        for size in (224, 96, 90):
            images = random_images(2, size)
            self.assert_near(teacher(images), net.features(images))
        contents = loading.read(self.prefix)
        self.assertIn("global_step", contents.left_out)
        self.assertIn("base_model/conv2d/kernel/Momentum", contents.left_out)
        with self.assertRaisesRegex(ValueError, "max-pooling is padded"):
            seed_tf.checkpoints.save_torch(teacher, self.prefix)

    def test_other_widths(self):
        net = SimCLR(random_images(4, 64, seed=1), width=8)
        net.save(self.prefix)
        teacher = seed_tf.checkpoints.load_encoder(self.prefix)
        images = random_images(2, 64)
        self.assert_near(teacher(images), net.features(images))
        # Saved and loaded, it pads as before.
        path = os.path.join(self.create_tempdir(), "teacher.keras")
        teacher.save(path)
        again = seed_tf.checkpoints.load_encoder(path)
        np.testing.assert_allclose(again(images), teacher(images), 1e-5, 1e-6)

    def refused(self, pattern, path=None, **kwargs):
        with self.assertRaisesRegex(ValueError, pattern):
            seed_tf.checkpoints.load_encoder(path or self.prefix, **kwargs)

    def test_bad_ones(self):
        net = SimCLR(random_images(2, 32), width=4)
        nan = np.full(4, np.nan, "f4")
        net.save(self.prefix, **{"base_model/batch_normalization/beta": nan})
        self.refused(r"'bn1.bias' \(4,\) has 4 values that are NaN")
        extra = "base_model/batch_normalization_99/beta"
        net.save(self.prefix, **{extra: nan})
        self.refused(f"unknown: {extra}")
        net.variables.pop("base_model/conv2d_7/kernel")
        net.save(self.prefix)
        self.refused("no ResNet of SimCLR v1.*52 such variables")
        net.variables = {}
        net.save(self.prefix)
        self.refused("no ResNet of SimCLR v1.*none")
        self.refused("TensorFlow checkpoints, and", source="moco_v2")

    def test_damaged(self):
        net = SimCLR(random_images(2, 32), width=4)
        net.save(self.prefix)
        data = f"{self.prefix}.data-00000-of-00001"
        with open(data, "rb+") as f:
            f.seek(os.path.getsize(data) // 2)
            f.write(b"damaged")
        self.refused("no whole TensorFlow checkpoint")
        with open(data, "rb+") as f:
            f.truncate(os.path.getsize(data) // 2)
        self.refused("refused: its variables declare")
        with open(f"{self.prefix}.index", "rb+") as f:
            f.truncate(20)
        self.refused("no whole TensorFlow checkpoint")


class Payload:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


@needs_torch
class HostileFilesTest(PublishedTestCase):
    def setUp(self):
        super().setUp()
        self.state = self.network("resnet18", "mlp", width=8).state(
            "module.encoder_q."
        )

    def refused(self, *patterns, contents=None, source="auto"):
        if contents is not None:
            self.save(contents)
        with self.assertRaises(ValueError) as caught:
            seed_tf.checkpoints.load_encoder(self.path, source=source)
        for pattern in patterns:
            self.assertRegex(str(caught.exception), pattern)

    @parameterized.parameters(True, False)
    def test_a_program_is_not_run(self, new):
        marker = os.path.join(self.create_tempdir(), "marker")
        self.save(
            {"state_dict": self.state, "extra": Payload(marker)},
            _use_new_zipfile_serialization=new,
        )
        self.refused("refused", "program", r"io\.open|builtins\.open")
        self.assertFalse(os.path.exists(marker))
        torch.load(self.path, weights_only=False)["extra"].close()
        self.assertTrue(os.path.exists(marker))  # it would have

    def test_a_bare_pickle(self):
        marker = os.path.join(self.create_tempdir(), "marker")
        with open(self.path, "wb") as f:
            pickle.dump(Payload(marker), f)
        self.refused("checkpoint.pth.tar")
        self.assertFalse(os.path.exists(marker))

    def test_training_options_are_no_program(self):
        import argparse

        options = argparse.Namespace(lr=0.03)
        self.save({"state_dict": self.state, "args": options})
        contents = loading.read(self.path)
        self.assertIn("args", contents.left_out)

    @parameterized.parameters(True, False)
    def test_truncated(self, new):
        self.save({"model": self.state}, _use_new_zipfile_serialization=new)
        size = os.path.getsize(self.path)
        for length in (size - 1000, size // 2, 100, 10, 0):
            with open(self.path, "rb+") as f:
                f.truncate(length)
            self.refused("no whole")

    def test_no_pytorch_file_at_all(self):
        with open(self.path, "w") as f:
            f.write("<html>404</html>")
        self.refused("no whole PyTorch file")
        self.refused("no state dict", "list", contents=[torch.zeros(1)])
        self.refused("no state dict", "'epoch'", contents={"epoch": 3})
        self.refused(
            "Two keys",
            contents={"module.a": 0}
            | {
                "module.conv1.weight": torch.zeros(1),
                "conv1.weight": torch.zeros(1),
            },
        )

    def test_zip_bomb(self):
        bomb = os.path.join(self.create_tempdir(), "bomb.pth")
        self.save(self.state)
        with (
            zipfile.ZipFile(self.path) as archive,
            zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for entry in archive.infolist():
                packed.writestr(entry.filename, archive.read(entry))
            packed.writestr("archive/data/bomb", bytes(10**8))
        self.assertLess(os.path.getsize(bomb), 10**6)
        self.path = bomb
        with mock.patch.object(torch, "load", side_effect=AssertionError):
            self.refused("refused", "declare 100,", "compressed")

    def test_entries_that_overlap(self):
        """One stored entry listed many times: the file unpacks to more."""
        self.save(self.state)
        with open(self.path, "rb") as f:
            data = f.read()
        end = data.rindex(b"PK\x05\x06")
        count, size, start = struct.unpack("<HII", data[end + 10 : end + 20])
        directory = data[start : start + size] * 20
        tail = b"PK\x05\x06" + struct.pack(
            "<HHHHIIH", 0, 0, *[20 * count] * 2, len(directory), start, 0
        )
        with open(self.path, "wb") as f:
            f.write(data[:start] + directory + tail)
        self.refused("refused", "declare")

    @parameterized.parameters(True, False)
    def test_tensors_that_claim_more_than_they_store(self, new):
        huge = torch.zeros(1).as_strided((10**6, 10**6), (0, 0))
        self.save(
            {**self.state, "module.encoder_q.fc.0.weight": huge},
            _use_new_zipfile_serialization=new,
        )
        self.refused("refused", "encoder_q.fc.0.weight.*1000000, 1000000")

    def test_keys_that_are_missing_or_unknown(self):
        state = dict(self.state)
        del state["module.encoder_q.layer3.1.bn2.running_var"]
        state["module.encoder_q.layer3.1.se.weight"] = torch.zeros(3)
        self.refused(
            "checkpoint.pth.tar",
            r"1 weights missing: layer3\.1\.bn2\.running_var",
            r"1 keys unknown: module\.encoder_q\.layer3\.1\.se\.weight",
            contents=state,
        )

    def test_shapes(self):
        state = dict(self.state)
        key = "module.encoder_q.layer2.0.conv1.weight"
        state[key] = torch.zeros(16, 8, 5, 5)
        self.refused(
            rf"'{key}' must have shape \(16, 8, 3, 3\), and has "
            r"\(16, 8, 5, 5\)",
            contents=state,
        )
        key = "module.encoder_q.conv1.weight"
        state[key] = torch.zeros(64, 3, 5, 5)
        self.refused(rf"'{key}'.*7, 7.*\(64, 3, 5, 5\)", contents=state)

    @parameterized.parameters(
        ("layer4.1.conv2.weight", float("nan"), "1 values that are NaN"),
        ("fc.2.bias", float("-inf"), "1 values that are NaN"),
        ("bn1.running_var", -1.0, "negative variances"),
    )
    def test_values(self, name, value, message):
        key = f"module.encoder_q.{name}"
        self.state[key].view(-1)[3] = value
        self.refused(f"'{key}' .*{message}", contents=self.state)

    def test_kinds_of_tensors(self):
        key = "module.encoder_q.fc.2.bias"
        integers = self.state | {key: torch.zeros(128, dtype=torch.int8)}
        self.refused(f"'{key}'.*floating-point.*int8", contents=integers)
        too_large = self.state | {
            key: torch.full((128,), 1e39, dtype=torch.float64)
        }
        self.refused(f"'{key}'.*infinite", contents=too_large)
        sparse = self.state | {key: torch.zeros(128).to_sparse()}
        self.refused(f"'{key}' must be a dense tensor", contents=sparse)

    def test_unknown_networks(self):
        self.refused(
            "Expected the keys of a ResNet.*'encoder.weight'",
            contents={"encoder.weight": torch.zeros(1)},
        )
        state = {k: v for k, v in self.state.items() if "layer4.1" not in k}
        self.refused(r"Expected the blocks.*\(2, 2, 2, 1\)", contents=state)
        state = {"_conv_stem.weight": torch.zeros(1)}
        self.refused("16 .B0. or 23.*0 blocks", contents=state)

    def test_another_source(self):
        self.refused(
            'MoCo v1.*looks like source="moco_v2"',
            contents=self.state,
            source="moco_v1",
        )
        self.refused("TensorFlow checkpoints", source="simclr_tf")
        self.refused("a .keras file", source="keras")

    def test_nothing_is_half_loaded(self):
        """Everything is checked before the first weight is set."""
        self.state["module.encoder_q.fc.2.bias"][0] = float("nan")
        with mock.patch.object(loading, "assign") as assign:
            self.refused("Nothing was loaded", contents=self.state)
        assign.assert_not_called()


class WithoutTorchTest(absltest.TestCase):
    def test_says_how_to_install_it(self):
        path = os.path.join(self.create_tempdir(), "x.pth")
        open(path, "w").close()
        with (
            mock.patch.dict(sys.modules, {"torch": None}),
            self.assertRaisesRegex(ValueError, r"pip install 'seed_tf\[torch"),
        ):
            seed_tf.checkpoints.load_encoder(path)

    def test_too_old(self):
        old = mock.Mock(__version__="2.5.1+cu124")
        with (
            mock.patch.dict(sys.modules, {"torch": old}),
            self.assertRaisesRegex(ValueError, "2.6.*Received: PyTorch 2.5.1"),
        ):
            torch_files.write("x.pth", {})


if __name__ == "__main__":
    absltest.main()
