"""The cache of tokenised samples: made once for a file and a tokenizer, by however many processes ask for it."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from ...errors import DataError
from ...workers import end_with_parent
from .encoding import EncodedSample, Encoder
from .record import check_record
from .sources import RecordSource
from .store import FACTS, FORMAT, SampleStore, StoreWriter

# Bound to what `encoding` does: raise it when that changes, so that older stores are not taken for new ones.
ENCODING_VERSION = 1
_ROWS_AT_ONCE = 8

Encoded = tuple[EncodedSample, str, str]


def cache_folder(chosen: str | None = None) -> Path:
    """The folder of all stores: `chosen`, else $ELASTIC_ATTENTION_HOME/samples, else in the user's cache."""
    home = os.environ.get("ELASTIC_ATTENTION_HOME") or Path.home() / ".cache" / "elastic-attention"
    return Path(chosen) if chosen else Path(home) / "samples"


def cache_key(source: RecordSource, encoder: Encoder, bad_records: str = "error") -> str:
    """Identity of a store: content of the records, tokenizer, template, versions. Lengths are applied afterwards."""
    parts = [FORMAT, ENCODING_VERSION, source.digest(), encoder.fingerprint(), bad_records]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def tokenize_source(
    source: RecordSource, encoder: Encoder, folder: Path, *, workers: int = 0, bad_records: str = "error"
) -> SampleStore:
    """Open the store of a source, or make it: records are checked and tokenised one by one, in order.

    A store appears whole or not at all. Processes that ask at the same time wait for the first one. The number of
    workers changes nothing in the result.

    Args:
        bad_records: "error", or "skip": malformed records are left out, and the store's facts say which and why.

    Raises:
        DataError: a record is malformed (file, line, key and remedy are named), none is left, or the disk is full.
    """
    from filelock import FileLock

    target = folder / cache_key(source, encoder, bad_records)
    if (target / FACTS).is_file():
        return SampleStore(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{target.name}.lock"):
            if not (target / FACTS).is_file():
                _build(source, encoder, target, workers, bad_records)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}:
            raise
        raise DataError(
            f"{folder}: tokens cannot be written ({error.strerror}); they take about a byte a character of text. Free "
            "some space or set data.packs.cache."
        ) from error
    return SampleStore(target)


def _build(source: RecordSource, encoder: Encoder, target: Path, workers: int, bad_records: str) -> None:
    prefix = f".{target.name}.partial-"
    for leftover in target.parent.glob(f"{prefix}*"):  # of a killed process; nobody else is here under the lock
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as scratch:
        store = Path(scratch) / "store"
        store.mkdir()
        writer = StoreWriter(store)
        try:
            for row in _encode_all(source, encoder, workers):
                if not isinstance(row, DataError):
                    writer.add(*row)
                elif bad_records == "error":
                    raise row
                else:
                    writer.skip(str(row))
            writer.finish()
        finally:
            writer.close()
        shutil.rmtree(target, ignore_errors=True)
        os.replace(store, target)


class _Chunks(Dataset[list[Encoded | DataError]]):
    """Item i is the encoded rows of chunk i, or their errors: one that is returned keeps its message short."""

    def __init__(self, source: RecordSource, encoder: Encoder) -> None:
        self.source, self.encoder = source, encoder

    def __len__(self) -> int:
        return -(-len(self.source) // _ROWS_AT_ONCE)

    def __getitem__(self, chunk: int) -> list[Encoded | DataError]:
        rows = range(chunk * _ROWS_AT_ONCE, min((chunk + 1) * _ROWS_AT_ONCE, len(self.source)))
        return [self._encode(index) for index in rows]

    def _encode(self, index: int) -> Encoded | DataError:
        where = self.source.where(index)
        try:
            record = check_record(self.source.read(index), where)
            return self.encoder.encode(record, where), record.category, record.task
        except DataError as error:
            return error


def _encode_all(source: RecordSource, encoder: Encoder, workers: int) -> Iterator[Encoded | DataError]:
    from rich.console import Console
    from rich.progress import track

    loader = DataLoader(_Chunks(source, encoder), batch_size=None, num_workers=workers, worker_init_fn=end_with_parent)
    console = Console(stderr=True)
    for chunk in track(loader, "tokenising", transient=True, console=console, disable=not console.is_terminal):
        yield from chunk
