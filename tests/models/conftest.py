"""What several files of model tests ask for."""

import pytest


@pytest.fixture(scope="module")
def oracle():
    """The tiny Llama as a model that attends by masks and knows nothing of this library."""
    from oracle_model import OracleModel
    from tiny_models import elastic_config, make_model

    model = make_model()
    return OracleModel(model, elastic_config(model))


@pytest.fixture
def out(tmp_path):
    """Where a converted adapter goes."""
    return tmp_path / "adapter"


@pytest.fixture
def folder(handle, tmp_path):
    """The adapter of `handle`, in a folder."""
    handle.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"
