"""The ResNet in the files of many codes, and networks that only look alike."""

import argparse
import collections
import datetime
import decimal
import functools
import io
import itertools
import os
import pathlib
import pickle
import struct
import types
import zipfile
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from helpers.published import (
    PublishedTestCase,
    as_torch,
    needs_torch,
    normalised,
    random_images,
    tiny_encoder,
)

import seed_tf
from seed_tf.checkpoints import layouts, loading, pickles

try:
    import torch
    from helpers import torch_layouts
    from torch import nn
except ImportError:
    torch = None

load = seed_tf.checkpoints.load_encoder


@functools.cache
def network(seed=0, head="mlp", stem="imagenet", name="resnet18"):
    images = as_torch(normalised(random_images(4, 64, seed=1)))
    return torch_layouts.Network(
        name, head, images, width=8, stem=stem, seed=seed
    )


def trained():
    return network(0)


def average():
    return network(1)


def backbone(prefix, net):
    return {prefix + k: v for k, v in net.backbone.state_dict().items()}


def numbered(prefix, net, first_stage=4, shortcut="downsample"):
    """As nn.Sequential(*list(resnet.children())[:-1]) names it."""
    modules = {"conv1": "0", "bn1": "1"}
    modules |= {f"layer{i}": str(first_stage - 1 + i) for i in (1, 2, 3, 4)}
    found = {}
    for key, value in net.backbone.state_dict().items():
        module, _, rest = key.partition(".")
        rest = rest.replace("downsample", shortcut)
        found[f"{prefix}{modules[module]}.{rest}"] = value
    return found


def linear(prefix, *widths, bias=True):
    """Layers at 0, 2, 4, ..., or 0, 3, 6, ... with BatchNorm between."""
    made = nn.Sequential()
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        made += nn.Sequential(nn.Linear(a, b, bias=bias), nn.BatchNorm1d(b))
        if i < len(widths) - 2:
            made += nn.Sequential(nn.ReLU())
    return {prefix + k: v for k, v in made.state_dict().items()}


def mlp(prefix, net):
    return {prefix + k: v for k, v in net.head.state_dict().items()}


def dino():
    head = linear("head.mlp.", 64, 32, 32, 16)
    return {
        "student": {
            **backbone("module.backbone.", trained()),
            **{f"module.{k}": v for k, v in head.items()},
            "module.head.last_layer.weight_v": torch.zeros(3, 16),
        },
        "teacher": {
            **backbone("backbone.", average()),
            **head,
            "head.last_layer.weight_v": torch.zeros(3, 16),
        },
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}},
        "epoch": 100,
        "args": argparse.Namespace(arch="resnet50", data=pathlib.Path("a")),
        "dino_loss": {"center": torch.zeros(1, 3)},
    }


def vissl():
    prefix = "_feature_blocks."
    return {
        "phase_idx": 1,
        "loss": torch.zeros(()),
        "classy_state_dict": {
            "train": True,
            "base_model": {
                "model": {
                    "trunk": backbone(prefix, trained()),
                    "heads": {"0.clf.0.weight": torch.zeros(16, 64)},
                },
                "meta": {"input_shape": [3, 224, 224]},
            },
        },
    }


def solo():
    return {
        "epoch": 1,
        "pytorch-lightning_version": "2",
        "state_dict": {
            **backbone("backbone.", trained()),
            **backbone("momentum_backbone.", average()),
            **mlp("projector.", trained()),
            **mlp("momentum_projector.", average()),
            "classifier.weight": torch.zeros(10, 64),
            "classifier.bias": torch.zeros(10),
            "queue": torch.zeros(2, 3),
        },
        "hyper_parameters": {"lr": np.float32(0.3), "seed": np.int64(3)},
    }


def moco_v3():
    state = {}
    for name, net in (("base", trained()), ("momentum", average())):
        prefix = f"module.{name}_encoder."
        state |= backbone(prefix, net)
        state |= linear(f"{prefix}fc.", 64, 32, 16, bias=False)
    return {
        "arch": "resnet50",
        "state_dict": state | linear("module.predictor.", 16, 32, 16),
    }


def byol():
    """As lucidrains/byol-pytorch, which keeps the online network twice."""
    return {
        **backbone("net.", trained()),
        **backbone("online_encoder.net.", trained()),
        **linear("online_encoder.projector.", 64, 32, 16),
        **backbone("target_encoder.net.", average()),
    }


def mmselfsup():
    state = {}
    for name, net in (("encoder_q", trained()), ("encoder_k", average())):
        state |= backbone(f"{name}.0.", net) | mlp(f"{name}.1.mlp.", net)
    state |= backbone("backbone.", trained())
    return {"meta": {"config": "x = 1"}, "state_dict": state}


# The file's contents, the network that is taken, and whether its head is.
FILES = {
    "dino": (dino, average, False),
    "dino_backbone": (lambda: backbone("", trained()), trained, False),
    "barlow_twins": (
        lambda: {
            "epoch": 3,
            "model": {
                **backbone("module.backbone.", trained()),
                **linear("module.projector.", 64, 32, 32, 16, bias=False),
                "module.bn.running_mean": torch.zeros(16),
                "module.bn.running_var": torch.ones(16),
            },
        },
        trained,
        False,
    ),
    "vicreg": (
        lambda: {
            "model": {
                **backbone("module.backbone.", trained()),
                **linear("module.projector.", 64, 32, 32, 16),
            }
        },
        trained,
        False,
    ),
    "simsiam": (
        lambda: {
            "state_dict": {
                **backbone("module.encoder.", trained()),
                **linear("module.encoder.fc.", 64, 64, 64, 16, bias=False),
                **linear("module.predictor.", 16, 32, 16),
            }
        },
        trained,
        False,
    ),
    "byol": (byol, average, False),
    "moco_v3": (moco_v3, average, False),
    "solo_learn": (solo, average, True),
    "lightly": (
        lambda: {
            "state_dict": {
                **numbered("backbone.", trained()),
                **mlp("projection_head.layers.", trained()),
                **numbered("backbone_momentum.", average()),
                **mlp("projection_head_momentum.layers.", average()),
            }
        },
        average,
        True,
    ),
    "lightly_small": (
        lambda: numbered("backbone.", small(), 2, "shortcut"),
        lambda: small(),
        False,
        {"stem": "cifar"},
    ),
    "mmselfsup": (mmselfsup, trained, True),
    "moco_v2_and_more": (
        lambda: {
            **torch_layouts.moco_file(trained()),
            "loss": torch.zeros(()),
        },
        trained,
        True,
    ),
    "mmselfsup_byol": (
        lambda: {
            "state_dict": {
                **backbone("online_net.0.", trained()),
                **backbone("target_net.module.0.", average()),
            }
        },
        average,
        False,
    ),
    "vissl": (vissl, trained, False),
    "timm": (
        lambda: {
            "arch": "resnet18",
            "state_dict": torch_layouts.classifier_file(trained()),
            "state_dict_ema": torch_layouts.classifier_file(average()),
        },
        average,
        False,
    ),
    "torchvision_ema": (
        lambda: {
            "model": backbone("", trained()),
            "model_ema": {
                "n_averaged": torch.zeros((), dtype=torch.long),
                **backbone("module.", average()),
            },
        },
        average,
        False,
    ),
    "torch_compile": (
        lambda: backbone("_orig_mod.module.", trained()),
        trained,
        False,
    ),
    "fsdp": (
        lambda: {
            k.replace("layer1.0.", "layer1._checkpoint_wrapped_module.0."): v
            for k, v in backbone("model.net.", trained()).items()
        },
        trained,
        False,
    ),
    "student_by_branch": (dino, trained, False, {"branch": "student"}),
    "branch_by_its_end": (byol, trained, False, {"branch": "online_encoder"}),
}


def small():
    return network(2, None, "cifar")


@needs_torch
class FilesTest(PublishedTestCase):
    @parameterized.parameters(*FILES)
    def test_its_weights(self, name):
        contents, net, has_head, *choices = FILES[name]
        self.save(contents())
        found = loading.read(self.path, **(choices[0] if choices else {}))
        expected = backbone("", net()) | (mlp("fc.", net()) if has_head else {})
        expected = {k: v for k, v in expected.items() if "num_batches" not in k}
        self.assertEqual(found.tensors.keys(), expected.keys())
        for key, array in found.tensors.items():
            np.testing.assert_array_equal(array, expected[key], key)
        self.assertStartsWith(found.description, "resnet18_width_8")
        self.assertEqual(found.encoder["head"], "mlp" if has_head else None)

    @parameterized.parameters(*FILES)
    @pytest.mark.slow
    def test_its_features(self, name):
        contents, net, has_head, *choices = FILES[name]
        self.save(contents())
        said = []
        choices = choices[0] if choices else {}
        encoder = load(self.path, log=said.append, **choices)
        images = random_images(2, 64)
        with torch.inference_mode():
            features = net().backbone(as_torch(normalised(images)))
            embeddings = net().head(features)
        self.assert_near(encoder.features(images), features)
        self.assert_near(encoder(images), embeddings if has_head else features)
        if net is average:
            self.assertRegex(said[0], "the network is '.*', and not '")

    @parameterized.parameters("float32", "bfloat16", "float16")
    def test_safetensors(self, dtype):
        torch_files = pytest.importorskip("safetensors.torch")
        path = os.path.join(self.create_tempdir(), "model.safetensors")
        state = {
            k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v
            for k, v in trained().state("backbone.").items()
        }
        torch_files.save_file(state, path, metadata={"format": "pt"})
        with mock.patch.dict("sys.modules", {"torch": None}):
            contents = loading.read(path)
        self.assertEqual(contents.branch, "backbone")
        for name, array in contents.tensors.items():
            expected = state[f"backbone.{name}"].float()
            np.testing.assert_array_equal(array.astype("f4"), expected)
        with open(path, "rb") as file:
            data = file.read()
        (length,) = struct.unpack("<Q", data[:8])
        for damaged in (
            data[:-4],
            data[: length // 2],
            struct.pack("<Q", 2**60) + data[8:],
            struct.pack("<Q", 10**5) + b"[" * 10**5,
            data[:8] + data[8:].replace(b'"F32"', b'"F99"', 1)[: len(data)],
        ):
            if dtype == "float32":
                with open(path, "wb") as file:
                    file.write(damaged)
                with self.assertRaisesRegex(ValueError, "safetensors file"):
                    load(path)

    def test_which_of_two(self):
        a, b = backbone("one.", trained()), backbone("two.", average())
        self.save({**a, **b})
        with self.assertRaisesRegex(ValueError, "`branch`.*'one', 'two'.*None"):
            load(self.path)
        with self.assertRaisesRegex(ValueError, "'one', 'two'.*'three'"):
            load(self.path, branch="three")
        self.assertEqual(loading.read(self.path, branch="two").branch, "two")
        # The same weights twice are one network.
        self.save({**a, **backbone("two.", trained())})
        self.assertEqual(loading.read(self.path).branch, "one")

    def test_classifiers_of_other_networks(self):
        for name, keys in (
            ("efficientnet_b0", ("_fc.weight", "_fc.bias")),
            ("mobilenet_v3_large", ("classifier.3.weight",)),
        ):
            with torch.device("meta"):
                net = torch.nn.Module()
                net.backbone = torch_layouts.torch_networks.backbone(name)
            state = backbone("", net) | dict.fromkeys(keys, torch.zeros(3))
            contents = layouts.recognise(state)
            self.assertEqual(contents.description, name)
            for key in keys:
                self.assertEqual(contents.left_out[key], "classifier")

    def test_harmless_objects(self):
        """They are left out, and nothing of them is made."""
        self.save(
            {
                "model": backbone("", trained()),
                "best": np.float64(0.3),
                "random": np.arange(5),
                "path": pathlib.PurePosixPath("a/b"),
                "options": argparse.Namespace(lr=[1], d={"a": np.int32(1)}),
                "more": types.SimpleNamespace(a=1),
                "when": datetime.datetime(2020, 1, 1),
                "exact": decimal.Decimal("0.1"),
                "counts": collections.defaultdict(list, {"a": [1]}),
            }
        )
        with mock.patch.object(decimal, "Decimal", side_effect=AssertionError):
            contents = loading.read(self.path)
        self.assertIn("options", contents.left_out)
        self.assertLen(contents.keys, 100)


@needs_torch
class LookAlikesTest(PublishedTestCase):
    def refused(self, pattern, **kwargs):
        with self.assertRaisesRegex(ValueError, pattern) as caught:
            load(self.path, **kwargs)
        self.assertNotIn("weights_only", str(caught.exception))

    def check_stem(self, stem):
        net = network(3, None, stem)
        self.save(net.state("backbone."))
        self.refused("Expected `stem` to be one of cifar, cifar_padding_2")
        encoder = load(self.path, stem=stem)
        for size in (64, 45):
            images = random_images(2, size)
            with torch.inference_mode():
                expected = net.backbone(as_torch(normalised(images)))
            self.assert_near(encoder(images), expected)
        return encoder

    def test_the_stem_of_solo_learn(self):
        encoder = self.check_stem("cifar_padding_2")
        path = os.path.join(self.create_tempdir(), "x.keras")
        encoder.save(path)
        images = random_images(2, 45)
        np.testing.assert_array_equal(load(path)(images), encoder(images))
        with self.assertRaisesRegex(ValueError, "has its own stem"):
            load(path, stem="cifar")

    @parameterized.parameters(
        "cifar", "cifar_pool", "stride_2", "stride_2_pool"
    )
    @pytest.mark.slow
    def test_stems_with_a_kernel_of_3(self, stem):
        self.check_stem(stem)

    def test_other_stems(self):
        state = backbone("", trained())
        self.save(state)
        self.refused("`stem`.*one of imagenet.*'cifar'", stem="cifar")
        deep = {f"conv1.{i}.weight": torch.zeros(8, 3, 3, 3) for i in (0, 3)}
        del state["conv1.weight"]
        self.save(state | deep)
        self.refused("ResNet-D")

    def test_anti_aliasing(self):
        state = backbone("", trained())
        self.save(state | {"layer2.0.downsample.0.filt": torch.zeros(16, 1, 3)})
        self.refused("1 keys unknown: layer2.0.downsample.0.filt")
        self.save({"arch": "resnetblur50", "state_dict": state})
        self.refused("anti-aliased.*resnetblur50.*`stem=")
        load(self.path, stem="imagenet")
        self.save(state)
        path = os.path.join(os.path.dirname(self.path), "resnetaa50_a1h.pth")
        os.rename(self.path, path)
        self.path = path
        self.refused("anti-aliased.*resnetaa50_a1h.pth")

    @parameterized.parameters("layer1.0.se.fc.weight", "maxpool.1.filt")
    def test_parts_that_a_resnet_has_not(self, key):
        self.save(backbone("", trained()) | {key: torch.zeros(3)})
        self.refused(f"1 keys unknown: {key}")

    def test_images_in_other_ranges(self):
        self.save(trained().state())
        encoder = load(self.path, mean=(0, 0, 0), std=(1, 1, 1))
        images = random_images(2, 64)
        with torch.inference_mode():
            expected = trained()(as_torch((images / 255).astype("f4")))
        self.assert_near(encoder(images), expected)

    def test_a_stem_of_a_network_without(self):
        self.save(
            {"_conv_stem.weight": torch.zeros(1), "_blocks.15.a": _zero()}
        )
        self.refused("16 .B0. or 23")


def _zero():
    return torch.zeros(1)


class OtherFormatsTest(absltest.TestCase):
    def refused(self, name, data, pattern):
        path = os.path.join(self.create_tempdir(), name)
        if data is not None:
            with open(path, "wb") as file:
                file.write(data)
        with self.assertRaisesRegex(ValueError, pattern) as caught:
            load(path)
        self.assertIn(name, str(caught.exception))
        self.assertNotIn("weights_only", str(caught.exception))
        self.assertLess(len(str(caught.exception)), 700)

    def test_named(self):
        array, arrays = io.BytesIO(), io.BytesIO()
        np.save(array, np.zeros(2))
        np.savez(arrays, a=np.zeros(2))
        whole = os.path.join(self.create_tempdir(), "x.keras")
        tiny_encoder().save(whole)
        script = io.BytesIO()
        with zipfile.ZipFile(script, "w") as archive:
            archive.writestr("m/code/__torch__.py", "")
        with open(whole, "rb") as file:
            saved = file.read()
        for name, data, pattern in (
            ("x.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5.*model.save"),
            ("x.tflite", b"\x1c\0\0\0TFL3" + bytes(99), "LiteRT"),
            ("x.onnx", b"\x08\x08\x12\x07pytorch" + bytes(99), "ONNX"),
            ("x.npy", array.getvalue(), "NumPy array"),
            ("x.npz", arrays.getvalue(), "NumPy archive"),
            ("x.pth.gz", b"\x1f\x8b\x08" + bytes(99), "gzip.*Unpack"),
            ("x.tar", bytes(257) + b"ustar" + bytes(999), "tar archive|whole"),
            ("x.pt", script.getvalue(), "TorchScript.*state_dict"),
            ("x.zip", saved, "Keras file.*ends in .keras"),
            *(
                (f"{i}.pkl", pickle.dumps({"a": 1}, i), "plain pickle.*state_d")
                for i in (2, 3, 4, 5)
            ),
        ):
            with self.subTest(name):
                self.refused(name, data, pattern)
        folder = self.create_tempdir().full_path
        open(os.path.join(folder, "saved_model.pb"), "w").close()
        with self.assertRaisesRegex(ValueError, "SavedModel.*exported from"):
            load(folder)


@needs_torch
class BombsTest(PublishedTestCase):
    """Pickles of a kilobyte, whose values are exponentially large or deep."""

    def written(self, body):
        self.save({"a": torch.zeros(1)})
        inside = zipfile.ZipFile(self.path).namelist()
        name = next(x for x in inside if x.endswith("data.pkl"))
        with zipfile.ZipFile(self.path, "w") as archive:
            archive.writestr(name, body)
            archive.writestr(name.replace("data.pkl", "version"), "3\n")

    @parameterized.named_parameters(
        # t = (t, t) thirty times; then a dict with this key.
        ("doubling", b"}(" + b")" + b"q\0h\0\x86" * 30 + b"K\1u."),
        ("deep", b"}(" + b")" + b"\x85" * 10**5 + b"K\1u."),
        ("lists", b"]" * 10**5 + b"a" * (10**5 - 1) + b"."),
    )
    def test_refused_before_it_is_read(self, body):
        self.written(b"\x80\2" + body)
        with (
            mock.patch.object(torch, "load", side_effect=AssertionError),
            self.assertRaisesRegex(ValueError, "refused: its pickle describes"),
        ):
            load(self.path)

    def test_what_a_pickle_uses(self):
        """Of contents as they are, nothing is refused."""
        contents = {
            "optimizer": {i: {"step": i, "m": [0.1] * 50} for i in range(300)},
            "shared": [(1, 2)] * 3000,
            "options": argparse.Namespace(a=1),
        }
        file = io.BytesIO(pickle.dumps(contents, 2))
        self.assertEqual(pickles.names_in(file), {"argparse.Namespace"})
        for size in range(1, len(file.getvalue()), 40_000):
            with self.assertRaises(ValueError):
                pickles.names_in(io.BytesIO(file.getvalue()[:size]))

    def test_the_same_dict_many_times(self):
        """Walking nested dicts ends, too."""
        inner = {"a": 1}
        for _ in range(40):
            inner = {"a": inner, "b": inner}
        self.save(inner)
        with self.assertRaisesRegex(ValueError, "refused|no state dict"):
            load(self.path)
        loop = {"epoch": 3}
        loop["again"] = loop
        self.save(loop)
        with self.assertRaisesRegex(ValueError, "no state dict"):
            load(self.path)

    def test_names_are_cut(self):
        long = "x" * 10**5
        self.save({f"{long}.conv1.weight": torch.zeros(1)})
        with self.assertRaises(ValueError) as caught:
            load(self.path)
        self.assertLess(len(str(caught.exception)), 1000)


if __name__ == "__main__":
    absltest.main()
