"""absl's temporary folders under pytest, and what no test may leave."""

import keras
import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()


def pytest_collection_modifyitems(items):
    """Static checks come first: they take seconds."""
    items.sort(key=lambda item: "/tests/repository/" not in str(item.path))


@pytest.fixture(autouse=True)
def precision_ends_with_the_test():
    yield
    policy = keras.mixed_precision.global_policy().name
    keras.mixed_precision.set_global_policy("float32")
    assert policy == "float32", f"The test leaves the policy {policy}."
