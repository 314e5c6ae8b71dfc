import multiprocessing

import numpy as np
import pytest

from elastic_attention import DataError
from elastic_attention.training.data import caching
from elastic_attention.training.data.caching import cache_folder, cache_key, tokenize_source
from elastic_attention.training.data.encoding import Encoder
from elastic_attention.training.data.record import check_record
from elastic_attention.training.data.sources import open_source
from elastic_attention.training.data.store import FACTS, TABLE, TOKENS, SampleStore
from made_rows import TEMPLATE, make_row, make_rows, make_tokenizer, write_rows

ROWS = make_rows(21)


def build(tmp_path, rows=ROWS, workers=0, name="cache"):
    write_rows(tmp_path / "rows.jsonl", rows)
    return tokenize(tmp_path, workers, name)


def tokenize(tmp_path, workers=0, name="cache"):
    source = open_source(tmp_path / "rows.jsonl")
    return tokenize_source(source, Encoder(make_tokenizer()), tmp_path / name, workers=workers)


def test_store_holds_what_the_encoder_makes(tmp_path):
    store, encoder = build(tmp_path), Encoder(make_tokenizer())
    assert len(store) == 21
    for i, row in enumerate(ROWS):
        sample = encoder.encode(check_record(row, "f:1"), "f:1")
        assert store.read_tokens(i, [(0, len(sample.tokens))]).tolist() == sample.tokens.tolist()
        assert store.read_tokens(i, [(0, 3), (7, 9)]).tolist() == [*sample.tokens[:3], *sample.tokens[7:9]]
        assert store.table[i].tolist()[1:7] == [
            len(sample.tokens), *sample.context, *sample.question, sample.response[0],
        ]  # fmt: skip
        assert store.category_names[store.column("category")[i]] == row["category"]
        assert store.task_names[store.column("task")[i]] == row["metadata"]["task"]


def test_workers_change_nothing(tmp_path):
    one, many = build(tmp_path, name="one"), build(tmp_path, workers=2, name="many")
    for name in (TOKENS, TABLE, FACTS):
        assert (one.folder / name).read_bytes() == (many.folder / name).read_bytes()


def test_second_call_reads_and_does_not_build(tmp_path, monkeypatch):
    first = build(tmp_path)
    monkeypatch.setattr(caching, "_build", None)
    assert build(tmp_path).folder == first.folder


def test_the_key_is_everything_that_decides_the_tokens(tmp_path, monkeypatch):
    source = open_source(write_rows(tmp_path / "a.jsonl", ROWS))
    other = open_source(write_rows(tmp_path / "b.jsonl", [*ROWS[:-1], make_row(50)]))
    copy = open_source(write_rows(tmp_path / "copy.jsonl", ROWS))
    encoder = Encoder(make_tokenizer())
    keys = [
        cache_key(source, encoder),
        cache_key(other, encoder),
        cache_key(source, Encoder(make_tokenizer(TEMPLATE + "!"))),
        cache_key(source, Encoder(make_tokenizer(), {"quiet": True})),
    ]
    assert cache_key(copy, encoder) == keys[0]
    monkeypatch.setattr(caching, "ENCODING_VERSION", 99)
    assert len({*keys, cache_key(source, encoder)}) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_record_is_named_and_nothing_is_left(tmp_path, workers):
    rows = [*ROWS[:12], make_row(answer=""), *ROWS[12:]]
    with pytest.raises(DataError, match=r"^\S*rows\.jsonl:13: 'answer' is empty; fill it in or remove the record\.$"):
        build(tmp_path, rows, workers)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] in ([".lock"], [])


def test_full_disk(tmp_path, monkeypatch):
    def fail(self, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.StoreWriter, "add", fail)
    with pytest.raises(DataError, match=r"No space left on device.*Free some space or set data\.packs\.cache"):
        build(tmp_path)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def test_killed_build_is_cleared_away(tmp_path):
    store = build(tmp_path)
    leftover = store.folder.parent / f".{store.folder.name}.partial-x"
    leftover.mkdir()
    (store.folder / FACTS).unlink()  # not whole: no facts
    assert len(build(tmp_path)) == 21
    assert not leftover.exists()


@pytest.mark.parametrize("name", [TOKENS, TABLE, FACTS])
def test_damaged_store_is_named(tmp_path, name):
    store = build(tmp_path)
    path = store.folder / name
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=f"delete {store.folder}"):
        build(tmp_path)
    with pytest.raises(DataError, match="no whole store"):
        SampleStore(tmp_path)


def _tokenize_and_count(folder, queue):
    queue.put(len(tokenize(folder)))


def test_processes_that_ask_at_once_agree(tmp_path):
    write_rows(tmp_path / "rows.jsonl", ROWS)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_tokenize_and_count, args=(tmp_path, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [21] * 4
    for process in processes:
        process.join()
    assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == 1


def test_default_folder(tmp_path, monkeypatch):
    assert cache_folder(str(tmp_path)) == tmp_path
    monkeypatch.setenv("ELASTIC_ATTENTION_HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / "samples"


def test_table_is_mapped(tmp_path):
    assert isinstance(build(tmp_path).table, np.memmap)
