"""A tiny random model with a byte tokenizer and untrained routers in folders, and a way to call the command."""

import pytest
import torch

from byte_tokenizer import make_byte_tokenizer
from elastic_attention import attach
from elastic_attention.cli import main
from tiny_models import elastic_config, make_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Options that name the tiny model and its routers."""
    folder = tmp_path_factory.mktemp("tiny")
    model = make_model(vocab_size=300)
    model.save_pretrained(folder / "model")
    make_byte_tokenizer().save_pretrained(folder / "model")
    torch.manual_seed(1)
    handle = attach(model, elastic_config(model))
    handle.save_pretrained(folder / "routers")
    return ["--model", str(folder / "model"), "--routers", str(folder / "routers"), "--device", "cpu"]


@pytest.fixture
def document(tmp_path):
    """A text long enough to be routed."""
    path = tmp_path / "document.txt"
    path.write_text("The boat is red and the sail is white. " * 6, encoding="utf-8")
    return path


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Call the command in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run
