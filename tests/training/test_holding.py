"""Two runs never write into one folder."""

import pytest
from tiny_runs import assert_equal_runs, make_recipe, parts

from elastic_attention import CheckpointError, locks
from elastic_attention.training import holding
from elastic_attention.training.trainer import train


def test_a_folder_in_which_another_run_writes_is_refused(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(locks, "_LOCK_SECONDS", 0.05)
    recipe, folder = make_recipe(tmp_path), tmp_path / "run"
    with holding.hold_output(folder):
        with pytest.raises(CheckpointError, match=r"Another process is training in .*run\. Wait until it is done"):
            train(recipe, folder, **parts())
        assert [path.name for path in folder.iterdir()] == [holding.LOCK]
    train(recipe, folder, **parts())
    assert_equal_runs(whole[0], folder)
