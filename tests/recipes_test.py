"""Recipes: the paper's settings and numbers, and each one trains."""

import contextlib
import dataclasses
import functools
import io
import os
import re
import sys
from unittest import mock

import keras
import numpy as np
from absl.testing import absltest, flagsaver, parameterized
from helpers.runs import (
    import_launcher,
    tiny_teacher,
)

import seed_tf
from seed_tf import recipes
from seed_tf.acceleration import plan
from seed_tf.checkpoints.layouts import LAYOUTS
from seed_tf.encoders import backbones, efficientnet, mobilenet_v3
from seed_tf.evaluation import protocols, transfer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

STUDENTS = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "b0": "efficientnet_b0",
    "b1": "efficientnet_b1",
    "mobile": "mobilenet_v3_large",
}
# The table of numbers: top-1 (top-5); None where it is not confirmed.
TABLE = """
          alone        from_resnet50_mocov2  from_resnet152_mocov2  from_resnet50w2_swav_small_patches
resnet18  52.5/77.0    57.6-57.9/81.8        59.5/83.3              63.0/84.9
resnet34  57.4/81.6    58.5/82.6             62.7/85.8              65.7/86.8
b0        42.2         61.3                  -                      67.6
b1        -            -                     -                      -
mobile    36.3         55.2                  -                      68.2
"""  # noqa: E501
# Of each teacher, as names of recipes end: architecture, method, its own top-1
# where it is confirmed, and the views that it was trained with.
TEACHERS = {
    "resnet50_mocov2": ("resnet50", "moco_v2", 67.4, "moco_v2"),
    "resnet152_mocov2": ("resnet152", "moco_v2", 74.1, "moco_v2"),
    "resnet50w2_swav_small_patches": (
        *("resnet50w2", "swav", 77.3, "swav_small_patches"),
    ),
    "resnet50w4_swav_small_patches": (
        *("resnet50w4", "swav", None, "swav_small_patches"),
    ),
    "mocov1": ("resnet50", "moco_v1", None, "moco_v1"),
    "simclr": ("resnet50", "simclr", None, "simclr"),
    "mocov2": ("resnet50", "moco_v2", 67.4, "moco_v2"),
    "swav": ("resnet50", "swav", None, "swav"),
    "supervised": ("resnet50", "torchvision", None, "moco_v2"),
}
# What all recipes share, but for what their names say.
SETTINGS = {
    "image_size": 224,
    "epochs": 200,
    "batch_size": 256,
    "learning_rate": 0.03,
    "warmup_epochs": 5,
    "weight_decay": 1e-4,
    "precision": "mixed_float16",
    "queue_size": 65536,
    "temperature": 0.2,
    "teacher_temperature": 0.01,
    "objective": "similarity_distillation",
    "same_view": True,
    "hidden_dim": None,
    "embedding_dim": 128,
    "momentum": 0.999,
}
# Ablations: what their names begin with, the field, the values.
ABLATIONS = (
    (
        *("teacher_temperature", "teacher_temperature", float),
        "0.0001 0.001 0.01 0.03 0.1 0.3",
    ),
    ("queue", "queue_size", int, "256 1024 4096 16384 65536"),
    (
        *("objective", "objective", str),
        "similarity_distillation l2 binary_contrastive kmeans_clustering "
        "online_clustering",
    ),
    ("learning_rate", "learning_rate", float, "0.01 0.03 0.1 0.3"),
    ("weight_decay", "weight_decay", float, "0.00001 0.0001 0.001"),
    ("views", "same_view", lambda value: value == "same", "same different"),
)


def expected():
    """By name: student, key of `TEACHERS`, what differs from `SETTINGS`."""
    base = "resnet18", "resnet50_mocov2"
    found = {
        f"seed_{'_from_'.join(base)}_wide_head": (*base, {"hidden_dim": 2048})
    }
    for student in (*STUDENTS.values(), "resnet50"):
        found[f"mocov2_{student}"] = student, None, {}
    x4 = "resnet50w4_swav_small_patches"
    pairs = [(s, t) for s in STUDENTS.values() for t in list(TEACHERS)[:3]]
    for student, teacher in *pairs, ("efficientnet_b0", x4), ("resnet50", x4):
        longer = {"epochs": 800} if teacher.endswith("small_patches") else {}
        found[f"seed_{student}_from_{teacher}"] = student, teacher, longer
    for method in ("mocov1", "simclr", "mocov2", "swav", "supervised"):
        found[f"ablation_teacher_{method}"] = "resnet18", method, {}
    for kind, field, parse, values in ABLATIONS:
        for value in values.split():
            change = {field: parse(value)}
            found[f"ablation_{kind}_{value}"] = *base, change
    return found


def table():
    """Yields names of recipes, students, and numbers (top-1, top-5)."""
    heading, *lines = (line.split() for line in TABLE.strip().splitlines())
    for short, *cells in lines:
        for column, cell in zip(heading, cells, strict=True):
            student = STUDENTS[short]
            name = f"seed_{student}_{column}"
            if column == "alone":
                name = f"mocov2_{student}"
            top1, _, top5 = cell.partition("/")
            pair = tuple(float(x) for x in top1.split("-") if x)
            value = pair if len(pair) > 1 else (*pair, None)[0]
            yield name, student, value, float(top5) if top5 else None


class DataTest(parameterized.TestCase):
    @parameterized.parameters(*table())
    def test_numbers_are_the_papers(self, name, student, top1, top5):
        recipe = recipes.get(name)
        self.assertEqual(recipe.student, student)
        self.assertEqual((recipe.paper.top1, recipe.paper.top5), (top1, top5))

    def test_the_other_rows(self):
        with_few_labels = {
            "mocov2_resnet18": (30.9, 45.8),
            "seed_resnet18_from_resnet50_mocov2": (39.1, 50.2),
            "seed_resnet18_from_resnet152_mocov2": (44.3, 54.8),
        }
        top1 = {
            "mocov2_resnet50": 67.4,
            "seed_resnet50_from_resnet50w4_swav_small_patches": 74.3,
        }
        in_table = {name for name, *_ in table()}
        for name in recipes.names():
            paper = recipes.get(name).paper
            self.assertEqual(
                (paper.one_percent, paper.ten_percent),
                with_few_labels.get(name, (None, None)),
            )
            if name not in in_table:
                self.assertEqual(paper.top1, top1.get(name))
                self.assertIsNone(paper.top5)
        self.assertContainsSubset({*top1, *in_table}, recipes.names())

    def test_settings_are_the_papers(self):
        self.assertCountEqual(recipes.names(), expected())
        for name, (student, teacher, change) in expected().items():
            recipe = dataclasses.asdict(recipes.get(name))
            *of_teacher, views = TEACHERS.get(teacher, ("moco_v2",))
            found = recipe.pop("teacher") or {}
            found.pop("checkpoint", None)
            self.assertEqual(list(found.values()), of_teacher, name)
            del recipe["paper"], recipe["note"]
            settings = {"student": student, "views": views} | SETTINGS | change
            self.assertEqual(recipe, settings, name)
        # What no recipe names.
        self.assertEqual(seed_tf.training.SGD(0.1).momentum, 0.9)

    def test_all_that_recipes_name_exists(self):
        for name in recipes.names():
            recipe = recipes.get(name)
            self.assertIn(recipe.student, backbones.BACKBONES)
            views = recipes.VIEWS[recipe.views]
            self.assertEqual(views.__name__, recipe.views)
            objective = recipes.OBJECTIVES[recipe.objective]
            if objective:  # None: SEED's own
                self.assertEqual(objective.__name__, recipe.objective)
            if recipe.teacher:
                self.assertIn(recipe.teacher.architecture, backbones.BACKBONES)
                self.assertIn(recipe.teacher.method, LAYOUTS)

    def test_rows_that_are_no_recipes_name_what_exists(self):
        text = " ".join(recipes.ELSEWHERE.values())
        for launcher in re.findall(r"experiments\.(\w+)", text):
            self.assertTrue(os.path.exists(f"{ROOT}/experiments/{launcher}.py"))
        named = re.findall(r"--protocol=(\w+)", text)
        self.assertEqual(named, ["linear_views", "fine_tune", "transfer"])
        self.assertContainsSubset(named, protocols.PROTOCOLS)
        for name in ("cifar10", "cifar100", "sun397"):
            self.assertIn(name, text)
            self.assertIn(name, transfer.CONVENTIONS)

    def test_unknown_name(self):
        with self.assertRaisesRegex(
            ValueError,
            "--recipe=list prints. Received: recipe='seed_resnet18_from_"
            "resnet50'. The closest: seed_resnet18_from_resnet50_mocov2, ",
        ):
            recipes.get("seed_resnet18_from_resnet50")


def small():
    """Networks of all stages, with one block each; ResNets are narrow, too."""
    networks = {}
    for name, build in backbones.BACKBONES.items():
        if name.startswith("resnet"):
            width = build.keywords.get("width", 64) // 16
            build = functools.partial(build, depths=(1,) * 4, width=width)
        elif name.startswith("efficientnet"):
            build = functools.partial(build, depth=1.0)
        networks[name] = build
    return networks


# Networks and rewritten teachers are made once. Students are trained a little
# further by each recipe that they are in.
@functools.cache
def backbone(name, stem):
    return seed_tf.backbone(name, stem=stem)


@functools.cache
def teacher_of(architecture, method):
    head = {
        "torchvision": {"head": None},
        "moco_v1": {"head": "linear"},
        "moco_v2": {},
    }.get(method, {"head_batch_norm": True})
    return seed_tf.Encoder(architecture, **head)


@functools.cache
def folded(teacher, dtype, hardware):
    return seed_tf.acceleration.FoldedTeacher(teacher, dtype, hardware)


class TrainsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        keras.utils.set_random_seed(0)
        for change in (
            mock.patch.dict(backbones.BACKBONES, small()),
            mock.patch.object(
                efficientnet,
                "_STAGES",
                [(1, *stage) for _, *stage in efficientnet._STAGES],
            ),
            mock.patch.object(
                mobilenet_v3,
                "_BLOCKS",
                [mobilenet_v3._BLOCKS[i] for i in (0, 1, 3, 6, 10, 12)],
            ),
            mock.patch.object(recipes, "backbone", backbone),
            mock.patch.object(plan, "FoldedTeacher", folded),
        ):
            self.enter_context(change)

    @parameterized.parameters(*recipes.names())
    def test_two_steps(self, name):
        named = recipes.get(name)
        recipe = dataclasses.replace(
            named, image_size=32, queue_size=named.queue_size // 16
        )
        teacher = recipe.teacher and teacher_of(
            recipe.teacher.architecture, recipe.teacher.method
        )
        views = recipes.VIEWS[named.views](32)
        make_views = mock.Mock(return_value=views)
        with mock.patch.dict(recipes.VIEWS, {named.views: make_views}):
            model = recipes.build(recipe, teacher)
        encoder = model.student if teacher else model.encoder
        self.assertEqual(encoder.backbone.name, recipe.student)
        self.assertEqual(model.queue.size, recipe.queue_size)
        self.assertIs(model.views, views)
        make_views.assert_called_once_with(32)
        if teacher:
            self.assertIsNone(recipes.difference(teacher, recipe.teacher))
            self.assertIs(model.teacher, teacher)
            self.assertEqual(encoder.embedding_dim, teacher.embedding_dim)
            hidden = recipe.hidden_dim or encoder.feature_dim
            self.assertEqual(encoder.head.layers[0].units, hidden)
            patches = named.views == "swav_small_patches"
            self.assertEqual(model.small_queue is not None, patches)
            self.assertEqual(model.same_view, named.same_view)
            self.assertEqual(
                (model.student_temperature, model.teacher_temperature),
                (named.temperature, named.teacher_temperature),
            )
            self.assertIs(model.objective, recipes.OBJECTIVES[named.objective])
        else:
            self.assertEqual(encoder.embedding_dim, named.embedding_dim)
            self.assertEqual(
                (model.temperature, model.momentum),
                (named.temperature, named.momentum),
            )
        batch = 4 if teacher else 16  # MoCo's is in groups of two or more
        images = np.random.default_rng(0).integers(
            0, 256, (2 * batch, 36, 36, 3), dtype=np.uint8
        )
        before = encoder.backbone.get_weights()[0]
        model.compile(
            seed_tf.training.SGD(
                named.learning_rate, weight_decay=named.weight_decay
            ),
            run_eagerly=True,
        )
        history = model.fit(images, batch_size=batch, verbose=0).history
        self.assertEqual(model.step.numpy(), 2)
        self.assertTrue(np.isfinite(history["loss"]).all())
        after = encoder.backbone.get_weights()[0]
        self.assertFalse(np.array_equal(before, after))

    def test_another_teacher_is_told_of(self):
        expected = recipes.get("seed_resnet18_from_resnet50_mocov2").teacher
        for arguments in (
            {"backbone": "resnet18"},
            {"backbone": "resnet50", "head": "linear"},
        ):
            self.assertRegex(
                recipes.difference(seed_tf.Encoder(**arguments), expected),
                "recipe's teacher is resnet50 by moco_v2 .README.*This one is "
                f"{arguments['backbone']} with a head of Dense.*does not stand",
            )


class ThenSupervisedTest(absltest.TestCase):
    def test_two_steps_as_the_docs_have_them(self):
        with open(f"{ROOT}/docs/recipes.md") as file:
            section = file.read().split("### Then supervised distillation")[1]
        code = section.split("```python\n")[1].split("```")[0]
        self.assertIn("batch_size=256, epochs=30", code)
        prepare, distil = code.replace("epochs=30", "epochs=1").split("\n\n")
        rng = np.random.default_rng(0)
        labels = np.arange(512) % 3
        images = rng.integers(0, 80, (512, 8, 8, 3), dtype=np.uint8)
        images[np.arange(512), :, :, labels] += 150
        folder = self.create_tempdir().full_path
        teacher, student = (
            seed_tf.checkpoints.load_encoder(
                tiny_teacher(os.path.join(folder, f"{name}.keras"))
            )
            for name in ("teacher", "student")
        )
        names = {
            **{"keras": keras, "seed_tf": seed_tf},
            **{"teacher": teacher, "student": student},
            **{"images": images, "labels": labels},
            **{"test_images": images, "test_labels": labels},
        }
        exec(prepare, names)
        teacher, student = names["teacher"], names["student"]
        before = teacher.get_weights(), student.get_weights()
        exec(distil, names)
        self.assertEqual(names["distiller"].optimizer.iterations, 2)
        for old, new in zip(before[0], teacher.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
        for old, new in zip(before[1], student.get_weights(), strict=True):
            self.assertFalse(np.array_equal(old, new))
        # It is the encoder that learnt, for all that evaluates one.
        self.assertEqual(student.encoder.features(images[:2]).shape, (2, 6))


class LauncherTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.launcher = import_launcher("seed_tf.cli.distill")
        self.enter_context(mock.patch.object(sys, "argv", ["distill.py"]))

    def main(self, *arguments):
        """What experiments.distill prints; it runs in this process."""
        printed = io.StringIO()
        with flagsaver.flagsaver(), contextlib.redirect_stdout(printed):
            self.launcher.FLAGS(["distill.py", *arguments])
            with contextlib.suppress(SystemExit):
                self.launcher.main([])
        return printed.getvalue()

    def test_images_of_a_training_are_set_up_once(self):
        load = seed_tf.datasets.load
        with (
            flagsaver.flagsaver(),
            mock.patch.object(seed_tf.datasets, "load", wraps=load) as loads,
        ):
            self.launcher.FLAGS(
                [
                    *("distill.py", "--dataset=digits", "--image_size=16"),
                    *("--batch_size=400", "--epochs=2", "--knn_every=0"),
                    *("--held_out=0", "--teacher=t", "--output=o"),
                ]
            )
            data = self.launcher.common.Data(None, 1)
            self.assertEqual(data.steps_per_epoch, 3)
            whole = list(data.training())
            self.assertEqual(loads.call_count, 1)
            rest = list(data.training(first_step=4))
        self.assertLen(whole, 6)
        np.testing.assert_array_equal(rest, whole[4:])

    def test_list(self):
        # No other flag is needed for it.
        printed = self.main("--recipe=list")
        lines = printed.splitlines()
        lines = {line.split()[0]: line.split() for line in lines[:70] if line}
        self.assertContainsSubset(recipes.names(), lines)
        self.assertEqual(
            lines["seed_resnet18_from_resnet50_mocov2"][-6:],
            ["moco_v2", "200", "57.6-57.9", "81.8", "39.1", "50.2"],
        )
        # Numbers that no source confirms are not printed.
        self.assertEqual(
            lines["seed_mobilenet_v3_large_from_resnet152_mocov2"][-4:],
            ["–"] * 4,
        )
        for unconfirmed in ("65.3", "50.7", "61.4", "67.3"):
            self.assertNotIn(unconfirmed, printed)

    def test_a_recipe_of_another_launcher(self):
        with self.assertRaisesRegex(
            ValueError,
            "mocov2_resnet18 is run by experiments.pretrain, this is "
            "experiments.distill.",
        ):
            self.main("--recipe=mocov2_resnet18", "--teacher=x", "--output=y")

    def test_a_recipe_and_what_overrides_it(self):
        teacher = os.path.join(self.create_tempdir().full_path, "t.keras")
        made = {}

        def train(build, *_, **__):
            model, student, _ = build(seed_tf.views.moco_v2(16))
            made.update(model=model, student=student)
            made["flags"] = self.launcher.FLAGS.flag_values_dict()

        with (
            mock.patch.object(self.launcher.common, "train", train),
            self.assertLogs("absl", "WARNING") as logs,
        ):
            self.main(
                "--recipe=ablation_teacher_temperature_0.1",
                f"--teacher={tiny_teacher(teacher)}",
                *("--epochs=1", "--queue_size=64", "--precision=float32"),
                *("--output=x", "--image_size=16"),
            )
        self.assertIn("The recipe's teacher is resnet50", logs.output[0])
        expected = {
            "recipe": "ablation_teacher_temperature_0.1",
            "student": "resnet18",  # the launcher's own default is another
            "teacher_temperature": 0.1,
            "learning_rate": 0.03,
            "views": "moco_v2",
            "epochs": 1,
            "queue_size": 64,
            "precision": "float32",
        }
        self.assertEqual(made["flags"], made["flags"] | expected)
        self.assertEqual(made["student"].backbone.name, "resnet18")
        self.assertEqual(made["model"].teacher_temperature, 0.1)
        self.assertEqual(made["model"].queue.size, 64)


if __name__ == "__main__":
    absltest.main()
