import pytest
from tiny_runs import make_recipe, parts

from elastic_attention.training.trainer import train


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A folder with a run that nothing disturbed, and its recipe."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = make_recipe(folder)
    train(recipe, folder / "whole", **parts())
    return folder / "whole", recipe
