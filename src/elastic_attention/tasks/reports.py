"""Countries' reports as documents: lines in order, cut to a length, with or without some field."""

from __future__ import annotations

import re
from dataclasses import dataclass

from elastic_attention.tasks.corpora import Country
from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.passages import Passage, cut_document, split_lines
from elastic_attention.tasks.sample import encode
from elastic_attention.tasks.subject import MIN_PROFILE_CHARS, profile_document

OVERVIEW = "Economic overview"
MAX_FACT_CHARS = 160


@dataclass(frozen=True, slots=True)
class Report:
    """The lines of a country's profile with their token counts."""

    country: Country
    lines: Passage

    def field(self, index: int) -> str:
        """The field that a line is about."""
        return self.lines.units[index].lstrip("\n").partition(f" of {self.country.name}: ")[0]

    def value(self, index: int) -> str:
        """What a line says."""
        return self.lines.units[index].partition(f" of {self.country.name}: ")[2]

    def index_of(self, field: str) -> int | None:
        """The line of a field, or None unless there is exactly one."""
        found = [i for i in range(len(self.lines.units)) if self.field(i) == field]
        return found[0] if len(found) == 1 else None

    def askable(self) -> list[int]:
        """Lines whose field occurs once, is more than a bare number, and says something short."""
        fields = [self.field(i) for i in range(len(self.lines.units))]
        return [
            i
            for i, field in enumerate(fields)
            if fields.count(field) == 1 and re.match(r"[A-Z][a-z]{3}", field) and len(self.value(i)) <= MAX_FACT_CHARS
        ]

    def window(self, num_tokens: int, around: int, without: int | None = None) -> str:
        """Consecutive lines of `num_tokens` at most, the line `around` among them, less the line `without`."""
        counts, first, last = self.lines.counts, around, around + 1
        left = num_tokens - counts[around]
        while True:
            if last < len(counts) and counts[last] <= left:
                left, last = left - counts[last], last + 1
            elif first > 0 and counts[first - 1] <= left:
                left, first = left - counts[first - 1], first - 1
            else:
                break
        return "".join(self.lines.units[i] for i in range(first, last) if i != without).lstrip("\n")


def draw_reports(draw: Draw, field: str | None = None) -> list[Report]:
    """The reports of the split's countries in random order; with `field`, those that have exactly one such line."""
    countries = [country for country in draw.countries() if len(country.profile) >= MIN_PROFILE_CHARS]
    draw.rng.shuffle(countries)
    reports = [Report(c, cut_document(profile_document(c), split_lines, draw.tokenizer)) for c in countries]
    return [report for report in reports if field is None or report.index_of(field) is not None]


def fill_room(draw: Draw, reports: list[Report], room: int, num_least: int) -> list[tuple[Report, int]]:
    """The first reports, `num_least` or more, that together fill `room` tokens, and the tokens that each may take."""
    chosen: list[tuple[Report, int]] = []
    for report in reports:
        if len(chosen) >= num_least and sum(share for _, share in chosen) >= room:
            break
        title = len(encode(report.country.name, draw.tokenizer)) + 8  # tokens of the document's heading
        chosen.append((report, min(sum(report.lines.counts) + title, room // num_least)))
    excess = sum(share for _, share in chosen) - room
    last, share = chosen[-1]
    return [*chosen[:-1], (last, max(share - max(excess, 0), 64))]


def join_documents(titles_and_texts: list[tuple[str, str]]) -> str:
    """Numbered documents, one after the other."""
    return "\n\n".join(f"Document {i}: {title}\n{text}" for i, (title, text) in enumerate(titles_and_texts, 1))
