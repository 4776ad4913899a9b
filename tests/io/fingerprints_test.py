"""One text identifies an encoder: its weights, and what is not a weight."""

import os

import keras
from absl.testing import absltest, parameterized

import seed_tf
from seed_tf.io.fingerprints import comparable, fingerprint, identity


def encoder(activation="relu", strides=2, **options):
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((None, None, 3)),
        keras.layers.Conv2D(4, 3, strides=strides, activation=activation),
    ]
    options = {"embedding_dim": 4, "image_size": 16, **options}
    return seed_tf.Encoder(keras.Sequential(layers), **options)


class IdentityTest(parameterized.TestCase):
    def test_settings_count(self):
        """Weights are equal in all of these."""
        others = [
            encoder(),
            encoder(mean=(0.5, 0.5, 0.5)),
            encoder(std=(0.5, 0.5, 0.5)),
            encoder(image_size=17),
            encoder(image_size=None),
            encoder(activation="gelu"),
            encoder(strides=1),
        ]
        self.assertLen({fingerprint(model) for model in others}, 1)
        self.assertLen({identity(model) for model in others}, len(others))
        heads = [
            encoder(head=None, embedding_dim=None),
            encoder(head="linear"),
            encoder(),
        ]
        self.assertLen({identity(model) for model in heads}, 3)

    @parameterized.parameters(
        encoder, lambda: encoder(head=None, embedding_dim=None)
    )
    def test_a_file_precision_and_freezing_do_not(self, make):
        model = make()
        self.assertRegex(identity(model), "^[0-9a-f]{16}-[0-9a-f]{8}$")
        self.assertStartsWith(identity(model), fingerprint(model))
        path = os.path.join(self.create_tempdir().full_path, "x.keras")
        model.save(path)
        loaded = keras.saving.load_model(path)
        self.assertEqual(identity(loaded), identity(model))
        loaded.trainable = False
        self.assertEqual(identity(loaded), identity(model))
        self.assertEqual(identity(encoder()), identity(encoder()))  # numbers
        half = encoder(dtype="mixed_bfloat16")
        self.assertEqual(identity(half), identity(encoder()))

    def test_what_an_earlier_version_stored(self):
        old, new = fingerprint(encoder()), identity(encoder())
        self.assertEqual(comparable(new, old), old)
        self.assertEqual(comparable(new, new), new)
        self.assertNotEqual(comparable(new, identity(encoder(strides=1))), old)


if __name__ == "__main__":
    absltest.main()
