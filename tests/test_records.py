"""Records: what they hold, how they are written, and what a damaged file says."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from elastic_attention import records
from elastic_attention.errors import ElasticAttentionError
from elastic_attention.records import build_record, read_record, write_file, write_record


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    window: int
    sizes: tuple[int, ...]


def make_record(**changes):
    values = {
        "config": Settings(window=512, sizes=(1, 2)),
        "model": "tiny",
        "data": None,
        "device": "CPU",
        "seed": 0,
        "n": 2,
        "metrics": {"rows": [{"task": "needle", "msr": 0.5}]},
        "seconds": 1.5,
        "bytes": 1024,
    }
    return build_record("demo", **(values | changes))


def test_record_has_every_key_and_the_versions() -> None:
    record = make_record()
    assert set(record) == set(records.REQUIRED_KEYS)
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(record["package"]) == {"name", "version", "commit"}
    assert record["config"] == {"window": 512, "sizes": [1, 2]}
    assert record["created"].endswith("+00:00")


def test_record_round_trips(tmp_path: Path) -> None:
    record = make_record(metrics={"rows": [{"answer": "naïve ✓ </script>", "x": None}], "maps": {"a": [[0, 1]]}})
    path = tmp_path / "new" / "folder" / "demo.json"
    write_record(path, record)
    assert read_record(path) == record


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_numbers_become_null(tmp_path: Path, value: float) -> None:
    record = make_record(metrics={"rows": [{"score": value, "list": [1.0, value]}]}, seconds=value)
    assert record["metrics"]["rows"] == [{"score": None, "list": [1.0, None]}]
    record["metrics"]["rows"][0]["score"] = value
    write_record(tmp_path / "r.json", record)
    assert read_record(tmp_path / "r.json")["metrics"]["rows"][0]["score"] is None
    assert "NaN" not in (tmp_path / "r.json").read_text()
    assert "Infinity" not in (tmp_path / "r.json").read_text()


def test_foreign_number_types_become_plain() -> None:
    numpy = pytest.importorskip("numpy")
    rows = make_record(metrics={"rows": [{"a": numpy.float32(0.5), "b": numpy.int64(3), "c": Fraction(1, 4)}]})
    assert rows["metrics"]["rows"] == [{"a": 0.5, "b": 3, "c": 0.25}]
    assert json.dumps(rows)


def test_value_without_json_form_is_named() -> None:
    with pytest.raises(ElasticAttentionError, match=r"metrics\.rows\[0\]\.routes = (.|\n)*type Tensor"):
        make_record(metrics={"rows": [{"routes": torch.zeros(2, 2)}]})


def test_rows_must_be_mappings() -> None:
    with pytest.raises(ElasticAttentionError, match="list of objects"):
        make_record(metrics={"rows": [1, 2]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"command": "demo"', "not valid JSON"),
        (b'{"seconds": NaN}', "NaN is not a JSON number"),
        (b"[1, 2]", "list instead of a JSON object"),
        (b'{"command": "demo"}', "config, package.*missing"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_damaged_file_says_what_is_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(ElasticAttentionError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("metrics", []), ("package", None), ("command", 3), ("versions", "x")])
def test_wrong_kind_of_value_is_refused(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(make_record() | {key: value}))
    with pytest.raises(ElasticAttentionError, match=key):
        read_record(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ElasticAttentionError, match="No such file"):
        read_record(tmp_path / "none.json")
    with pytest.raises(ElasticAttentionError, match="Cannot read"):
        read_record(tmp_path)
    with pytest.raises(ElasticAttentionError, match="is a folder"):
        write_record(tmp_path, make_record())
    (tmp_path / "file").write_text("x")
    with pytest.raises(ElasticAttentionError, match="Cannot write"):
        write_record(tmp_path / "file" / "r.json", make_record())


def test_incomplete_record_is_not_written(tmp_path: Path) -> None:
    record = make_record()
    del record["seed"]
    with pytest.raises(ElasticAttentionError, match="seed missing"):
        write_record(tmp_path / "r.json", record)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch, function: str) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(ElasticAttentionError, match="No space left on device.*Free some space"):
        write_record(path, make_record())
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.json"]


def test_devices_are_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ElasticAttentionError, match="not a regular file"):
        write_file(pipe, "text")
    assert pipe.is_fifo()


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    write_file(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_lone_surrogate_from_a_model_can_be_written(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", make_record(metrics={"rows": [{"answer": "a\ud800b"}]}))
    assert read_record(tmp_path / "r.json")["metrics"]["rows"][0]["answer"] == "a?b"


def run_git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch) -> Path:
    """A git checkout with the package's layout, from which `records` seems to run."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name in [name for name in os.environ if name.startswith("GIT_")] + ["ELASTIC_ATTENTION_COMMIT"]:
        monkeypatch.delenv(name, raising=False)
    package = tmp_path / "src" / "elastic_attention"
    package.mkdir(parents=True)
    (package / "records.py").write_text("first")
    run_git(tmp_path, "init", "-q")
    run_git(tmp_path, "add", ".")
    run_git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(records, "__file__", str(package / "records.py"))
    return tmp_path


def test_commit_of_a_checkout(checkout: Path) -> None:
    commit = run_git(checkout, "rev-parse", "HEAD")
    (checkout / "results.json").write_text("{}")
    assert make_record()["package"]["commit"] == commit
    (checkout / "src" / "elastic_attention" / "records.py").write_text("second")
    assert make_record()["package"]["commit"] == f"{commit}-dirty"


def test_no_commit_when_installed_in_another_checkout(checkout: Path, monkeypatch) -> None:
    installed = checkout / ".venv" / "elastic_attention"
    installed.mkdir(parents=True)
    monkeypatch.setattr(records, "__file__", str(installed / "records.py"))
    assert make_record()["package"]["commit"] is None


def test_no_commit_outside_git_or_without_git(checkout: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert make_record()["package"]["commit"] is None
    monkeypatch.undo()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(checkout.parent))
    shutil.rmtree(checkout / ".git")
    monkeypatch.setattr(records, "__file__", str(checkout / "src" / "elastic_attention" / "records.py"))
    assert make_record()["package"]["commit"] is None


def test_commit_of_copied_sources_can_be_named(monkeypatch) -> None:
    monkeypatch.setenv("ELASTIC_ATTENTION_COMMIT", "abc123")
    assert make_record()["package"]["commit"] == "abc123"
