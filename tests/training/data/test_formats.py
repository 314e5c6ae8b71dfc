"""Data sets of the papers, read from their own files."""

import json
import pickle

import pytest

from elastic_attention import DataError
from elastic_attention.training.data.formats import FORMATS, FormattedSource
from elastic_attention.training.data.record import check_record
from elastic_attention.training.data.sources import open_rows
from made_datasets import MAKERS, make_musique, prose, write_file
from made_rows import make_corpus, make_row, make_rows


def open_format(path, kind, count=5, shots=0):
    rows = open_rows(write_file(path, kind, count))
    return FormattedSource(rows=rows, format=kind, category="some", task=f"{kind} task", shots=shots)


def test_every_format_has_made_rows():
    assert set(MAKERS) == set(FORMATS)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("kind", FORMATS)
def test_rows_become_records(tmp_path, kind, ending):
    source = open_format(tmp_path / f"rows{ending}", kind)
    assert len(source) == 5
    record = check_record(source.read(3), source.where(3))
    assert (record.category, record.task) == ("some", f"{kind} task")
    assert record.context and record.answer and record.is_chat == (kind != "colt")
    assert pickle.loads(pickle.dumps(source)).read(3) == source.read(3)


def test_what_stands_where(tmp_path):
    read = {kind: open_format(tmp_path / f"{kind}.jsonl", kind).read(1) for kind in FORMATS}
    assert read["chatqa2"]["context"] == f"{prose(1, 80)}\n\n{prose(2, 40)}"
    assert read["chatqa2"]["question"] == "What is text 1 about?"
    assert read["chatqa2"]["answer"] == "It is about number 1."
    assert read["musique"]["context"].startswith("Page 0\n") and "Who met whom in 1?" in read["musique"]["question"]
    assert read["colt"]["context"].endswith("pkg/count_1.py\ndef count_1(rows):\n    total = 0\n    for row in rows:\n")
    assert read["colt"]["context"].startswith("pkg/rows.py\nclass Rows") and read["colt"]["question"] == ""
    assert read["gov_report"]["answer"] == prose(1, 12)
    assert read["xsum"]["context"] == prose(1, 25)


def test_a_document_of_its_own_is_the_context():
    row = {"document": "The long story.", "question": "Who told it?", "answer": ["He did.", "Another."]}
    assert FORMATS["chatqa2"](row) == {"context": "The long story.", "question": "Who told it?", "answer": "He did."}


def test_shots_use_every_row_once(tmp_path):
    source = open_format(tmp_path / "rows.jsonl", "xsum", count=8, shots=2)
    assert len(source) == 3
    record = source.read(0)
    assert record["context"].startswith(f"{prose(0, 25)}\n\nSummarise") and record["context"].endswith(prose(2, 25))
    assert record["context"].count(prose(0, 6)) == 1 and record["answer"] == prose(2, 6)
    assert source.read(2)["context"].count("Summarise") == 1  # the last record has fewer examples, not fewer rows
    assert source.where(0).endswith(":3")


def test_the_checksum_is_of_rows_and_settings(tmp_path):
    one = open_format(tmp_path / "a.jsonl", "xsum")
    assert one.digest() == open_format(tmp_path / "b.jsonl", "xsum").digest()
    others = [
        open_format(tmp_path / "a.jsonl", "xsum", shots=1),
        open_format(tmp_path / "c.jsonl", "xsum", count=6),
        open_format(tmp_path / "d.jsonl", "gov_report"),
    ]
    assert len({one.digest(), *(source.digest() for source in others)}) == 4


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": 3}, r"rows\.jsonl:1: misses 'paragraphs'.*'musique'"),
        (make_musique(1) | {"paragraphs": 7}, r"rows\.jsonl:1: no row of the format 'musique'"),
        (make_musique(1) | {"answer": None}, r"rows\.jsonl:1: the answer of .* must be text, got None"),
        ([1, 2], r"rows\.jsonl:1: no row of the format"),
    ],
)
def test_other_rows_are_named(tmp_path, row, said):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    source = FormattedSource(rows=open_rows(tmp_path / "rows.jsonl"), format="musique", category="c", task="t")
    with pytest.raises(DataError, match=said):
        source.read(0)


# One JSON array ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2])
def test_arrays_are_read_by_place(tmp_path, indent):
    rows = [{"a": 'quote " and \\ and ] }', "b": [{"c": {}}, []]}, {}, {"text": "ä\n]" * 1000}, {"a": {"b": [1]}}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=indent is None), encoding="utf-8")
    source = open_rows(path)
    assert [source.read(i) for i in (3, 0, 1, 2)] == [rows[i] for i in (3, 0, 1, 2)] and len(source) == 4
    assert source.where(2) == f"{path}: entry 3"


@pytest.mark.parametrize("text", ['{"a": 1}', '[{"a": 1}, {"b": ', "7", "null"])
def test_what_is_no_array_is_named(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(DataError, match="is no whole JSON array"):
        open_rows(tmp_path / "rows.json")


def test_an_entry_that_is_no_json_is_named(tmp_path):
    (tmp_path / "rows.json").write_text('[{"a": 1}, {"a": nonsense}]')
    with pytest.raises(DataError, match="entry 2: no valid JSON"):
        open_rows(tmp_path / "rows.json").read(1)


# Records that are skipped -----------------------------------------------------------------------------------------


def test_malformed_records_may_be_left_out_and_are_counted(tmp_path, caplog):
    rows = [*make_rows(9), make_row(50, answer=" "), *make_rows(3), {"context": "no more"}, make_row(51, words=400)]
    with pytest.raises(DataError, match=r"rows\.jsonl:10: 'answer' is empty"):
        make_corpus(tmp_path, rows)
    with pytest.raises(DataError, match=r"rows\.jsonl:15: \d+ tokens do not fit"):  # places are those of the file
        make_corpus(tmp_path, rows, bad_records="skip")
    for workers in (0, 2):
        corpus = make_corpus(tmp_path, rows, bad_records="skip", over_long="skip", workers=workers)
        assert corpus.report()["skipped"] == 2 and len(corpus) == 13
        assert "2 malformed records are left out; the first" in caplog.text and "rows.jsonl:10" in corpus.skipped[0]
    with pytest.raises(DataError, match="no record is left, 1 are malformed; the first"):
        make_corpus(tmp_path, [make_row(50, answer="")], bad_records="skip")
