"""Where records come from: JSON lines, Parquet, a Hugging Face dataset on disk, or the project's own tasks."""

from pathlib import Path
from typing import Any, Protocol

from ...errors import DataError
from .jsonl import JsonLinesSource
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
    """Open a file or folder of records.

    Args:
        path: `*.jsonl`, `*.parquet`, or a folder written by the `save_to_disk` of a Hugging Face dataset.

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
    elif path.suffix == ".parquet":
        source = ParquetSource(path)
    else:
        raise DataError(
            f"{path}: {path.suffix or 'a name without an ending'} is unknown; give a .jsonl or .parquet file, or the "
            "folder of a dataset on disk."
        )
    if not len(source):
        raise DataError(f"{path}: holds no record; remove it from data.packs.files or fill it.")
    return source
