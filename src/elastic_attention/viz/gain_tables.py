"""What routers gain over masks that are the same for all inputs, from the record of `benchmarks/smollm2_quality.py`."""

from collections.abc import Mapping
from typing import Any

from .columns import Column
from .markdown import render_markdown
from .units import MISSING, format_count, format_estimate, format_ratio, format_text, list_rows

KINDS = ("sensitive", "robust", "all")


def render_gains(record: Mapping[str, Any]) -> str:
    """A row a router, mask and place where both have the same MSR: what the router scores above, with 95% intervals."""
    columns = (
        Column(key="router", heading="Routers", format=format_text),
        Column(key="mask", heading="One mask", format=format_text),
        Column(key="place", heading="Same MSR", format=format_text),
        Column(key="n", heading="n, sensitive", format=format_count),
        Column(key="msr_router", heading="MSR there, routers", format=format_ratio),
        Column(key="msr_mask", heading="MSR there, mask", format=format_ratio),
        *(Column(key=kinds, heading=f"Gain, {kinds} kinds", format=format_text) for kinds in KINDS),
    )
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for gain in list_rows(record, "gains"):
        names = {"router": gain["router"], "mask": gain["mask"], "place": f"on the {gain['same_msr_on']}"}
        row = rows.setdefault(tuple(names.values()), names | dict.fromkeys(KINDS, MISSING))
        row[gain["kinds"]] = format_estimate(gain["value"], gain["low"], gain["high"])
        if gain["kinds"] == "sensitive":
            row |= {key: gain[key] for key in ("n", "msr_router", "msr_mask")}
    return render_markdown(columns, list(rows.values()))
