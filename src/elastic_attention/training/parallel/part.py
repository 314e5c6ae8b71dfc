"""The tokens of a pack that one process holds, where several share it.

Shape letters: n tokens of this process, N tokens of the pack, S samples.
"""

from dataclasses import dataclass, fields

import torch.distributed as dist
from torch import Tensor

from ..data.batch import PackedBatch
from .ranks import naming_lost_ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedPart(PackedBatch):
    """A part of a pack. Facts of tokens are of this part, facts of samples are of whole samples.

    Attributes:
        input_ids, targets, position_ids: (n,), of my tokens.
        cu_seqlens: (S+1,), edges of the samples among my tokens; one that others hold is empty.
        target_counts: (S,) float32, tokens of each whole sample that count.
        group: the processes that hold the other parts.
    """

    target_counts: Tensor
    group: dist.ProcessGroup

    def sum_samples(self, values: Tensor) -> Tensor:
        """Sum of `values` (n,) over the tokens of each whole sample, (S,), the same on every process."""
        # Before any division, so that counts stay whole numbers and all tokens right is exactly 1.
        total = PackedBatch.sum_samples(self, values)
        with naming_lost_ranks():
            dist.all_reduce(total, group=self.group)
        return total

    def count_targets(self) -> Tensor:
        """(S,) float32, of whole samples."""
        return self.target_counts


def cut_pack(batch: PackedBatch, own: slice, group: dist.ProcessGroup) -> PackedPart:
    """The part of a pack that stands at the places `own`."""
    values = {item.name: getattr(batch, item.name) for item in fields(PackedBatch)}
    tokens = {name: values[name][own] for name in ("input_ids", "targets", "position_ids")}
    edges = (batch.cu_seqlens - own.start).clamp(0, own.stop - own.start)
    return PackedPart(**values | tokens | {"cu_seqlens": edges}, target_counts=batch.count_targets(), group=group)
