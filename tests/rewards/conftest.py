"""Models that several tests of rewards load."""

import pytest
from support import tiny_rewards


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP model and where it lies."""
    directory = tmp_path_factory.mktemp("clip")
    return tiny_rewards.clip_model(directory), str(directory)
