import json

import pytest

from elastic_attention import DataError
from elastic_attention.training.data.record import check_record
from made_rows import make_row


def test_a_record_and_its_defaults():
    record = check_record(make_row(3, metadata=None), "f:1")
    assert (record.task, record.answer_prefix, record.is_chat) == ("code", "", True)
    row = make_row(3, metadata={"task": "lines", "is_chat": False, "answer_prefix": "x =", "source": [1]})
    record = check_record(row, "f:1")
    assert (record.task, record.answer_prefix, record.is_chat) == ("lines", "x =", False)
    assert record.metadata["source"] == [1]
    assert check_record(row | {"metadata": json.dumps(row["metadata"])}, "f:1") == record
    del row["metadata"]
    assert check_record(row, "f:1").metadata == {}


def test_nothing_that_a_table_fills_in_is_a_value():
    record = check_record(make_row(metadata={"task": None, "is_chat": None, "n": 1}), "f:1")
    assert (record.task, record.is_chat, record.metadata) == ("code", True, {"n": 1})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": ""}, "'answer' is empty; fill it in or remove"),
        ({"answer": " \n"}, "'answer' is empty"),
        ({"category": ""}, "'category' is empty"),
        ({"context": " ", "question": ""}, "'context' and 'question' are both empty"),
        ({"context": None}, "'context' must be text, got None"),
        ({"answer": ["a"]}, r"'answer' must be text, got \['a'\]"),
        ({"question": "a\ud800"}, "'question' holds half a character at position 1"),
        ({"id": 3}, r"unknown keys \['id'\]; move them into 'metadata'"),
        ({"metadata": [1]}, "'metadata' must be an object"),
        ({"metadata": "{"}, "'metadata' is text but no JSON"),
        ({"metadata": {"is_chat": 1}}, "'metadata.is_chat' must be bool, got 1"),
        ({"metadata": {"task": 1}}, "'metadata.task' must be str, got 1"),
        ({"metadata": {"answer_prefix": "\udfff"}}, "'metadata.answer_prefix' holds half a character"),
    ],
)
def test_bad_records_name_place_key_and_remedy(change, said):
    with pytest.raises(DataError, match=f"^data.jsonl:7: .*{said}"):
        check_record(make_row() | change, "data.jsonl:7")


@pytest.mark.parametrize("key", ["context", "question", "answer", "category"])
def test_missing_key(key):
    row = make_row()
    del row[key]
    with pytest.raises(DataError, match=rf"^f:1: misses \['{key}'\]"):
        check_record(row, "f:1")


@pytest.mark.parametrize("row", [None, 3, "text", [make_row()]])
def test_no_object(row):
    with pytest.raises(DataError, match="^f:1: a record is an object"):
        check_record(row, "f:1")
