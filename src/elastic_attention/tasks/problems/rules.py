"""Which number an answer gives: the rules of GSM8K's authors and of lm-evaluation-harness, string for string.

Golden tests hold them against that code on 10,000 answers each (`benchmarks/problems_golden.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable

_MARKED = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
# What a boxed answer may have around its number, in the order in which it is taken away.
_IGNORED = (("\n", ""), ("\\!", ""), ("\\\\", "\\"), *((mark, "") for mark in (
    "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")))  # fmt: skip


def find_marked(text: str) -> str | None:
    """The number behind the first "#### ", without thousands separators; GSM8K's own rule. None where there is none."""
    found = _MARKED.search(text)
    return found[1].replace(",", "") if found else None


def match_marked(text: str, reference: str) -> bool:
    """Is the marked number that of the reference solution? Digit for digit, so that 18.0 is not 18."""
    found = find_marked(text)
    return found is not None and found == find_marked(reference)


def match_last(text: str, reference: str) -> bool:
    """Is the last number of the text that of the reference solution? The "flexible" rule of the harness.

    Thousands separators, dollar signs and a stop at the end do not count.
    """
    found = _NUMBER.findall(text)
    return bool(found) and _strip_number(found[-1]) == _strip_number(reference)


def find_boxed(text: str) -> str:
    """What the last "\\boxed" holds, else what stands between the first and the last dollar sign, else all.

    The form "\\boxed 7" goes first wherever it occurs; "\\fbox" never counts, because the harness does not open it.
    """
    if "\\boxed " in text:
        return text.split("\\boxed ")[-1].split("$")[0]
    boxed = _find_braces(text, text.rfind("\\boxed"))
    if boxed is not None and boxed.startswith("\\boxed{"):
        return boxed.removeprefix("\\boxed{")[:-1]
    first, last = text.find("$"), text.rfind("$")
    return text[first + 1 : last] if last > first else text


def match_boxed(text: str, reference: str) -> bool:
    """Is the boxed answer the whole number of the reference? The harness's rule for AIME.

    Blanks, units in "\\text{ …}", signs of degrees and per cent, and a name of two letters before "=" do not count;
    007 is not 7.
    """
    return _strip_answer(find_boxed(text)) == reference


RULES: dict[str, Callable[[str, str], bool]] = {"marked": match_marked, "last": match_last, "boxed": match_boxed}
"""(answer, reference) -> is it right?"""


def _find_braces(text: str, start: int) -> str | None:
    """The text from `start` to the brace that closes the first one there."""
    depth = 0
    for place in range(start, len(text)) if start >= 0 else ():
        depth += (text[place] == "{") - (text[place] == "}")
        if text[place] == "}" and depth == 0:
            return text[start : place + 1]
    return None


def _strip_number(text: str) -> str:
    bare = re.sub(r"(?s).*#### ", "", text.replace(",", "").replace("$", ""))
    return re.sub(r"\.$", "", bare).lower()


def _strip_answer(text: str) -> str:
    """What is left of a boxed answer; only whole numbers are ever asked for, so fractions need no form of their own."""
    for mark, kept in _IGNORED:
        text = text.replace(mark, kept)
    before, _, behind = text.partition("\\text{ ")
    text = (text if "\\text{ " in behind else before).replace("\\%", "")
    text = re.sub(r"^\.|(?<=[ {])\.", "0.", text)  # which makes a name longer
    name, _, value = text.partition("=")
    if text.count("=") == 1 and len(name) <= 2:
        text = value
    return text.replace(" ", "")
