"""Recipes: the paper's settings and numbers, and each one trains."""

import dataclasses
import functools
import os
import re
from unittest import mock

import keras
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from helpers.runs import tiny_teacher

import seed_tf
from seed_tf import encoders, losses, recipes
from seed_tf.acceleration import plan
from seed_tf.checkpoints.layouts import LAYOUTS
from seed_tf.cli import main
from seed_tf.config import DistillConfig
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
}
DISTILLED = {
    "student_temperature": 0.2,
    "teacher_temperature": 0.01,
    "objective": "similarity_distillation",
    "same_view": True,
    "hidden_dim": None,
}
ALONE = {
    "temperature": 0.2,
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


def network(config):
    """Name of the network that a configuration trains."""
    return getattr(config, "student", None) or config.encoder


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
        self.assertEqual(network(recipe.config), student)
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
            recipe = recipes.get(name)
            *of_teacher, views = TEACHERS.get(teacher, ("moco_v2",))
            found = dataclasses.asdict(recipe).pop("teacher") or {}
            found.pop("checkpoint", None)
            self.assertEqual(list(found.values()), of_teacher, name)
            of_kind = DISTILLED if teacher else ALONE
            self.assertEqual(network(recipe.config), student)
            settings = {"views": views} | SETTINGS | of_kind | change
            self.assertEqual(
                {key: getattr(recipe.config, key) for key in settings},
                settings,
                name,
            )
            # No other setting than these and the networks' names differs.
            rest = {"student", "encoder", "recipe", *settings}
            default = type(recipe.config)().as_dict()
            for key, value in recipe.config.as_dict().items():
                if key not in rest:
                    self.assertEqual(value, default[key], key)
            self.assertEqual(recipe.config.recipe, name)
        # What no recipe names.
        self.assertEqual(seed_tf.training.SGD(0.1).momentum, 0.9)

    def test_all_that_recipes_name_exists(self):
        for name in recipes.names():
            recipe = recipes.get(name)
            self.assertIn(network(recipe.config), backbones.BACKBONES)
            if recipe.teacher:
                self.assertIn(recipe.teacher.architecture, backbones.BACKBONES)
                self.assertIn(recipe.teacher.method, LAYOUTS)

    def test_rows_that_are_no_recipes_name_what_exists(self):
        text = " ".join(recipes.ELSEWHERE.values())
        for name in re.findall(r"seed-tf (\w+)", text):
            self.assertIn(name, main.COMMANDS)
        named = re.findall(r"--protocol=(\w+)", text)
        self.assertEqual(named, ["linear_views", "fine_tune", "transfer"])
        self.assertContainsSubset(named, protocols.PROTOCOLS)
        for name in ("cifar10", "cifar100", "sun397"):
            self.assertIn(name, text)
            self.assertIn(name, transfer.CONVENTIONS)

    def test_unknown_name(self):
        with self.assertRaisesRegex(
            ValueError,
            "`recipe=list`. Received: recipe='seed_resnet18_from_"
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
    return backbones.backbone(name, stem=stem)


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


# Recipes that stand for the others in the quick tests.
QUICK = (
    *("mocov2_resnet18", "ablation_objective_l2"),
    "seed_resnet18_from_resnet50_mocov2_wide_head",
)


def others():
    """One recipe of each kind: depths, widths and numbers build alike."""
    kinds = {}
    for name in recipes.names():
        kind = re.sub(r"_[\d.]+$|resnet\d+(w\d)?|(?<=_b)\d", "", name)
        kinds.setdefault(kind, name)
    return [name for name in kinds.values() if name not in QUICK]


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
            mock.patch.object(encoders, "backbone", backbone),
            mock.patch.object(plan, "FoldedTeacher", folded),
        ):
            self.enter_context(change)

    @parameterized.parameters(*QUICK)
    def test_two_steps(self, name):
        self.check_two_steps(name)

    @parameterized.parameters(*others())
    @pytest.mark.slow
    def test_two_steps_of_all_others(self, name):
        self.check_two_steps(name)

    def check_two_steps(self, name):
        named = recipes.get(name)
        config = dataclasses.replace(
            named.config,
            image_size=32,
            queue_size=named.config.queue_size // 16,
        )
        teacher = named.teacher and teacher_of(
            named.teacher.architecture, named.teacher.method
        )
        made = getattr(seed_tf.views, config.views)(32)
        with mock.patch.object(
            seed_tf.views, config.views, return_value=made
        ) as make_views:
            model = recipes.build(config, teacher)
        encoder = model.student if teacher else model.encoder
        self.assertEqual(encoder.backbone.name, network(config))
        self.assertEqual(encoder.image_size, 32)
        self.assertEqual(model.queue.size, config.queue_size)
        self.assertIs(model.views, made)
        make_views.assert_called_once_with(32, flip=True)
        if teacher:
            self.assertIsNone(recipes.difference(teacher, named.teacher))
            self.assertIs(model.teacher, teacher)
            self.assertEqual(encoder.embedding_dim, teacher.embedding_dim)
            hidden = config.hidden_dim or encoder.feature_dim
            self.assertEqual(encoder.head.layers[0].units, hidden)
            patches = config.views == "swav_small_patches"
            self.assertEqual(model.small_queue is not None, patches)
            self.assertEqual(model.same_view, config.same_view)
            self.assertEqual(
                (model.student_temperature, model.teacher_temperature),
                (config.student_temperature, config.teacher_temperature),
            )
            objective = None
            if config.objective != "similarity_distillation":
                objective = getattr(losses, config.objective)
            self.assertIs(model.objective, objective)
        else:
            self.assertEqual(encoder.embedding_dim, config.embedding_dim)
            self.assertEqual(
                (model.temperature, model.momentum),
                (config.temperature, config.momentum),
            )
        batch = 4 if teacher else 16  # MoCo's is in groups of two or more
        images = np.random.default_rng(0).integers(
            0, 256, (2 * batch, 36, 36, 3), dtype=np.uint8
        )
        before = encoder.backbone.get_weights()[0]
        model.compile(
            seed_tf.training.SGD(
                config.learning_rate, weight_decay=config.weight_decay
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
                f"{arguments['backbone']} with a head of Dense.*do not compare",
            )


class ThenSupervisedTest(absltest.TestCase):
    @pytest.mark.slow
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


class ConfigureTest(absltest.TestCase):
    def test_settings_override_the_recipe_and_it_the_defaults(self):
        config = recipes.configure(
            DistillConfig,
            recipe="ablation_teacher_temperature_0.1",
            epochs=1,
            precision="float32",
        )
        self.assertEqual(config.student, "resnet18")  # not the default
        self.assertEqual(config.teacher_temperature, 0.1)
        self.assertEqual((config.epochs, config.precision), (1, "float32"))
        self.assertEqual(recipes.configure(DistillConfig), DistillConfig())
        self.assertEqual(recipes.configure(DistillConfig, config), config)

    def test_a_recipe_of_the_other_command(self):
        with self.assertRaisesRegex(
            ValueError,
            "of distill.*'mocov2_resnet18', which pretrain",
        ):
            recipes.configure(DistillConfig, recipe="mocov2_resnet18")

    def test_an_unknown_setting(self):
        with self.assertRaisesRegex(TypeError, "no argument 'epoch'"):
            recipes.configure(DistillConfig, epoch=1)

    def test_table(self):
        printed = recipes.table()
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


if __name__ == "__main__":
    absltest.main()
