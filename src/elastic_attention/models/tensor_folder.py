"""Tensors of a model folder, found by name and read one at a time; safetensors only."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import AdapterError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class TensorFolder:
    """Lazy view on a safetensors file, or on a folder with one file or with shards and their index.

    Attributes:
        root: the file or folder.
        names: of all tensors.

    Raises:
        AdapterError: a file is missing, damaged, or disagrees with the index; the message names it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files = {root: self._names_in(root)} if root.is_file() else self._find_files()
        self._home = {name: path for path, names in self._files.items() for name in names}
        self.names = frozenset(self._home)

    def _find_files(self) -> dict[Path, list[str]]:
        index = self.root / INDEX_FILE
        if index.is_file():
            return self._read_index(index)
        single = self.root / SINGLE_FILE
        if single.is_file():
            return {single: self._names_in(single)}
        if pickles := sorted(p.name for p in self.root.glob("*.bin")) + sorted(p.name for p in self.root.glob("*.pt")):
            raise AdapterError(
                f"{self.root} holds its weights as {pickles[0]}, which is a pickle and is never loaded; save the model "
                "as safetensors first."
            )
        raise AdapterError(f"{self.root} has neither {INDEX_FILE} nor {SINGLE_FILE}; fetch the checkpoint again.")

    def _read_index(self, index: Path) -> dict[Path, list[str]]:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise AdapterError(f"{index} has no weight_map; fetch the checkpoint again.")
        shards: dict[str, set[str]] = {}
        for name, shard in weight_map.items():
            # A name out of a file is a name only: it must be a file beside the index.
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise AdapterError(f"{index} places {name} in {shard!r}, which is no safetensors file beside it.")
            shards.setdefault(shard, set()).add(name)
        files = {}
        for shard, listed in sorted(shards.items()):
            path = self.root / shard
            found = set(self._names_in(path))
            if missing := sorted(listed - found):
                raise AdapterError(f"{path} misses {missing[:3]}, which {index.name} lists; fetch the shard again.")
            if extra := sorted(found - listed):
                raise AdapterError(
                    f"{path} holds {extra[:3]}, which {index.name} does not list; fetch the index and the shards again."
                )
            files[path] = sorted(found)
        return files

    def _names_in(self, path: Path) -> list[str]:
        with _open_file(path) as reader:
            return list(reader.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header alone."""
        with _open_file(self._home[name]) as reader:
            return tuple(reader.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """One tensor on the host, in the dtype of the file."""
        with _open_file(self._home[name]) as reader:
            return reader.get_tensor(name)


@contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise AdapterError(f"{path} is missing; fetch the checkpoint again.")
    try:
        with safe_open(path, framework="pt") as reader:
            yield reader
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged or truncated ({error}); fetch it again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        AdapterError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise AdapterError(f"{path.parent} has no {path.name}; name the folder of a checkpoint, or fetch it again.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is no valid JSON ({error}); fetch it again.") from error
    if not isinstance(data, dict):
        raise AdapterError(f"{path} must hold a JSON object, got {type(data).__name__}; fetch it again.")
    return data
