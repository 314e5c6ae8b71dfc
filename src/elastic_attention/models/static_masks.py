"""Static masks of other projects: DuoAttention's tables and PruLong's log alphas."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import StreamingConfig
from ..errors import AdapterError
from .released_routers import read_log_alphas
from .tensor_folder import TensorFolder, read_json

TABLE_FILE = "full_attention_heads.tsv"
_BLOCK = 128
_TENSOR_NAMES = ("log_alpha", "log_alphas", "attn_mask_log_alphas")


@dataclass(frozen=True, kw_only=True, slots=True)
class StaticMask:
    """How full every head should be, before anything is cut.

    Attributes:
        kind: "duo_attention", "prulong", or "table" for a table of unknown origin.
        scores: (L, G) float32, larger = fuller.
        threshold: heads below it are sparse unless a share is asked for.
        pattern: what the mask was made for, None if the file does not say.
    """

    kind: str
    scores: Tensor
    threshold: float
    pattern: StreamingConfig | None = None

    def cut(self, msr: float | None) -> Tensor:
        """(L, G) bool, True = sparse: below the threshold, or the share `msr` of the heads."""
        return self.scores < self.threshold if msr is None else mark_sparsest(-self.scores, msr)


def mark_sparsest(rank: Tensor, msr: float) -> Tensor:
    """(…) bool on the host: the round(msr * heads) entries that rank highest; of equal ones the earlier."""
    flat = rank.detach().flatten().cpu()
    chosen = torch.zeros(flat.shape, dtype=torch.bool)
    chosen[flat.argsort(descending=True, stable=True)[: round(msr * len(flat))]] = True
    return chosen.view(rank.shape)


def read_table(path: Path) -> StaticMask:
    """A table of DuoAttention, or one that PruLong exports: rows are layers, columns KV heads, 1 = full.

    Raises:
        AdapterError: an entry is no number, or the rows differ in length; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path} cannot be read as a table ({error}); name a tab-separated text file.") from error
    rows: list[list[float]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append([float(entry) for entry in line.split("\t")])
        except ValueError as error:
            raise AdapterError(f"{path}, line {number}: {error}; every entry must be a number.") from error
        if len(rows[-1]) != len(rows[0]) or not all(map(math.isfinite, rows[-1])):
            raise AdapterError(f"{path}, line {number}: {len(rows[0])} finite numbers are expected, got {line[:80]!r}.")
    if not rows:
        raise AdapterError(f"{path} is empty; a mask needs one row a layer.")
    kind = "duo_attention" if path.name.startswith("full_attention_heads") else "table"
    pattern = _read_pattern(path.parent) if kind == "duo_attention" else None
    return StaticMask(kind=kind, scores=torch.tensor(rows).clamp(0, 1), threshold=0.5, pattern=pattern)


def read_gates(tensors: TensorFolder) -> StaticMask | None:
    """PruLong's gates out of a checkpoint, or out of a file with one (L, G) tensor; None if there are none.

    Raises:
        AdapterError: the tensors are damaged.
    """
    scores = read_log_alphas(tensors)
    if scores is None and len(tensors.names) == 1 and (name := next(iter(tensors.names))) in _TENSOR_NAMES:
        scores = tensors.read(name)
        if scores.ndim != 2 or not scores.is_floating_point() or not bool(torch.isfinite(scores.float()).all()):
            raise AdapterError(
                f"{tensors.root}: {name} must be a finite float tensor (layers, KV heads), got {scores.dtype} "
                f"{tuple(scores.shape)}; export it again."
            )
    # A gate is more open than closed where log alpha is above 0.
    return None if scores is None else StaticMask(kind="prulong", scores=scores.float(), threshold=0.0)


def _read_pattern(folder: Path) -> StreamingConfig | None:
    path = folder / "config.json"
    if not path.is_file():
        return None
    data, sizes = read_json(path), []
    for name in ("sink_size", "recent_size"):
        value = data.get(f"deploy_{name}") or data.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise AdapterError(f"{path}: {name} must be a positive integer, got {value!r}; mend or remove the file.")
        sizes.append(-(-value // _BLOCK) * _BLOCK)
    return StreamingConfig(num_sink_tokens=sizes[0], local_window=sizes[1], block_size=_BLOCK)
