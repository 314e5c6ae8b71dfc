"""Files of any size: one record at a time is in memory, and packs hold the tokens of their own samples alone."""

import tracemalloc
import weakref

from elastic_attention.training.data.caching import tokenize_source
from elastic_attention.training.data.corpus import Corpus
from elastic_attention.training.data.encoding import Encoder
from elastic_attention.training.data.sources import open_source
from made_rows import make_row, make_rows, make_tokenizer, write_rows


class Row(dict):
    """A row that can be watched."""


class WatchedSource:
    """A source that counts how many of its rows are alive at once."""

    def __init__(self, source):
        self.source, self.alive, self.most = source, 0, 0
        self.where, self.digest = source.where, source.digest

    def __len__(self):
        return len(self.source)

    def read(self, index):
        row = Row(self.source.read(index))
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(row, self.forget)
        return row

    def forget(self):
        self.alive -= 1


def test_one_record_at_a_time_is_in_memory(tmp_path):
    source = WatchedSource(open_source(write_rows(tmp_path / "rows.jsonl", [make_row(i) for i in range(100)])))
    store = tokenize_source(source, Encoder(make_tokenizer()), tmp_path / "cache")
    assert len(store) == 100 and source.most == 1 and source.alive == 0


def measure_opening(folder, count):
    """Peak bytes of Python and NumPy while a corpus that is tokenised already is opened."""
    path, encoder = write_rows(folder / f"{count}.jsonl", make_rows(count)), Encoder(make_tokenizer())
    tokenize_source(open_source(path), encoder, folder / "cache")
    tracemalloc.start()
    corpus = Corpus([open_source(path)], encoder, capacity=4000, over_long="error", cache=str(folder / "cache"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(corpus) == count
    return most


def test_an_open_corpus_holds_integers_alone(tmp_path):
    """What a sample adds is a few integers, far less than its kilobyte of tokens."""
    measure_opening(tmp_path, 10)  # imports and caches are not of the corpus
    few, many = measure_opening(tmp_path, 100), measure_opening(tmp_path, 1000)
    assert (many - few) / 900 < 200
