"""The mixture: six categories, deterministic bytes, a manifest that knows what it holds."""

import json
import math

import pytest

from elastic_attention.errors import DataError
from elastic_attention.tasks import load_corpora, mixture
from elastic_attention.tasks.counting import NominalTokenizer
from elastic_attention.tasks.mixture import MANIFEST, MIXTURE, MixtureConfig, build_mixture, main, make_rows

SMALL = MixtureConfig(samples=9, heldout=1, min_tokens=1500, max_tokens=4000)
CATEGORIES = {"single_qa", "multi_qa", "summarization", "few_shot", "synthetic", "code"}


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture") / "out"
    return folder, build_mixture(folder, SMALL)


def test_records_of_six_categories_and_all_their_tasks(built):
    folder, manifest = built
    rows = read(folder / "train.jsonl")
    assert {row["category"] for row in rows} == set(MIXTURE) == CATEGORIES
    assert {(row["category"], row["metadata"]["task"]) for row in rows} == {(c, t) for c in MIXTURE for t in MIXTURE[c]}
    assert all(row["answer"].strip() and (row["context"] or row["question"]) for row in rows)
    assert {path.name for path in folder.iterdir()} == {"train.jsonl", "heldout.jsonl", MANIFEST}
    assert {path.name for path in folder.parent.iterdir()} == {"out"}
    for name, facts in manifest["files"].items():
        assert facts["bytes"] == (folder / name).stat().st_size
        for category, tasks in facts["categories"].items():
            of_category = [row for row in read(folder / name) if row["category"] == category]
            assert sum(task["records"] for task in tasks.values()) == len(of_category)
            assert sum(task["tokens"] for task in tasks.values()) == sum(r["metadata"]["length"] for r in of_category)


def test_lengths_fill_the_range_and_are_alike_in_all_categories(built):
    rows = read(built[0] / "train.jsonl")
    for start in range(0, len(rows), len(MIXTURE)):
        lengths = [row["metadata"]["length"] for row in rows[start : start + len(MIXTURE)]]
        assert SMALL.max_tokens >= max(lengths) >= min(lengths) >= 0.85 * max(lengths)
    assert math.log(max(r["metadata"]["length"] for r in rows) / min(r["metadata"]["length"] for r in rows)) > 0.5


def test_same_settings_same_bytes(built, tmp_path):
    _, manifest = built
    assert build_mixture(tmp_path / "again", SMALL) == manifest
    other = build_mixture(tmp_path / "other", MixtureConfig(samples=1, heldout=1, max_tokens=2048, seed=1))
    assert other["files"]["heldout.jsonl"]["sha256"] != manifest["files"]["heldout.jsonl"]["sha256"]


def test_more_samples_begin_with_the_same_ones(built):
    first = next(make_rows(MixtureConfig(samples=99, min_tokens=1500, max_tokens=4000), "train", 99, load_corpora()))
    assert first == read(built[0] / "train.jsonl")[0]


def test_splits_share_no_question(built):
    folder, _ = built
    train, heldout = (
        {r["question"] + r["metadata"]["answer_prefix"] + r["answer"] for r in read(folder / f"{split}.jsonl")}
        for split in ("train", "heldout")
    )
    assert not train & heldout


def test_a_whole_folder_is_kept(built, monkeypatch):
    folder, manifest = built
    monkeypatch.setattr(mixture, "write_split", None)
    assert build_mixture(folder, SMALL) == manifest
    with pytest.raises(DataError, match="other settings or texts; name a new folder"):
        build_mixture(folder, MixtureConfig(samples=7))


def test_changed_and_foreign_folders(tmp_path, capsys):
    folder = tmp_path / "out"
    arguments = [str(folder), "--samples", "1", "--heldout", "0", "--min-tokens", "1500", "--max-tokens", "1600"]
    assert main(arguments) == 0
    assert "multi_qa" in capsys.readouterr().out
    assert not (folder / "heldout.jsonl").exists()
    with (folder / "train.jsonl").open("ab") as file:
        file.write(b"\n")
    assert main(arguments) == 1
    assert "['train.jsonl'] have changed" in capsys.readouterr().err
    (folder / MANIFEST).unlink()
    assert main(arguments) == 1
    assert "holds no whole mixture" in capsys.readouterr().err


def test_failed_build_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mixture, "write_split", fail)
    assert main([str(tmp_path / "out")]) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings", [{"min_tokens": 100}, {"min_tokens": 4000, "max_tokens": 2000}, {"samples": 0}, {"heldout": -1}]
)
def test_bad_settings(settings):
    with pytest.raises(DataError):
        MixtureConfig(**settings)


def test_nominal_count():
    count = NominalTokenizer()
    assert len(count("A house, 42 internationalization", add_special_tokens=False)["input_ids"]) == 10
    assert [len(ids) for ids in count(["", "a b"], add_special_tokens=False)["input_ids"]] == [0, 2]
    prompt = count.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True, tokenize=False)
    assert prompt.endswith("assistant\n") and "x" in prompt
