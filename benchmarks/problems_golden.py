"""Golden scores of GSM8K and AIME 2024: run the published scorers on random answers and note what they say.

`python benchmarks/problems_golden.py FOLDER OUTPUT`, where FOLDER is a clone of github.com/openai/grade-school-math, in
an environment with lm-evaluation-harness 0.4.13. The output holds strings, numbers and checksums alone. Tests make the
same answers again from their seeds and score them with this project's rules.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from golden import write_golden
from longbench_cases import CASES, SHOWN, Dice, digest

SOLUTION = (
    "Then ",
    "$",
    "1,234",
    "18",
    "18",
    "-3",
    "3.50",
    "7.",
    ".",
    ",",
    "#### ",
    "####",
    "\n",
    " apples",
    " = ",
    "0",
)
BOXED: tuple[str, ...] = (
    "\\boxed{",
    "\\boxed ",
    "\\fbox{",
    "}",
    "}",
    "{",
    "$",
    "25",
    "25",
    "025",
    "x=",
    "xyz=",
    " = ",
    " ",
    "\\text{ cm}",
)
BOXED += (
    "\\%",
    "^\\circ",
    "^{\\circ}",
    "\\left",
    "\\right",
    "\\!",
    "\\\\",
    "\\$",
    "\n",
    ".",
    "1/2",
    "\\frac12",
    "\\sqrt",
)
Case = tuple[str, str]


def make_answers(rule: str, count: int = CASES) -> Iterator[Case]:
    """(answer, reference) pairs of a rule; the same ones everywhere."""
    for index in range(count):
        dice = Dice(f"{rule}/{index}")
        if rule == "boxed":
            said = [dice.pick(BOXED) for _ in range(dice.below(7))]
            if dice.happens(0.5):
                said.insert(dice.below(len(said) + 1), f"\\boxed{{{dice.pick(BOXED)}{dice.pick(('25', '7'))}}}")
            yield "".join(said), dice.pick(("25", "25", "7", "025"))
        else:
            number = dice.pick(("18", "1,234", "-3", "3.50", "0", "7."))
            said = [dice.pick(SOLUTION) for _ in range(dice.below(7))]
            if dice.happens(0.6):
                told = dice.pick(("", "#### ", "#### ", "$")) + dice.pick((number, number, number.replace(",", "")))
                said.insert(dice.below(len(said) + 1), told)
            yield "".join(said), f"It is {dice.pick(SOLUTION)}.\n#### {number}"


def run_official(folder: Path) -> dict[str, Any]:
    """Everything that the golden file holds."""
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter
    from lm_eval.tasks.aime.utils import process_results

    spec = importlib.util.spec_from_file_location("dataset", folder / "grade_school_math" / "dataset.py")
    assert spec is not None and spec.loader is not None
    official = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(official)
    flexible = RegexFilter(regex_pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
    ignored = [",", "\\$", "(?s).*#### ", "\\.$"]

    def match_last(answer: str, reference: str) -> float:
        (found,) = flexible.apply([[answer]], [{}])
        said = exact_match_hf_evaluate(found, [reference], regexes_to_ignore=ignored, ignore_case=True)
        return float(said["exact_match"])

    scorers: dict[str, Callable[[str, str], float]] = {
        "marked": lambda answer, reference: float(official.is_correct(answer, {"answer": reference})),
        "last": match_last,
        "boxed": lambda answer, reference: float(process_results({"Answer": reference}, [answer])["exact_match"]),
    }
    return {rule: describe(list(make_answers(rule)), score) for rule, score in scorers.items()}


def describe(cases: Sequence[Case], score: Callable[[str, str], float]) -> dict[str, Any]:
    """Checksums of all scores, and some cases in full."""
    scores = [score(*case) for case in cases]
    shown = [[*case, value] for case, value in zip(cases[:SHOWN], scores[:SHOWN], strict=True)]
    return {"digests": digest(scores), "right": sum(scores), "cases": shown}


if __name__ == "__main__":
    write_golden(__doc__, "openai/grade-school-math", run_official)
