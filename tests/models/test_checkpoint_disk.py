"""Writing adapters: whole files or none, on a full disk and under an interrupt."""

import errno
import os

import pytest
import torch

from elastic_attention import attach
from elastic_attention.models import checkpoint
from elastic_attention.models.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    write_together,
)


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_full_disk_leaves_the_old_files(model, handle, folder, monkeypatch, call, nth):
    """Whichever of the two files cannot be written, what was loadable stays loadable and nothing is left behind."""
    before = {name: (folder / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
    original, calls = getattr(os, call), []

    def fail_on_nth(*args, **kwargs):
        calls.append(args)
        return no_space() if len(calls) == nth else original(*args, **kwargs)

    monkeypatch.setattr(checkpoint.os, call, fail_on_nth)
    with torch.no_grad():
        handle.routers[0].router_mlp[4].bias.fill_(3.0)
    with pytest.raises(OSError, match="No space left"):
        handle.save_pretrained(folder)
    monkeypatch.undo()
    assert sorted(os.listdir(folder)) == [CONFIG_FILE, WEIGHTS_FILE]
    assert (folder / CONFIG_FILE).read_bytes() == before[CONFIG_FILE]
    if (call, nth) != ("replace", 2):  # a rename takes no space, so this one stands for a pulled plug
        assert (folder / WEIGHTS_FILE).read_bytes() == before[WEIGHTS_FILE]
    handle.detach()
    attach(model, folder)


def test_a_full_disk_in_a_new_folder_leaves_no_half_file(handle, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        handle.save_pretrained(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == []


def test_files_get_the_usual_permissions(folder):
    (folder / "plain").write_text("")
    assert {(folder / name).stat().st_mode for name in (CONFIG_FILE, WEIGHTS_FILE, "plain")} == {
        (folder / "plain").stat().st_mode
    }


def test_writing_replaces_whole_files(tmp_path):
    path = tmp_path / "file"
    for data in (b"one", b"", b"three" * 1000):
        write_together(tmp_path, {"file": data})
        assert path.read_bytes() == data and os.listdir(tmp_path) == ["file"]


def test_an_interrupt_counts_as_a_failure(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_together(tmp_path, {"file": b"old"})

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_together(tmp_path, {"file": b"new"})
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
