"""Where adapters are looked for and sent: folders, files, hub ids."""

from pathlib import Path

import pytest

from elastic_attention import AdapterError, attach
from elastic_attention.models.checkpoint import (
    CONFIG_FILE,
    STATIC_FILE,
    WEIGHTS_FILE,
)


@pytest.mark.parametrize(
    "source", ["absent", "./absent", "/absent/adapter", "../absent", "a/b/c", "", "~/absent", "a\\b"]
)
def test_no_such_folder(model, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdapterError, match="There is no adapter folder|has no elastic_config"):
        attach(model, source)


def test_a_file_is_no_folder(model, handle, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(AdapterError, match="is a file; name a folder"):
        handle.save_pretrained(path)
    handle.detach()
    with pytest.raises(AdapterError, match="There is no adapter folder"):
        attach(model, path)
    assert path.read_text() == "mine"


def test_a_hub_id_that_cannot_be_fetched(model, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = {}

    def offline(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(AdapterError, match="someone/routers is no local folder and could not be fetched.*offline"):
        attach(model, "someone/routers", revision="abc")
    files = [CONFIG_FILE, WEIGHTS_FILE, STATIC_FILE]
    assert asked == {"repo_id": "someone/routers", "revision": "abc", "allow_patterns": files}


def test_a_hub_id_that_answers(model, handle, folder, monkeypatch):
    import huggingface_hub

    handle.detach()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(folder))
    assert attach(model, "someone/routers").config == handle.config


def test_push_uploads_the_two_files_and_a_card(handle, monkeypatch):
    import huggingface_hub

    uploaded = {}

    class FakeApi:
        def create_repo(self, repo_id, **options):
            uploaded["created"] = repo_id, options["private"]

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            uploaded["files"] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            return type("Commit", (), {"commit_url": "https://example.invalid/commit"})

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    assert handle.push_to_hub("me/x", private=True) == "https://example.invalid/commit"
    assert uploaded["created"] == ("me/x", True)
    assert set(uploaded["files"]) == {CONFIG_FILE, WEIGHTS_FILE, "README.md"}
    card = uploaded["files"]["README.md"].decode()
    assert "library_name: elastic-attention" in card and 'attach(model, "me/x")' in card and "base_model:" in card
