"""Where rows come from: JSON lines or a JSON array, Parquet, a Hugging Face dataset on disk, or our own tasks."""

from pathlib import Path
from typing import Any, Protocol

from ...errors import DataError
from .json_array import JsonArraySource
from .jsonl import JsonLinesSource
from .record import check_keys
from .tables import DatasetSource, ParquetSource


class RecordSource(Protocol):
    """Rows by number, read one at a time; nothing but their places is held in memory."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def read(self, index: int) -> Any:
        """The parsed, unchecked row. Raises DataError when it cannot be parsed."""
        ...

    def where(self, index: int) -> str:
        """File and line of a row, for messages."""
        ...

    def digest(self) -> str:
        """Checksum of everything that the rows depend on."""
        ...


def open_source(path: str | Path) -> RecordSource:
    """`open_rows` of records; a table's columns are those of a record.

    Raises:
        DataError: as in `open_rows`, or a table has other columns.
    """
    source = open_rows(path)
    if isinstance(source, ParquetSource | DatasetSource):
        check_keys(source.columns, str(path))
    return source


def open_rows(path: str | Path) -> RecordSource:
    """Open a file or folder of rows.

    Args:
        path: `*.jsonl`, `*.json` (one array), `*.parquet`, or a folder written by the `save_to_disk` of a Hugging Face
            dataset.

    Raises:
        DataError: it does not exist, is empty, or is none of these; or a table needs pyarrow, which is missing.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file; check data.packs.files of the recipe.")
    source: RecordSource
    if path.is_dir():
        source = DatasetSource(path)
    elif path.suffix == ".jsonl":
        source = JsonLinesSource(path)
    elif path.suffix == ".json":
        source = JsonArraySource(path)
    elif path.suffix == ".parquet":
        source = ParquetSource(path)
    else:
        raise DataError(
            f"{path}: {path.suffix or 'a name without an ending'} is unknown; give a .jsonl, .json or .parquet file, "
            "or the folder of a dataset on disk."
        )
    if not len(source):
        raise DataError(f"{path}: holds no record; remove it from data.packs.files or fill it.")
    return source
