"""RULER's scores of one answer."""

from __future__ import annotations

import re
from collections.abc import Sequence


def clean_answer(text: str) -> str:
    """An answer as the official scorer sees it: control characters become line breaks, the ends are trimmed."""
    return re.sub(r"[\x00-\x1f]", "\n", text.strip()).strip()


def match_all(answer: str, references: Sequence[str]) -> float:
    """The share of references that stand in the answer; case does not count."""
    answer = clean_answer(answer).lower()
    return sum(reference.lower() in answer for reference in references) / len(references)


def match_part(answer: str, references: Sequence[str]) -> float:
    """1 if any reference stands in the answer, else 0; case does not count."""
    answer = clean_answer(answer).lower()
    return float(any(reference.lower() in answer for reference in references))
