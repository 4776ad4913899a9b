"""Set-up of every test process, and what no test may leave behind."""

import keras
import pytest
from absl import flags
from helpers.devices import two_logical_cpus

two_logical_cpus()
flags.FLAGS.mark_as_parsed()


def pytest_collection_modifyitems(items):
    """Static checks come first: they take seconds."""
    items.sort(key=lambda item: "/tests/repository/" not in str(item.path))


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Layers without a seed get the same weights in every run of a test."""
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def precision_ends_with_the_test():
    yield
    policy = keras.mixed_precision.global_policy().name
    keras.mixed_precision.set_global_policy("float32")
    assert policy == "float32", f"The test leaves the policy {policy}."
