"""Tests of BatchNorm in groups."""

import keras
import numpy as np
from absl.testing import absltest, parameterized

import seed_tf
from seed_tf.grouped_batch_norm import GroupedBatchNormalization, in_groups
from seed_tf.keras_internals import all_layers


class Doubled(keras.layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


@keras.saving.register_keras_serializable(package="grouped_batch_norm_test")
class Subclassed(keras.Model):
    """A model that no config describes layer by layer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2D(4, 3)
        self.norm = keras.layers.BatchNormalization()
        self.pool = keras.layers.GlobalAveragePooling2D()

    def call(self, images, training=False):
        return self.pool(self.norm(self.conv(images), training=training))


class GroupedBatchNormTest(parameterized.TestCase):
    @parameterized.product(
        kind=[keras.layers.BatchNormalization, Doubled],
        shape=[(6, 4, 4, 5), (6, 5)],
    )
    def test_groups_are_normalised_apart(self, kind, shape):
        layers = [kind() for _ in range(2)]
        for layer in layers:
            layer.build((None, *shape[1:]))
        grouped, plain = layers
        in_groups(grouped, 3)
        self.assertIsInstance(grouped, kind)
        x = np.random.default_rng(1).normal(2, 3, shape).astype("float32")
        found = grouped(x, training=True)
        expected = [plain(part, training=True) for part in np.split(x, 3)]
        np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-5)
        np.testing.assert_allclose(
            grouped.moving_mean, plain.moving_mean, rtol=1e-5
        )
        np.testing.assert_allclose(grouped(x), plain(x), atol=1e-5)

    def test_masks_are_split_too(self):
        grouped, plain = (keras.layers.BatchNormalization() for _ in range(2))
        in_groups(grouped, 2)
        x = np.random.default_rng(1).normal(size=(4, 3, 5)).astype("float32")
        mask = np.arange(12).reshape(4, 3) % 3 > 0
        expected = [
            plain(x[i : i + 2], training=True, mask=mask[i : i + 2])
            for i in (0, 2)
        ]
        np.testing.assert_allclose(
            grouped(x, training=True, mask=mask),
            np.concatenate(expected),
            atol=1e-5,
        )

    def test_files_do_not_change(self):
        def build():
            return keras.Sequential(
                [keras.Input((4,)), keras.layers.BatchNormalization()]
            )

        plain, grouped = build(), build()
        plain.layers[0].gamma.assign([1, 2, 3, 4])
        in_groups(grouped.layers[0], 2)
        path = self.create_tempfile("net.weights.h5").full_path
        plain.save_weights(path)
        grouped.load_weights(path)
        np.testing.assert_array_equal(grouped.layers[0].gamma, [1, 2, 3, 4])

    @parameterized.product(
        encoder=[
            Subclassed,
            lambda: seed_tf.Encoder("resnet18", stem="cifar"),
        ],
        acceleration=["auto", None],
    )
    def test_of_momentum_encoders(self, encoder, acceleration):
        encoder = encoder()
        model = seed_tf.MoCo(
            encoder,
            views=lambda images: keras.ops.cast(images, "float32"),
            queue_size=8,
            shuffle_groups=2,
            acceleration=acceleration,
        )
        norms, copies = (
            [
                layer
                for layer in all_layers(network)
                if isinstance(layer, keras.layers.BatchNormalization)
            ]
            for network in (encoder, model.momentum_encoder)
        )
        self.assertLen(copies, len(norms))
        for norm, copy in zip(norms, copies, strict=True):
            self.assertIs(type(norm), keras.layers.BatchNormalization)
            self.assertIsInstance(copy, GroupedBatchNormalization)
            self.assertEqual(copy.groups, 2)


if __name__ == "__main__":
    absltest.main()
