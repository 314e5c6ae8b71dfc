"""Checkpoints that are damaged or of another run, and disks that are full: named, and nothing is lost."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from tiny_runs import assert_equal_runs, make_recipe, parts, read_log

from elastic_attention import CheckpointError
from elastic_attention.training.checkpoints import FILE, PREVIOUS
from elastic_attention.training.log import TrainingLog
from elastic_attention.training.recipe import TemperatureConfig
from elastic_attention.training.trainer import train
from made_rows import make_rows, write_rows


def test_checkpoint_of_another_run(tmp_path):
    train(make_recipe(tmp_path, steps=1), tmp_path / "run", **parts())
    with pytest.raises(CheckpointError, match="another run: seed is 0 there and 5 here; temperature.end is .* Choose"):
        other = make_recipe(tmp_path, steps=1, seed=5, temperature=TemperatureConfig(end=0.5))
        train(other, tmp_path / "run", **parts())
    write_rows(tmp_path / "more.jsonl", make_rows(25))
    other = make_recipe(tmp_path, steps=1, packs={"files": (str(tmp_path / "more.jsonl"),)})
    with pytest.raises(CheckpointError, match="the samples or the tokenizer differ"):
        train(other, tmp_path / "run", **parts())


def flip_a_bit(data):
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def change_the_step(data):
    return data.replace(b'"step":"4"', b'"step":"3"').replace(b'"step":"3"', b'"step":"1"')


def change_the_owner(data):
    place = data.index(b'"fingerprint":"') + 15
    return data[:place] + b"0123" + data[place + 4 :]


@pytest.mark.parametrize(
    "damage", [flip_a_bit, change_the_step, change_the_owner, lambda data: data[:100], lambda data: b""]
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog, whole, damage):
    folder, recipe = whole
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / FILE
    path.write_bytes(damage(path.read_bytes()))
    train(recipe, tmp_path / "run", **parts())
    assert f"{FILE} is damaged" in caplog.text and "the checkpoint before it" in caplog.text
    assert_equal_runs(folder, tmp_path / "run")
    for name in (FILE, PREVIOUS):
        (tmp_path / "run" / name).write_bytes(damage((tmp_path / "run" / name).read_bytes()))
    with pytest.raises(CheckpointError, match="is damaged.*is damaged.*Remove"):
        train(recipe, tmp_path / "run", **parts())


def test_a_full_disk_is_named_and_loses_nothing(tmp_path, monkeypatch, whole):
    folder, recipe = whole
    saved, calls = os.fsync, iter(range(100))

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").count(FILE) and next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="step 3 could not be written .*No space left.*free some"):
        train(recipe, tmp_path / "run", **parts())
    monkeypatch.undo()
    train(recipe, tmp_path / "run", **parts())
    assert_equal_runs(folder, tmp_path / "run")


def test_a_full_disk_under_the_log_is_named(tmp_path):
    log = TrainingLog(tmp_path, 0)
    log._stream = Path("/dev/full").open("a")  # noqa: SIM115 - the log closes it
    with pytest.raises(CheckpointError, match="step 3 .No space left"):
        log.write(3, {"loss": 1.0})
    log.close()  # what could not be written must not be said once more and hide the message


def test_a_full_disk_under_the_log_loses_nothing(tmp_path, monkeypatch, whole):
    folder, recipe = whole
    opened = Path.open

    def fill(path, mode="r", **options):
        return opened(Path("/dev/full") if (path.name, mode) == ("log.jsonl", "a") else path, mode, **options)

    train(recipe, tmp_path / "run", max_seconds=0, **parts())
    monkeypatch.setattr(Path, "open", fill)
    with pytest.raises(CheckpointError, match="log.jsonl could not be written at step 2 .No space left.*goes on"):
        train(recipe, tmp_path / "run", **parts())
    monkeypatch.undo()
    train(recipe, tmp_path / "run", **parts())
    assert_equal_runs(folder, tmp_path / "run")


def test_a_full_disk_under_tensorboard_ends_its_files_alone(tmp_path, monkeypatch, caplog):
    log = TrainingLog(tmp_path, 0)

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log._board, "add_scalar", refuse)
    for step in (1, 2):
        log.write(step, {"loss": 1.0})
    log.close()
    assert caplog.text.count("TensorBoard files end at step 1") == 1 and len(read_log(tmp_path)) == 2


def test_a_log_with_foreign_lines_is_mended(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n7\n{"loss": 2.0}\n\xff\xfe\n{"step": 2}\n{"step": 3}\n{"st')
    TrainingLog(tmp_path, 2).close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
