"""A tiny model with routers, and one whole run of it."""

import pytest
import torch
from word_runs import run

from elastic_attention import attach
from tiny_models import elastic_config, make_model


@pytest.fixture(scope="session")
def subject(tmp_path_factory):
    """A tiny model and a folder with routers for it."""
    model = make_model()
    torch.manual_seed(1)
    handle = attach(model, elastic_config(model))
    folder = tmp_path_factory.mktemp("routers")
    handle.save_pretrained(folder)
    handle.detach()
    return model, str(folder)


@pytest.fixture(scope="session")
def whole(subject, tmp_path_factory):
    """The answers of a run that nobody disturbed."""
    return run(subject, tmp_path_factory.mktemp("whole"))
