"""The signatures of a server, as TensorFlow functions."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from seed_tf.datasets.resizing import square
from seed_tf.embeddings import l2_normalise
from seed_tf.evaluation import ProbeResult
from seed_tf.export.decoding import decode
from seed_tf.export.index import StoredIndex
from seed_tf.export.outputs import Outputs

BATCH = 32  # images to decode, resize and embed at a time
_BLOCK = 65536  # rows of an index to compare at a time


class Server(tf.Module):
    """The content of a SavedModel.

    Every function works on `BATCH` images at a time: beyond the inputs and
    outputs, memory does not grow with the batch.

    Args:
        outputs: the built network.
        image_size: side S of the network's images.
        resize: length of the shorter side before the crop.
        probe: None, or the linear probe for `classify`.
        labels: names of the probe's classes.
        index: None, or the index for `nearest`.
        k: largest number of labels and neighbours in an answer.

    Attributes:
        functions: dict of signatures to functions from a tensor to a dict.
    """

    def __init__(
        self,
        outputs: Outputs,
        *,
        image_size: int,
        resize: int,
        probe: ProbeResult | None = None,
        labels: Sequence[str] | None = None,
        index: StoredIndex | None = None,
        k: int = 10,
    ) -> None:
        super().__init__()
        self._size, self._resize, self._k = image_size, resize, k
        # Track plain variables: a server does not know Keras variables.
        self.weights = [weight.value for weight in outputs.weights]
        side = image_size
        self._network = tf.function(
            lambda images: outputs(images),
            input_signature=[tf.TensorSpec([None, side, side, 3], tf.uint8)],
        )
        files = tf.TensorSpec([None], tf.string, name="images")
        pixels = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
        functions = {
            "serving_default": (self._embed_pixels, pixels),
            "serve_bytes": (self._embed_files, files),
        }
        if probe is not None:
            self.kernel = tf.Variable(probe.kernel, trainable=False)
            self.bias = tf.Variable(probe.bias, trainable=False)
            self._labels = tf.constant(list(labels), tf.string)
            functions["classify"] = self._classify, files
        if index is not None:
            self._output = index.output
            self.index = tf.Variable(index.embeddings, trainable=False)
            # An asset: TensorFlow copies the file, and a server reads it once.
            self.ids = tf.lookup.StaticHashTable(
                tf.lookup.TextFileInitializer(
                    index.ids,
                    tf.int64,
                    tf.lookup.TextFileIndex.LINE_NUMBER,
                    tf.string,
                    tf.lookup.TextFileIndex.WHOLE_LINE,
                ),
                "",
            )
            functions["nearest"] = self._nearest, files
        self.functions = {
            name: _in_batches(function, spec)
            for name, (function, spec) in functions.items()
        }

    def _embed_pixels(self, images, start):
        size = self._size
        sides = tf.shape(images)[1:3]
        images = tf.cond(
            tf.reduce_all(sides == size),
            lambda: images,
            lambda: tf.map_fn(
                lambda image: square(image, size, self._resize),
                images,
                fn_output_signature=tf.TensorSpec([size, size, 3], tf.uint8),
            ),
        )
        return self._network(tf.ensure_shape(images, [None, size, size, 3]))

    def _embed_files(self, files, start):
        images, problems = decode(files, self._size, self._resize)
        bad = tf.where(problems != "")[:, 0]
        position = tf.strings.as_string(tf.cast(start, tf.int64) + bad)
        listed = tf.strings.join(
            ["image ", position, ": ", tf.gather(problems, bad)]
        )
        message = tf.strings.reduce_join(listed, separator="; ")
        with tf.control_dependencies(
            [tf.debugging.Assert(tf.size(bad) == 0, [message])]
        ):
            size = self._size
            images = tf.ensure_shape(images, [None, size, size, 3])
        return self._network(images)

    def _classify(self, files, start):
        features = self._embed_files(files, start)["features"]
        scores = tf.nn.softmax(features @ self.kernel + self.bias)
        scores, numbers = tf.math.top_k(scores, min(self._k, scores.shape[1]))
        return {"labels": tf.gather(self._labels, numbers), "scores": scores}

    def _nearest(self, files, start):
        queries = self._embed_files(files, start)[self._output]
        queries = l2_normalise(queries)
        k = min(self._k, self.index.shape[0])
        shape = [tf.shape(queries)[0], k]

        def look(first, best, rows):
            block = tf.cast(self.index[first : first + _BLOCK], tf.float32)
            found = tf.matmul(queries, block, transpose_b=True)
            numbers = first + tf.range(tf.shape(block)[0])
            numbers = tf.broadcast_to(numbers, tf.shape(found))
            best, places = tf.math.top_k(tf.concat([best, found], 1), k)
            rows = tf.concat([rows, numbers], 1)
            return (
                first + _BLOCK,
                best,
                tf.gather(rows, places, batch_dims=1),
            )

        _, similarities, rows = tf.while_loop(
            lambda first, *_: first < self.index.shape[0],
            look,
            (0, tf.fill(shape, -2.0), tf.fill(shape, 0)),
            shape_invariants=(
                tf.TensorShape([]),
                tf.TensorShape([None, k]),
                tf.TensorShape([None, k]),
            ),
            parallel_iterations=1,
        )
        return {
            "ids": self.ids.lookup(tf.cast(rows, tf.int64)),
            "similarities": similarities,
        }


def _in_batches(function, spec):
    """Returns a function that applies another to `BATCH` rows at a time.

    Args:
        function: takes a tensor `[b, ...]` and the position of its first row,
            and returns a dict of tensors `[b, n]`.
        spec: tf.TensorSpec of the whole batch.
    """
    part = tf.function(function).get_concrete_function(
        spec, tf.TensorSpec([], tf.int32)
    )

    @tf.function(input_signature=[spec])
    def run(images):
        # Servers do not check a request's shape.
        images = tf.ensure_shape(images, spec.shape)
        size = tf.shape(images)[0]
        arrays = {
            name: tf.TensorArray(
                output.dtype,
                (size + BATCH - 1) // BATCH,
                infer_shape=False,
                element_shape=output.shape,
            )
            for name, output in part.structured_outputs.items()
        }

        def step(start, arrays):
            outputs = part(images[start : start + BATCH], start)
            return start + BATCH, {
                name: array.write(start // BATCH, outputs[name])
                for name, array in arrays.items()
            }

        _, arrays = tf.while_loop(
            lambda start, _: start < size,
            step,
            (0, arrays),
            parallel_iterations=1,
        )
        return {name: array.concat() for name, array in arrays.items()}

    return run
