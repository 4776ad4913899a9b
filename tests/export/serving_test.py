"""SavedModels as TensorFlow Serving meets them: its protocol, its tools."""

import os
import pathlib
import subprocess
import sys

import grpc
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from helpers.exports import (
    encoded,
    picture,
    png_header,
    temporary_folder,
    tiny_encoder,
    translucent,
    write_index,
)
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from seed_tf.datasets.decoding import EncodedImage
from seed_tf.export import saved_model
from seed_tf.export.outputs import Outputs
from seed_tf.export.warm_up import write_warm_up

SIZE, RESIZE = 64, 73
SERVER = (
    pathlib.Path(__file__).resolve().parents[1] / "helpers/serving_server.py"
)


def evaluated(file):
    return EncodedImage(file).square(SIZE, RESIZE)


@pytest.mark.slow
class ServingTest(parameterized.TestCase):
    """One server in its own process, asked by gRPC."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = cls.enterClassContext(temporary_folder())
        encoder = tiny_encoder()
        cls.outputs = Outputs(encoder)
        index = os.path.join(folder, "index")
        write_index(index, encoder, 20, SIZE)
        model = os.path.join(folder, "birds")
        cls.path = saved_model(
            encoder, model, image_size=SIZE, index=index
        ).path
        # Neither is a version.
        os.makedirs(os.path.join(model, ".unfinished"))
        os.makedirs(os.path.join(model, "notes"))
        # Nothing of this checkout can be imported there.
        cls.server = subprocess.Popen(
            [sys.executable, str(SERVER), model],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": ""},
        )
        cls.addClassCleanup(cls.server.wait)
        cls.addClassCleanup(cls.server.terminate)
        cls.addClassCleanup(cls.server.stdout.close)
        port, cls.warmed_up, cls.unwanted = (
            cls.server.stdout.readline().strip("\n").split(" ")
        )
        cls.channel = cls.enterClassContext(
            grpc.insecure_channel(
                f"localhost:{port}",
                [
                    ("grpc.max_send_message_length", -1),
                    ("grpc.max_receive_message_length", -1),
                ],
            )
        )
        cls.stub = prediction_service_pb2_grpc.PredictionServiceStub(
            cls.channel
        )
        cls.files = [encoded(picture(seed=i), "JPEG") for i in range(40)]

    def ask(self, images, signature="serve_bytes", name="images"):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "birds"
        request.model_spec.signature_name = signature
        request.inputs[name].CopyFrom(tf.make_tensor_proto(images))
        response = self.stub.Predict(request, timeout=120)
        return {
            name: tf.make_ndarray(value)
            for name, value in response.outputs.items()
        }

    def expected(self, files):
        squares = np.stack([evaluated(file) for file in files])
        return self.outputs.predict_on_batch(squares)

    def refused(self, message, *args, **kwargs):
        """Checks that a request is refused and the next one is answered."""
        with self.assertRaises(grpc.RpcError) as caught:
            self.ask(*args, **kwargs)
        error = caught.exception
        self.assertEqual(error.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertRegex(error.details(), message)
        self.ask(self.files[:1])

    def test_server_has_tensorflow_alone_and_was_warmed_up(self):
        self.assertEqual(self.unwanted, "")
        self.assertEqual(self.warmed_up, "serving_default,serve_bytes,nearest")

    def test_files(self):
        result = self.ask(self.files)
        for name, value in self.expected(self.files).items():
            np.testing.assert_allclose(result[name], value, atol=1e-6)

    def test_pixels(self):
        pixels = np.stack([evaluated(file) for file in self.files[:5]])
        result = self.ask(pixels, "serving_default")
        for name, value in self.expected(self.files[:5]).items():
            np.testing.assert_allclose(result[name], value, atol=1e-6)

    def test_neighbours(self):
        result = self.ask(self.files[:2], "nearest")
        self.assertEqual(result["ids"].shape, (2, 10))
        self.assertRegex(result["ids"][0, 0].decode(), r"bird \d+\.jpg")

    def test_unusual_images_are_answered(self):
        files = [
            encoded(picture().convert("L"), "JPEG"),
            encoded(picture().convert("CMYK"), "JPEG"),
            encoded(translucent(), "PNG"),
            encoded(picture(1, 1), "PNG"),
        ]
        result = self.ask(files)
        np.testing.assert_allclose(
            result["embedding"], self.expected(files)["embedding"], atol=1e-6
        )

    @parameterized.parameters(
        (b"no image", "not a JPEG, PNG or WebP image"),
        (b"", "empty"),
        (encoded(picture(), "JPEG")[:-50], "damaged or truncated"),
        (png_header(20_000, 20_000), "announces 20000 x 20000 pixels"),
    )
    def test_a_bad_file_is_named_by_its_position(self, bad, problem):
        files = [*self.files[:34], bad, *self.files[:2]]
        self.refused(f"image 34: .*{problem}", files)

    def test_wrong_dtypes_and_ranks(self):
        pixels = np.zeros([1, SIZE, SIZE, 3], np.uint8)
        self.refused(r"\w", pixels.astype("float32"), "serving_default")
        self.refused(r"\w", pixels[0], "serving_default")
        self.refused(r"\w", pixels[..., :1], "serving_default")
        self.refused(r"\w", pixels[:, :0], "serving_default")
        self.refused(r"\w", pixels)
        self.refused(r"\w", [self.files[:1]])
        self.refused(r"\w", self.files[0])
        self.refused(r"\w", self.files[:1], name="bytes")
        self.refused(r"\w", self.files[:1], "regress")

    def test_empty_batch(self):
        result = self.ask(np.zeros([0], object))
        self.assertEqual(result["embedding"].shape, (0, 6))

    def test_5000_files_at_once_take_no_memory(self):
        before = self.peak_memory()
        # As squares they would take 245 MB in float32.
        large = encoded(picture(300, 300), "PNG")
        result = self.ask([self.files[0]] * 4_999 + [large])
        self.assertLen(result["features"], 5_000)
        self.assertLess(self.peak_memory() - before, 120e6)
        np.testing.assert_allclose(
            result["embedding"][::4_999],
            self.expected([self.files[0], large])["embedding"],
            atol=1e-6,
        )

    def peak_memory(self):
        """Bytes that the server has held at most."""
        status = pathlib.Path(f"/proc/{self.server.pid}/status").read_text()
        return 1e3 * int(status.split("VmHWM:")[1].split()[0])

    def test_warm_up_file_is_tensorflow_servings(self):
        folder = self.create_tempdir().full_path
        long = "x" * 300
        write_warm_up(folder, [("a", {long: ["file"]}), ("b", {"y": [[1.5]]})])
        path = os.path.join(
            folder, "assets.extra", "tf_serving_warmup_requests"
        )
        first, second = (
            prediction_log_pb2.PredictionLog.FromString(record)
            for record in tf.data.TFRecordDataset(path).as_numpy_iterator()
        )
        expected = prediction_log_pb2.PredictionLog()
        request = expected.predict_log.request
        request.model_spec.signature_name = "a"
        request.inputs[long].CopyFrom(tf.make_tensor_proto(["file"]))
        self.assertEqual(first, expected)
        request = second.predict_log.request
        self.assertEqual(request.model_spec.signature_name, "b")
        self.assertEqual(tf.make_ndarray(request.inputs["y"]), 1.5)

    def test_saved_model_cli(self):
        shown = self.cli("show", "--tag_set=serve", "--signature_def=nearest")
        self.assertRegex(
            shown,
            r"inputs\['images'\][^:]*:\s+dtype: DT_STRING\s+shape: \(-1\)",
        )
        self.assertRegex(shown, r"outputs\['ids'\]")
        folder = self.create_tempdir().full_path
        np.save(os.path.join(folder, "files.npy"), np.array(self.files[:2]))
        self.cli(
            "run",
            *("--tag_set=serve", "--signature_def=serve_bytes"),
            f"--inputs=images={folder}/files.npy",
            f"--outdir={folder}",
        )
        np.testing.assert_allclose(
            np.load(os.path.join(folder, "embedding.npy")),
            self.expected(self.files[:2])["embedding"],
            atol=1e-6,
        )

    def cli(self, command, *arguments):
        """Runs TensorFlow's saved_model_cli; returns what it printed."""
        module = "tensorflow.python.tools.saved_model_cli"
        return subprocess.run(
            [sys.executable, "-m", module, command, f"--dir={self.path}"]
            + list(arguments),
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ).stdout


if __name__ == "__main__":
    absltest.main()
