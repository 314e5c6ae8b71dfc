"""Sums over samples that stay on the device until a step is over, by name of a category or task."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Tally:
    """Sums of several numbers a sample, by name.

    Args:
        names: what is told apart; fixed, so that the tallies of all ranks can be added.
        fields: of a sample.
        device: where the sums are.

    Attributes:
        table: (names, 1 + fields) float64, the number of samples and the sums; adding two tables joins two tallies.
    """

    def __init__(self, names: Sequence[str], fields: Sequence[str], device: torch.device) -> None:
        self.names, self.fields = tuple(names), tuple(fields)
        self.table = torch.zeros(len(self.names), 1 + len(self.fields), dtype=torch.float64, device=device)

    def add(self, names: Sequence[str], **values: Tensor) -> None:
        """Enter samples: the name of each, and of each field a tensor (samples,)."""
        place = torch.tensor([self.names.index(name) for name in names], device=self.table.device)
        is_of = torch.nn.functional.one_hot(place, len(self.names)).T.double()
        columns = [torch.ones_like(place), *(values[field].detach() for field in self.fields)]
        # A product, not a scatter: sums come out the same every time.
        self.table += is_of @ torch.stack([column.double() for column in columns], dim=1)

    def counts(self) -> dict[str, int]:
        """Samples of each name that has any."""
        return {name: int(row[0]) for name, row in zip(self.names, self.table.tolist(), strict=True) if row[0]}

    def total(self, field: str) -> float:
        """Sum of a field over all samples."""
        return float(self.table[:, 1 + self.fields.index(field)].sum())

    def means(self) -> dict[str, dict[str, float]]:
        """Field -> name -> mean over its samples, for the names that have any."""
        rows = {name: row for name, row in zip(self.names, self.table.tolist(), strict=True) if row[0]}
        return {
            field: {name: row[i] / row[0] for name, row in rows.items()} for i, field in enumerate(self.fields, start=1)
        }
