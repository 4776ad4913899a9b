"""Exported files against the Keras model, and the embedding budget."""

import contextlib
import json
import os
import sys
from unittest import mock

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from absl.testing import absltest, flagsaver, parameterized
from ai_edge_litert.interpreter import Interpreter
from helpers.runs import imported_benchmark
from PIL import Image

import seed_tf
from seed_tf.export import checking
from seed_tf.export.litert import PRECISIONS, litert, load
from seed_tf.export.onnx import onnx
from seed_tf.export.outputs import Outputs

SIZE = 16


_BENCHMARK = contextlib.ExitStack()


def setUpModule():
    global formats
    benchmark = imported_benchmark("benchmarks.formats")
    formats = _BENCHMARK.enter_context(benchmark)
    keras.utils.set_random_seed(0)


def tearDownModule():
    _BENCHMARK.close()


def convnet():
    """Squeeze and excitation, hard swish, BatchNorm: what is hard in int8."""
    layers = keras.layers
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 3, 2, use_bias=False)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("hard_silu")(x)
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(8, 1, activation="hard_sigmoid")(y)
    x = layers.Multiply()([x, y])
    x = layers.DepthwiseConv2D(3)(x)
    x = layers.Conv2D(12, 1, activation="relu")(x)
    return keras.Model(inputs, x)


def encoder(**kwargs):
    return seed_tf.Encoder(convnet(), embedding_dim=6, **kwargs)


def pictures(count, seed=0):
    """Coloured gradients, uint8: smooth, and each different."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 255, (count, 2, 2, 3)).astype("float32")
    return tf.cast(tf.image.resize(corners, [SIZE, SIZE]), tf.uint8).numpy()


def cosines(a, b):
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.sum(a * b, axis=1) / lengths


class OutputsTest(parameterized.TestCase):
    @parameterized.parameters("mlp", "linear", None)
    def test_encoder(self, head):
        kwargs = {} if head is None else {"embedding_dim": 6}
        model = seed_tf.Encoder(convnet(), head=head, **kwargs)
        images = pictures(5)
        outputs = Outputs(model)(images)
        features = model.features(images).numpy()
        embedding = model(images).numpy()
        embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
        self.assertEqual(set(outputs), {"embedding", "features"})
        np.testing.assert_allclose(outputs["features"], features, atol=1e-6)
        np.testing.assert_allclose(outputs["embedding"], embedding, atol=1e-6)

    def test_any_model(self):
        inputs = keras.Input((SIZE, SIZE, 3))
        flat = keras.layers.GlobalAveragePooling2D()(inputs)
        images = pictures(3)
        images[0] = 0  # has no direction
        outputs = Outputs(keras.Model(inputs, flat))(images)
        mean = images.mean((1, 2))
        np.testing.assert_allclose(outputs["features"], mean, rtol=1e-5)
        lengths = np.linalg.norm(outputs["embedding"], axis=1)
        np.testing.assert_allclose(lengths, [0, 1, 1], atol=1e-6)

    def test_inference_mode_only(self):
        model = Outputs(encoder(head_batch_norm=True))
        images = pictures(4)
        alone = [model(images[i : i + 1])["embedding"] for i in range(4)]
        together = model(images, training=True)["embedding"]
        np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-6)

    def test_saved_and_loaded(self):
        model, images = Outputs(encoder()), pictures(2)
        path = os.path.join(self.create_tempdir().full_path, "o.keras")
        model.save(path)
        loaded = keras.models.load_model(path)(images)
        for name, value in model(images).items():
            np.testing.assert_array_equal(loaded[name], value)

    def test_errors(self):
        with self.assertRaisesRegex(ValueError, "must be a seed_tf.Encoder"):
            Outputs("resnet18")
        with self.assertRaisesRegex(ValueError, "give embedding .*pools"):
            Outputs(convnet())(pictures(1))
        with self.assertRaisesRegex(ValueError, r"RGB images \[B, H, W, 3\]"):
            Outputs(encoder())(pictures(1)[..., :1])


class FilesTest(parameterized.TestCase):
    """Each format once; many claims about it."""

    @parameterized.parameters(*PRECISIONS, "onnx")
    @pytest.mark.slow
    def test_agrees_with_keras(self, precision):
        keras.utils.set_random_seed(1)  # few features are always zero
        model, images = encoder(), pictures(80)
        folder = self.create_tempdir().full_path
        # The folder is made.
        path = os.path.join(folder, "new", f"{precision}.tflite")
        labelled = (
            (pictures(30, 1), np.arange(30) % 3),
            (pictures(20, 2), np.arange(20) % 3),
        )
        options = {"images": images, "labelled": labelled}
        if precision == "onnx":
            path = path.replace(".tflite", ".onnx")
            result = onnx(model, path, **options)
            run = self.onnx_runtime(path)
        else:
            options["batch_size"] = None
            result = litert(model, path, precision=precision, **options)
            run = self.litert_runtime(path)
        others = pictures(9, 3)
        embedding, features = run(others)
        wanted = model(others).numpy()
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        pooled = model.features(others).numpy()
        # Far below what any wrong preprocessing would do.
        tolerance = {"float16": 4e-3, "int8_dynamic": 0.05, "int8": 0.1}
        tolerance = tolerance.get(precision, 1e-5)
        scale = np.sqrt(np.mean(pooled**2))
        self.assertLess(np.abs(embedding - wanted).max(), tolerance)
        self.assertLess(np.abs(features - pooled).max(), 2 * tolerance * scale)
        # Length 1 is float32 in every precision.
        np.testing.assert_allclose(
            np.linalg.norm(embedding, axis=1), 1, atol=1e-5
        )
        # Any batch; and an image's embedding is its own.
        for i in range(9):
            one, _ = run(others[i : i + 1])
            np.testing.assert_allclose(one[0], embedding[i], atol=1e-5)
        self.check_result(result, run, model, images, precision)
        self.check_knn(result, run, model, labelled)
        self.assertEqual(
            sorted(os.listdir(os.path.dirname(path))),
            [os.path.basename(path), os.path.basename(path) + ".json"],
        )
        with open(f"{path}.json") as file:
            self.assertEqual(
                json.load(file), json.loads(json.dumps(vars(result)))
            )

    def check_result(self, result, run, model, images, precision):
        compared = images[::2] if precision == "int8" else images
        self.assertEqual(
            (result.images, result.image_size), (len(compared), SIZE)
        )
        self.assertEqual(result.bytes, os.path.getsize(result.path))
        given = dict(zip(("embedding", "features"), run(compared), strict=True))
        wanted = {"embedding": model(compared).numpy()}
        wanted["embedding"] /= np.linalg.norm(
            wanted["embedding"], axis=1, keepdims=True
        )
        wanted["features"] = model.features(compared).numpy()
        for name, rows in wanted.items():
            cosine = cosines(given[name].astype(float), rows.astype(float))
            self.assertAlmostEqual(result.least_cosine[name], cosine.min(), 5)
            self.assertAlmostEqual(result.mean_cosine[name], cosine.mean(), 5)
        difference = np.abs(given["embedding"] - wanted["embedding"]).max()
        self.assertAlmostEqual(
            result.largest_difference["embedding"], difference, 5
        )
        rms = np.sqrt(np.mean(wanted["features"] ** 2))
        difference = np.abs(given["features"] - wanted["features"]).max() / rms
        self.assertAlmostEqual(
            result.largest_difference["features"], difference, 4
        )
        self.assertIn(f"{precision.replace('onnx', 'float32')}", str(result))
        self.assertIn(f"on {len(compared)} images", str(result))

    def check_knn(self, result, run, model, labelled):
        (bank, labels), (queries, truth) = labelled
        bank = {"keras": model.features(bank).numpy(), "file": run(bank)[1]}
        queries = {
            "keras": model.features(queries).numpy(),
            "file": run(queries)[1],
        }

        def top1(a, b):
            return seed_tf.evaluation.knn(
                (bank[a], labels), (queries[b], truth)
            )

        self.assertEqual(
            result.knn,
            {
                "keras": top1("keras", "keras"),
                "exported": top1("file", "file"),
                "mixed": top1("keras", "file"),
            },
        )
        self.assertIn(
            f"exported {100 * result.knn['exported']:.1f}", str(result)
        )

    def litert_runtime(self, path):
        interpreter = Interpreter(path)
        self.assertEqual(
            interpreter.get_signature_list(),
            {
                "serving_default": {
                    "inputs": ["images"],
                    "outputs": ["embedding", "features"],
                }
            },
        )
        (image,) = interpreter.get_input_details()
        self.assertEqual(image["dtype"], np.uint8)
        self.assertEqual(
            {d["dtype"] for d in interpreter.get_output_details()}, {np.float32}
        )
        runner = interpreter.get_signature_runner()
        return lambda images: (
            runner(images=images)["embedding"],
            runner(images=images)["features"],
        )

    def onnx_runtime(self, path):
        session = onnxruntime.InferenceSession(path)
        (image,) = session.get_inputs()
        self.assertEqual((image.name, image.type), ("images", "tensor(uint8)"))
        self.assertEqual(image.shape[1:], [SIZE, SIZE, 3])
        return lambda images: session.run(
            ["embedding", "features"], {"images": images}
        )

    @pytest.mark.slow
    def test_sizes_fall_with_precision(self):
        # Wide enough that weights, not the graph, are what is stored.
        inputs = keras.Input((SIZE, SIZE, 3))
        x = keras.layers.Conv2D(256, 3, 4)(inputs)
        x = keras.layers.Conv2D(256, 3)(x)
        model = seed_tf.Encoder(keras.Model(inputs, x), embedding_dim=16)
        path = os.path.join(self.create_tempdir().full_path, "a.tflite")
        sizes = [
            litert(model, path, images=pictures(20), precision=p).bytes
            for p in ("float32", "float16", "int8_dynamic")
        ]
        self.assertBetween(sizes[1] / sizes[0], 0.49, 0.53)
        self.assertBetween(sizes[2] / sizes[0], 0.24, 0.3)

    def test_int8_computes_in_int8(self):
        path = os.path.join(self.create_tempdir().full_path, "a.tflite")
        kinds = {}
        for precision in ("int8", "int8_dynamic"):
            litert(encoder(), path, images=pictures(20), precision=precision)
            interpreter = Interpreter(
                path, experimental_preserve_all_tensors=True
            )
            tensors = {t["index"]: t for t in interpreter.get_tensor_details()}
            for op in interpreter._get_ops_details():
                kinds.setdefault((precision, op["op_name"]), set()).add(
                    tensors[op["outputs"][0]]["dtype"]
                )
        for name in ("CONV_2D", "DEPTHWISE_CONV_2D", "MUL", "MEAN"):
            self.assertEqual(kinds["int8", name], {np.int8}, name)
        for name in ("HARD_SWISH", "SUM", "DIV"):
            self.assertEqual(kinds["int8", name], {np.float32}, name)
        self.assertEqual(kinds["int8_dynamic", "CONV_2D"], {np.float32})

    @parameterized.parameters((1, False), (3, False), (1, True))
    def test_a_fixed_batch_and_inputs_in_int8(self, batch, int8):
        path = os.path.join(self.create_tempdir().full_path, "a.tflite")
        model, images = encoder(), pictures(5, 1)
        result = litert(
            model,
            path,
            images=pictures(40),
            precision="int8" if int8 else "float32",
            batch_size=batch,
            int8_inputs=int8,
        )
        self.assertEqual(result.images, 20 if int8 else 40)
        interpreter = Interpreter(path)
        (given,) = interpreter.get_input_details()
        self.assertEqual(list(given["shape_signature"]), [batch, 16, 16, 3])
        dtypes = {d["dtype"] for d in interpreter.get_output_details()}
        found = load(path)(images)
        wanted = Outputs(model)(images)
        tolerance = 0.1 if int8 else 1e-5
        for name, rows in wanted.items():
            largest = np.abs(rows).max()
            np.testing.assert_allclose(
                found[name], rows, atol=tolerance * largest
            )
        operations = {x["op_name"] for x in interpreter._get_ops_details()}
        self.assertNotIn("SHAPE", operations)
        if int8:
            self.assertEqual(given["dtype"], np.int8)
            self.assertEqual(dtypes, {np.int8})
            scale, zero = given["quantization"]
            self.assertAlmostEqual(scale, 1, 5)
            self.assertEqual(zero, -128)
            tensors = interpreter.get_tensor_details()
            kinds = {t["dtype"] for t in tensors}
            self.assertNotIn(np.float32, kinds)

    def test_from_a_dataset_with_labels(self):
        images = pictures(12)
        dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(12)))
        path = os.path.join(self.create_tempdir().full_path, "a.tflite")
        result = litert(
            encoder(),
            path,
            images=dataset.batch(5),
            labelled=(dataset.batch(5), dataset.batch(7)),
        )
        self.assertEqual(result.images, 12)
        # Each class has one image, and all twelve vote.
        self.assertAlmostEqual(result.knn["exported"], result.knn["keras"])

    @parameterized.parameters("mixed_bfloat16", "mixed_float16")
    @pytest.mark.slow
    def test_sixteen_bits_are_exported_in_float32(self, policy):
        before = keras.mixed_precision.dtype_policy()
        keras.mixed_precision.set_dtype_policy(policy)
        try:
            model = encoder()
        finally:
            keras.mixed_precision.set_dtype_policy(before)
        copy = seed_tf.acceleration.precision.in_float32(model)
        self.assertEqual(model.backbone.layers[1].compute_dtype, policy[6:])
        self.assertEqual(copy.backbone.layers[1].compute_dtype, "float32")
        path = os.path.join(self.create_tempdir().full_path, "a.tflite")
        result = litert(model, path, images=pictures(10))
        self.assertLess(result.largest_difference["embedding"], 1e-5)
        plain = encoder()
        plain.set_weights(model.get_weights())
        self.assertIs(seed_tf.acceleration.precision.in_float32(plain), plain)
        given = load(path)(pictures(3))
        np.testing.assert_allclose(
            given["features"], plain.features(pictures(3)), atol=1e-5
        )


class RefusalTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        self.path = os.path.join(self.folder, "a.tflite")

    def test_a_file_that_differs_is_removed(self):
        with open(self.path, "w") as file:
            file.write("the one before")
        limits = checking.Limits(difference=1e-9, cosine=0.9, agreement=0.0)
        with self.assertRaisesRegex(
            ValueError,
            r"not the Keras model: an embedding differs by [0-9.]\S*, "
            r"the limit is 1e-09\. Nothing was written to .*a\.tflite.*"
            r'precision="float32".*`limits`',
        ):
            litert(
                encoder(),
                self.path,
                images=pictures(8),
                precision="float16",
                limits=limits,
            )
        self.assertEqual(os.listdir(self.folder), ["a.tflite"])
        with open(self.path) as file:
            self.assertEqual(file.read(), "the one before")

    @parameterized.parameters(
        ({"cosine": 0.5}, "mean cosine is 0.500000, the limit is 0.9"),
        ({"agreement": 0.2}, "0.200 of an image's .* the limit is 0.5"),
        ({"difference": float("nan")}, "differs by nan"),
        ({"cosine": float("nan")}, "mean cosine is nan"),
    )
    def test_limits(self, changed, message):
        values = {"difference": 0.0, "cosine": 1.0, "agreement": 1.0} | changed
        result = checking.ParityReport(
            path="a.tflite",
            format="litert",
            precision="int8",
            bytes=1,
            image_size=SIZE,
            images=1,
            largest_difference={
                "embedding": values["difference"],
                "features": 0.0,
            },
            least_cosine={"embedding": 1.0, "features": 1.0},
            mean_cosine={"embedding": values["cosine"], "features": 1.0},
            agreement={"embedding": 1.0, "features": values["agreement"]},
        )
        with self.assertRaisesRegex(ValueError, message):
            result.refuse(checking.LIMITS["int8"])
        with self.assertRaisesRegex(ValueError, "int8_dynamic"):
            result.refuse(checking.LIMITS["int8"])

    def test_a_wrong_file_is_noticed(self):
        # Channels swapped, as a decoder of BGR would have it.
        images, model = pictures(40), Outputs(encoder())
        fields = checking.compare(model, lambda x: model(x[..., ::-1]), images)
        self.assertGreater(fields["largest_difference"]["embedding"], 0.01)
        self.assertLess(fields["agreement"]["features"], 0.9)
        damaged = checking.compare(
            model,
            lambda x: {k: v * np.nan for k, v in model(x).items()},
            images,
        )
        self.assertEqual(damaged["agreement"]["features"], 0)
        self.assertTrue(np.isnan(damaged["mean_cosine"]["embedding"]))

    def test_two_zero_vectors_are_equal(self):
        # Features behind a ReLU may all be zero.
        images, model = pictures(8), Outputs(encoder())
        black = {image.tobytes() for image in images[::2]}

        def partly_zero(batch):
            dark = [image.tobytes() in black for image in batch]
            return {
                name: np.where(np.array(dark)[:, None], 0.0, rows)
                for name, rows in model(batch).items()
            }

        fields = checking.compare(partly_zero, partly_zero, images)
        for cosine in fields["least_cosine"].values():
            self.assertAlmostEqual(cosine, 1, places=5)
        fields = checking.compare(model, partly_zero, images)
        self.assertEqual(list(fields["least_cosine"].values()), [0, 0])

    def test_interrupted(self):
        with (
            mock.patch.object(
                checking, "compare", side_effect=KeyboardInterrupt
            ),
            self.assertRaises(KeyboardInterrupt),
        ):
            litert(encoder(), self.path, images=pictures(4))
        self.assertEmpty(os.listdir(self.folder))

    @parameterized.named_parameters(
        ("ending", {"path": "a.onnx"}, r"`path` must end in '\.tflite'"),
        ("precision", {"precision": "int4"}, "one of float32, .*'int4'"),
        ("none", {"images": "none"}, "at least 1: .*Received: 0"),
        (
            "one_for_int8",
            {"images": "one", "precision": "int8"},
            "at least 2: .*calibrated on the other. Received: 1",
        ),
        ("dtype", {"images": "float"}, "must be uint8 .*Received: float32"),
        ("size", {"image_size": 32}, r"\[N, 32, 32, 3\].*\(3, 16, 16, 3\)"),
        ("trained", {"trained_at": 24}, r"\[N, 24, 24, 3\].*\(3, 16, 16, 3\)"),
        ("grey", {"images": "grey"}, r"RGB images \[B, H, W, 3\]"),
        ("labelled", {"labelled": [1]}, r"pair \(train, test\)"),
    )
    def test_arguments(self, changed, message):
        images = {
            "one": pictures(1),
            "float": pictures(3).astype("float32"),
            "grey": pictures(3)[..., :1],
            "none": pictures(1)[:0],
        }
        options = {"path": self.path, "images": pictures(3)} | changed
        model = encoder()
        model.image_size = options.pop("trained_at", None)
        if isinstance(options["images"], str):
            options["images"] = images[options["images"]]
        with self.assertRaisesRegex(ValueError, message):
            litert(model, **options)
        self.assertEmpty(os.listdir(self.folder))

    def test_missing_packages(self):
        for exporter, path, package, extra in (
            (litert, "a.tflite", "ai_edge_litert", "litert"),
            (onnx, "a.onnx", "onnxruntime", "onnx"),
            (onnx, "a.onnx", "tf2onnx", "onnx"),
        ):
            with (
                mock.patch.dict(sys.modules, {package: None}),
                self.assertRaisesRegex(
                    ValueError, rf"pip install 'seed_tf\[{extra}\]'"
                ),
            ):
                exporter(
                    encoder(),
                    os.path.join(self.folder, path),
                    images=pictures(4),
                )
        self.assertEmpty(os.listdir(self.folder))

    def test_at_most_256_spread_over_all(self):
        images = np.zeros((1000, 2, 2, 3), np.uint8)
        images[:, 0, 0, 0] = np.arange(1000) // 4
        first, second = checking.some(images, parts=2)
        self.assertEqual((len(first), len(second)), (256, 256))
        both = np.stack([first, second], 1)[..., 0, 0, 0].flatten()
        np.testing.assert_array_equal(np.sort(both), both)
        self.assertLess(np.diff(both.astype(int)).max(), 2)
        endless = tf.data.Dataset.from_tensors(images[:300]).repeat()
        (found,) = checking.some(endless)
        self.assertLen(found, 256)


class EmbeddingBudgetTest(parameterized.TestCase):
    """What the benchmark does to embeddings, against NumPy."""

    def rows(self, count, width, seed=0):
        rng = np.random.default_rng(seed)
        # A direction in common and unequal spreads, as embeddings have.
        rows = 1 + rng.standard_normal((count, width)) / np.arange(1, width + 1)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def test_principal_components(self):
        bank, queries = self.rows(60, 8), self.rows(20, 8, 1)
        short_bank, short = formats.shorter(bank, queries, 3, "PCA")
        mean = bank.mean(0)
        values, vectors = np.linalg.eigh(np.cov(bank.T))
        axes = vectors[:, np.argsort(-values)[:3]]
        for given, rows in ((short_bank, bank), (short, queries)):
            expected = (rows - mean) @ axes
            signs = np.sign(np.sum(given * expected, axis=0))
            np.testing.assert_allclose(given, signs * expected, atol=1e-8)
        self.assertFalse(np.allclose(short, (queries - queries.mean(0)) @ axes))

    def test_cut(self):
        bank, queries = self.rows(5, 8), self.rows(4, 8)
        for given, rows in zip(
            formats.shorter(bank, queries, 3, "cut"),
            (bank, queries),
            strict=True,
        ):
            np.testing.assert_array_equal(given, rows[:, :3])

    def test_float32(self):
        bank, queries = 7 * self.rows(9, 6), 2 * self.rows(4, 6, 1)
        given = formats.similarities_float32(bank, queries)
        for (q, n), value in np.ndenumerate(given):
            self.assertAlmostEqual(
                value, cosines(queries[q : q + 1], bank[n : n + 1])[0]
            )

    def test_int8(self):
        bank, queries = 0.3 * self.rows(9, 6), 4 * self.rows(4, 6, 1)
        stored = formats.as_int8(bank)
        self.assertEqual(stored.dtype, np.int8)
        np.testing.assert_array_equal(np.abs(stored).max(1), [127] * 9)
        given = formats.similarities_int8(bank, queries)
        for (q, n), value in np.ndenumerate(given):
            pair = [
                [round(127 * x / max(map(abs, row))) for x in row]
                for row in (queries[q].tolist(), bank[n].tolist())
            ]
            a, b = np.array(pair, float)
            self.assertAlmostEqual(value, cosines(a[None], b[None])[0])
        # A row of zeros is like nothing.
        np.testing.assert_array_equal(
            formats.similarities_int8(np.zeros((2, 6)), queries), 0
        )

    @parameterized.parameters(5, 8, 17)
    def test_hamming(self, width):
        bank, queries = self.rows(9, width) - 0.3, self.rows(4, width, 1) - 0.3
        given = formats.similarities_binary(bank, queries)
        for (q, n), value in np.ndenumerate(given):
            differing = [
                (a > 0) != (b > 0)
                for a, b in zip(queries[q], bank[n], strict=True)
            ]
            self.assertEqual(value, -sum(differing))

    def test_hits_are_the_library_s_knn(self):
        bank, queries = self.rows(80, 6), self.rows(40, 6, 1)
        labels, truth = np.arange(80) % 4, np.arange(40) % 4
        similarities = formats.similarities_float32(bank, queries)
        for k in (1, 4, 10):
            self.assertAlmostEqual(
                formats.hits(similarities, labels, truth, k).mean(),
                seed_tf.evaluation.knn((bank, labels), (queries, truth), k=k),
            )

    def test_drift(self):
        rng = np.random.default_rng(0)
        bank, queries = self.rows(60, 6), self.rows(50, 6, 1)
        other = [
            x + 0.2 * rng.standard_normal(x.shape) for x in (bank, queries)
        ]
        labels = np.arange(60) % 3, np.arange(50) % 3
        keras_, other_ = (
            [{"embedding": 2 * x, "features": x} for x in pair]
            for pair in ((bank, queries), other)
        )
        with flagsaver.flagsaver(k=5):
            row = formats.drift(other_, keras_, labels)

        def knn(bank, queries):
            return 100 * seed_tf.evaluation.knn(
                (bank, labels[0]), (queries, labels[1]), k=5
            )

        before = knn(bank, queries)
        self.assertAlmostEqual(row["k-NN"], knn(*other))
        self.assertAlmostEqual(row["lost"][0], before - knn(*other))
        mixed = knn(bank, other[1])
        self.assertAlmostEqual(row["lost, mixed"][0], before - mixed)
        self.assertBetween(row["lost"][1], 1, 100 / np.sqrt(50))
        cosine = cosines(*map(np.concatenate, (other, (bank, queries))))
        self.assertAlmostEqual(row["cosine"], cosine.mean())
        self.assertAlmostEqual(row["least cosine"], cosine.min())
        self.assertBetween(row["shared"], 10, 90)
        same = formats.drift(keras_, keras_, labels)
        self.assertEqual((same["shared"], same["lost"]), (100, [0, 0]))

    def test_rows(self):
        outputs = [
            {
                "embedding": self.rows(count, 16, seed),
                "features": self.rows(count, 20, seed),
            }
            for count, seed in ((60, 0), (30, 1))
        ]
        labels = [np.arange(60) % 3, np.arange(30) % 3]
        rows = formats.embedding_budget(outputs, labels, [4, 16, 99], 5)
        cases = [(r["output"], r["by"], r["dims"]) for r in rows[::3]]
        self.assertEqual(
            cases,
            [
                ("embedding", "PCA", 4),
                ("embedding", "cut", 4),
                ("embedding", "PCA", 16),
                ("embedding", "", 16),
                ("features", "PCA", 4),
                ("features", "cut", 4),
                ("features", "PCA", 16),
                ("features", "cut", 16),
                ("features", "", 20),
            ],
        )
        self.assertEqual([r["bytes"] for r in rows[:3]], [16, 4, 1])
        self.assertEqual([r["bytes"] for r in rows[-3:]], [80, 20, 3])
        text = formats.budget_table(rows, "text")
        self.assertIn("embedding, PCA to 4", text)
        self.assertIn("features, all 20", text)


@pytest.mark.slow
class BenchmarkTest(parameterized.TestCase):
    def test_images(self):
        first, again = formats.crops(4, 20), formats.crops(4, 20)
        np.testing.assert_array_equal(first, again)
        self.assertEqual((first.shape, first.dtype), ((4, 20, 20, 3), np.uint8))
        self.assertGreater(first.std(axis=(1, 2)).min(), 5)

    def test_verdict(self):
        row = {"a": [5.0, 9.0], "MB": 3.0, "cosine": 0.5, "lost": [1.5, 0.2]}
        with flagsaver.flagsaver(
            budget_ms=4.0, budget_mb=2.0, budget_cosine=0.9, budget_knn=1.0
        ):
            self.assertEqual(
                formats.verdict(row, "a", True),
                "fail: ms, MB, cosine, k-NN",
            )
            self.assertEqual(
                formats.verdict(row, "a", False),
                "fail: ms, MB",
            )
        row["lost"] = [1.5, 0.3]  # so many queries do not prove more than 1
        with flagsaver.flagsaver(budget_cosine=0.4, budget_knn=1.0):
            self.assertEqual(formats.verdict(row, "a", True), "pass")

    @pytest.mark.slow
    def test_from_end_to_end(self):
        folder = self.create_tempdir().full_path
        run = os.path.join(folder, "student.keras")
        encoder().save(run)
        rng = np.random.default_rng(0)
        for split, count in (("train", 12), ("test", 6)):
            for label in range(2):
                place = os.path.join(folder, "data", split, str(label))
                os.makedirs(place)
                for i in range(count):
                    pixels = rng.integers(0, 90, (SIZE, SIZE, 3)) + 120 * label
                    Image.fromarray(pixels.astype(np.uint8)).save(
                        os.path.join(place, f"{i}.png")
                    )
        output = os.path.join(folder, "output")
        # All of them take as long as the rest of this file.
        names = ("Keras", "LiteRT int8")
        some = {name: formats.FORMATS[name] for name in names}
        with (
            mock.patch.object(formats, "FORMATS", some),
            flagsaver.flagsaver(
                run=run,
                data_dir=os.path.join(folder, "data"),
                image_size=SIZE,
                dims=["2", "4"],
                threads=["1"],
                batch=["1", "3"],
                rounds=2,
                k=3,
                output=output,
            ),
        ):
            formats.main([])
        with open(os.path.join(output, "formats.json")) as file:
            results = json.load(file)
        rows = {row["format"]: row for row in results["formats"]}
        self.assertEqual(tuple(rows), names)
        for row in rows.values():
            for case in ("batch 1, 1 thread", "batch 3, 1 thread"):
                median, p95 = row[case]
                self.assertBetween(median, 1e-3, p95)
            self.assertGreater(row["cosine"], 0.9)
            # Dark and bright are told apart by any encoder.
            self.assertEqual(row["k-NN"], 100)
            self.assertEqual(row["lost"], [0, 0])
            self.assertEqual(row["lost, mixed"], [0, 0])
        self.assertEqual(rows["Keras"]["budget"], "pass")
        self.assertAlmostEqual(rows["Keras"]["cosine"], 1, 6)
        self.assertLen(results["embeddings"], 2 * (2 * 2 + 1) * 3)
        with open(os.path.join(output, "formats.md")) as file:
            text = file.read()
        for word in ("LiteRT int8", "batch 3, 1 thread", "embedding, PCA to 2"):
            self.assertIn(word, text)
        with Image.open(os.path.join(output, "formats.png")) as picture:
            self.assertGreater(np.asarray(picture.convert("L")).std(), 5)


if __name__ == "__main__":
    absltest.main()
