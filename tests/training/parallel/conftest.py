"""The tiny runs of the trainer's tests serve here too, and one pair of processes serves all tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Two processes in one group."""
    from rank_jobs import Pair

    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.close()
