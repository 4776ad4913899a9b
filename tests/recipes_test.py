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
from run_helpers import import_launcher, tiny_teacher

import seed_tf
from seed_tf import recipes
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
        for name in recipes.names():
            recipe = recipes.get(name)
            shared = {
                "image_size": 224,
                "batch_size": 256,
                "warmup_epochs": 5,
                "precision": "mixed_float16",
                "temperature": 0.2,
            }
            for setting, value in shared.items():
                self.assertEqual(getattr(recipe, setting), value, name)
            small = name.endswith("small_patches")
            self.assertEqual(recipe.epochs, 800 if small else 200)
            self.assertEqual(recipe.views == "swav_small_patches", small)
            if not name.startswith("ablation"):
                self.assertEqual(recipe.queue_size, 65536)
                self.assertEqual(recipe.teacher_temperature, 0.01)
                self.assertEqual(recipe.objective, "similarity_distillation")
                self.assertEqual(recipe.learning_rate, 0.03)
                self.assertEqual(recipe.weight_decay, 1e-4)
            self.assertEqual(
                recipe.probe,
                recipes.Probe(
                    30 if recipe.student.startswith("resnet") else 3,
                    *(256, 100, (60, 80)),
                ),
            )
            teacher = recipe.teacher
            if teacher and not name.startswith("ablation_teacher_m"):
                expected = {
                    "resnet50": 67.4,
                    "resnet152": 74.1,
                    "resnet50w2": 77.3,
                }
                if teacher.method != "simclr" and name.startswith("seed"):
                    self.assertEqual(
                        teacher.top1, expected.get(teacher.architecture)
                    )
        # What no recipe names.
        self.assertEqual(seed_tf.training.SGD(0.1).momentum, 0.9)
        self.assertEqual(recipe.momentum, 0.999)

    def test_ablations_differ_from_one_another_in_one_thing(self):
        base = recipes.get("ablation_teacher_temperature_0.01")
        of_kind = {
            "teacher_temperature": {1e-4, 0.001, 0.01, 0.03, 0.1, 0.3},
            "queue": {256, 1024, 4096, 16384, 65536},
            "objective": set(recipes.OBJECTIVES),
            "learning_rate": {0.01, 0.03, 0.1, 0.3},
            "weight_decay": {1e-5, 1e-4, 1e-3},
        }
        fields = {"queue": "queue_size"}
        for kind, values in of_kind.items():
            field, found = fields.get(kind, kind), set()
            prefix = f"ablation_{kind}_"
            for name in recipes.names():
                if name.startswith(prefix):
                    recipe = recipes.get(name)
                    value = getattr(recipe, field)
                    found.add(value)
                    self.assertEqual(type(value)(name[len(prefix) :]), value)
                    self.assertEqual(
                        dataclasses.replace(base, **{field: value}), recipe
                    )
            self.assertEqual(found, values)
        views = {
            name: recipes.get(f"ablation_teacher_{name}").views
            for name in ("mocov1", "simclr", "mocov2", "swav", "supervised")
        }
        self.assertEqual(
            views,
            {
                "mocov1": "moco_v1",
                "simclr": "simclr",
                "mocov2": "moco_v2",
                "swav": "swav",
                "supervised": "moco_v2",
            },
        )

    def test_all_that_recipes_name_exists(self):
        for name in recipes.names():
            recipe = recipes.get(name)
            self.assertIn(recipe.student, backbones.BACKBONES)
            self.assertIn(recipe.views, recipes.VIEWS)
            self.assertIn(recipe.objective, recipes.OBJECTIVES)
            if recipe.teacher:
                self.assertIn(recipe.teacher.architecture, backbones.BACKBONES)
                self.assertIn(recipe.teacher.method, LAYOUTS)

    def test_rows_that_are_no_recipes_name_what_exists(self):
        text = " ".join(recipes.ELSEWHERE.values())
        for launcher in re.findall(r"experiments\.(\w+)", text):
            self.assertTrue(os.path.exists(f"{ROOT}/experiments/{launcher}.py"))
        named = re.findall(r"--protocol=(\w+)", text)
        self.assertEqual(named, ["fine_tune", "transfer"])
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
    """Backbones of each name, with fewer channels and blocks."""
    networks = {}
    for name, build in backbones.BACKBONES.items():
        if name.startswith("resnet"):
            width = build.keywords.get("width", 64) // 16
            build = functools.partial(build, depths=(1, 0, 0, 0), width=width)
        networks[name] = build
    return networks


@functools.cache
def teacher_of(expected):
    head = {
        "torchvision": {"head": None},
        "moco_v1": {"head": "linear"},
        "moco_v2": {},
    }.get(expected.method, {"head_batch_norm": True})
    return seed_tf.Encoder(expected.architecture, **head)


@functools.cache
def backbone(name, stem):
    """Trained a little further by each test that it is in."""
    return seed_tf.backbone(name, stem=stem)


# One for each student, kind of views, objective and teacher.
BUILT = (
    "mocov2_mobilenet_v3_large",
    "seed_resnet34_from_resnet152_mocov2",
    "seed_efficientnet_b1_from_resnet50_mocov2",
    "seed_efficientnet_b0_from_resnet50w2_swav_small_patches",
    "seed_resnet50_from_resnet50w4_swav_small_patches",
    "seed_resnet18_from_resnet50_mocov2_wide_head",
    "ablation_objective_l2",
    *(x for x in recipes.names() if x.endswith(("contrastive", "clustering"))),
    "ablation_views_different",
    *(f"ablation_teacher_{x}" for x in ("mocov1", "swav", "supervised")),
)


class TrainsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        keras.utils.set_random_seed(0)
        self.enter_context(mock.patch.dict(backbones.BACKBONES, small()))
        for module, blocks, chosen in (
            (efficientnet, "_STAGES", (2,)),
            (mobilenet_v3, "_BLOCKS", (3, 6)),
        ):
            fewer = [getattr(module, blocks)[i] for i in chosen]
            self.enter_context(mock.patch.object(module, blocks, fewer))

    @parameterized.parameters(*BUILT)
    def test_two_steps(self, name):
        named = recipes.get(name)
        recipe = dataclasses.replace(named, image_size=16, queue_size=16)
        teacher = recipe.teacher and teacher_of(recipe.teacher)
        if teacher:
            self.assertIsNone(recipes.difference(teacher, recipe.teacher))
        with mock.patch.object(recipes, "backbone", backbone):
            model = recipes.build(recipe, teacher)
        encoder = model.student if teacher else model.encoder
        if not teacher:
            model.shuffle_groups = 2  # eight take long, one by one
        self.assertEqual(encoder.backbone.name, recipe.student)
        if recipe.hidden_dim:
            self.assertEqual(encoder.head.layers[0].units, recipe.hidden_dim)
        if teacher:
            self.assertIs(model.teacher, teacher)
            self.assertEqual(
                model.same_view, name != "ablation_views_different"
            )
            self.assertEqual(
                model.teacher_temperature, named.teacher_temperature
            )
            self.assertEqual(model.student_temperature, 0.2)
            self.assertEqual(
                getattr(model.objective, "__name__", "similarity_distillation"),
                named.objective,
            )
        images = np.random.default_rng(0).integers(
            0, 256, (8, 18, 18, 3), dtype=np.uint8
        )
        before = encoder.backbone.get_weights()[0].copy()
        model.compile(seed_tf.training.SGD(0.03), run_eagerly=True)
        model.fit(images, batch_size=4, verbose=0)
        self.assertEqual(model.step.numpy(), 2)
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


class LauncherTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.launcher = import_launcher("experiments.distill")
        self.enter_context(mock.patch.object(sys, "argv", ["distill.py"]))

    def main(self, *arguments):
        """What experiments.distill prints; it runs in this process."""
        printed = io.StringIO()
        with flagsaver.flagsaver(), contextlib.redirect_stdout(printed):
            self.launcher.FLAGS(["distill.py", *arguments])
            with contextlib.suppress(SystemExit):
                self.launcher.main([])
        return printed.getvalue()

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
