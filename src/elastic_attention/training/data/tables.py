"""Records in tables: Parquet files, and Hugging Face datasets that `save_to_disk` wrote (Arrow files)."""

import abc
import bisect
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...errors import DataError

_STATE, _SPLITS = "state.json", "dataset_dict.json"


class _Table(abc.ABC):
    """Rows in groups of which one is held at a time: the rows of a group are read together."""

    def __init__(self, path: Path, files: list[Path], counts: list[int], columns: list[str]) -> None:
        self.path, self.columns, self._files = path, columns, files
        self._starts = [0]
        for count in counts:
            self._starts.append(self._starts[-1] + count)
        self._held: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None}

    def where(self, index: int) -> str:
        """File and row, counted from 1."""
        return f"{self.path}: row {index + 1}"

    def digest(self) -> str:
        """Checksum of the files."""
        checksum = hashlib.sha256()
        for path in self._files:
            with path.open("rb") as file:
                checksum.update(hashlib.file_digest(file, "sha256").digest())
        return checksum.hexdigest()

    def read(self, index: int) -> Any:
        """The row as plain Python values.

        Raises:
            DataError: the bytes of its group are damaged, or its text is no UTF-8.
        """
        group = bisect.bisect_right(self._starts, index) - 1
        try:
            if self._held is None or self._held[0] != group:
                self._held = group, self._load(group)
            return self._held[1].slice(index - self._starts[group], 1).to_pylist()[0]
        except (_import_arrow(self.path).ArrowException, OSError, ValueError) as error:
            raise DataError(f"{self.where(index)}: cannot be read ({error}); write the table again.") from error

    @abc.abstractmethod
    def _load(self, group: int) -> Any:
        """The rows of a group, as an Arrow table or record batch."""


class ParquetSource(_Table):
    """A Parquet file; its row groups are the groups.

    Raises:
        DataError: the file is damaged, or pyarrow is missing.
    """

    def __init__(self, path: Path) -> None:
        arrow = _import_arrow(path)
        try:
            file = arrow.parquet.ParquetFile(path)
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: no readable Parquet file ({error}); write it again.") from error
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        super().__init__(path, [path], groups, file.schema_arrow.names)

    def _load(self, group: int) -> Any:
        return _import_arrow(self.path).parquet.ParquetFile(self.path).read_row_group(group)


class DatasetSource(_Table):
    """A folder written by `Dataset.save_to_disk`; its record batches are the groups, mapped into memory.

    Raises:
        DataError: the folder is no such dataset, holds several splits or is damaged, or pyarrow is missing.
    """

    def __init__(self, path: Path) -> None:
        if (path / _SPLITS).is_file():
            splits = sorted(child.parent.name for child in path.glob(f"*/{_STATE}"))
            raise DataError(
                f"{path}: holds several splits; name the folder of one, such as {path / (splits or ['?'])[0]}."
            )
        files = list(_shards_of(path))
        arrow = _import_arrow(path)
        self._groups: list[tuple[Path, int]] = []
        counts, columns = [], []
        for file in files:
            try:
                table = _map_table(arrow, file)
            except (arrow.ArrowException, OSError) as error:
                raise DataError(f"{file}: no readable Arrow file ({error}); save the dataset again.") from error
            columns = table.schema.names
            for number, batch in enumerate(table.to_batches()):
                self._groups.append((file, number))
                counts.append(batch.num_rows)
        super().__init__(path, files, counts, columns)

    def _load(self, group: int) -> Any:
        file, number = self._groups[group]
        return _map_table(_import_arrow(self.path), file).to_batches()[number]


def _shards_of(path: Path) -> Iterable[Path]:
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        # Names only: a dataset's files lie beside its state, wherever the state says they are.
        names = [Path(entry["filename"]).name for entry in state["_data_files"]]
    except FileNotFoundError:
        raise DataError(
            f"{path}: is a folder without {_STATE}; give a file, or a folder written by a dataset's save_to_disk."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path / _STATE}: is damaged ({error!r}); save the dataset again.") from error
    if state.get("_indices_data_files"):
        raise DataError(f"{path}: is a selection by indices; call flatten_indices() and save it again.")
    return (path / name for name in names)


def _map_table(arrow: Any, file: Path) -> Any:
    return arrow.ipc.open_stream(arrow.memory_map(str(file))).read_all()


def _import_arrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{path}: tables need pyarrow. Install it with: pip install 'elastic-attention[data]'; or give JSON lines."
        ) from error
    return pyarrow
