"""A small server that speaks TensorFlow Serving's protocol, for tests.

    python serving_server.py <folder of a model's versions>

It serves the highest version, once it has played the warm-up requests. As the
real one does, it runs a session on the SavedModel's graph and knows nothing of
Python functions: requests meet the graph unchecked.
"""

import concurrent.futures
import os
import sys

# isort: off
import without_keras  # before TensorFlow
import grpc
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client.session import Session
from tensorflow.python.saved_model import loader_impl
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
# isort: on

_STATUS = {status.value[0]: status for status in grpc.StatusCode}


class Model:
    """The newest version below a folder.

    Args:
        folder: str. As in TensorFlow Serving, versions are its numbers.
    """

    def __init__(self, folder):
        versions = [name for name in os.listdir(folder) if name.isdecimal()]
        self.version = max(map(int, versions))
        self.path = os.path.join(folder, str(self.version))
        self._session = Session(graph=tf.Graph())
        with self._session.graph.as_default():
            graph = loader_impl.load(self._session, ["serve"], self.path)
        self._signatures = {
            name: signature
            for name, signature in graph.signature_def.items()
            if not name.startswith("__")  # what initialises tables
        }
        # Unlike `Session.run`, these neither cast nor check what they are fed.
        self._callables = {
            name: self._session._make_callable_from_options(
                config_pb2.CallableOptions(
                    feed=[x.name for x in signature.inputs.values()],
                    fetch=[x.name for x in signature.outputs.values()],
                )
            )
            for name, signature in self._signatures.items()
        }

    def warm_up(self):
        """Plays the warm-up requests; returns their signatures."""
        path = os.path.join(
            self.path, "assets.extra", "tf_serving_warmup_requests"
        )
        played = []
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            log = prediction_log_pb2.PredictionLog.FromString(record)
            self.predict(log.predict_log.request)
            played.append(log.predict_log.request.model_spec.signature_name)
        return played

    def predict(self, request):
        """A PredictResponse; raises tf.errors.OpError."""
        name = request.model_spec.signature_name or "serving_default"
        if name not in self._signatures:
            raise tf.errors.InvalidArgumentError(
                None, None, f"No signature {name!r}."
            )
        signature = self._signatures[name]
        if set(request.inputs) != set(signature.inputs):
            raise tf.errors.InvalidArgumentError(
                None, None, f"Inputs must be {set(signature.inputs)}."
            )
        outputs = self._callables[name](
            *(tf.make_ndarray(request.inputs[x]) for x in signature.inputs)
        )
        response = predict_pb2.PredictResponse()
        response.model_spec.version.value = self.version
        for name, value in zip(signature.outputs, outputs, strict=True):
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response


class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, model):
        self._model = model

    def Predict(self, request, context):  # noqa: N802
        try:
            return self._model.predict(request)
        except tf.errors.OpError as error:
            context.abort(_STATUS[error.error_code], error.message)


def main(folder):
    model = Model(folder)
    warmed_up = model.warm_up()
    unwanted = set(without_keras.HIDDEN) & set(sys.modules)
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(4),
        options=[("grpc.max_receive_message_length", -1)],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        Service(model), server
    )
    port = server.add_insecure_port("localhost:0")
    server.start()
    print(port, ",".join(warmed_up), ",".join(unwanted), flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
