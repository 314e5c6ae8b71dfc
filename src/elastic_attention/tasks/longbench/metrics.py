"""LongBench's metrics, to the last bit: each compares one answer with one reference.

Quirks of the official scorers are kept where they decide a score, and named. Golden tests hold every metric against
the official code on 10,000 cases (`benchmarks/longbench_golden.py`).
"""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Callable, Sequence

from elastic_attention.tasks.longbench.chinese import score_chinese_f1, score_chinese_rouge_l
from elastic_attention.tasks.longbench.rouge import score_rouge_l
from elastic_attention.tasks.longbench.words import score_word_f1

Metric = Callable[[str, str, Sequence[str]], float]
"""(prediction, answer, all classes of the task) -> score in [0, 1]."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score_qa_f1(prediction: str, answer: str) -> float:
    """F1 of the words of both texts, in lower case, without punctuation and articles."""
    return score_word_f1(_normalise(prediction), _normalise(answer))


def score_classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """One over the number of classes that the prediction names, if the right one is among them.

    A class whose name is part of the right one's does not count, but the official loop removes such a class from the
    list that it walks along, and so never looks at the next one.
    """
    named = [name for name in classes if name in prediction]
    place = 0
    while place < len(named):
        if named[place] != answer and named[place] in answer:
            named.remove(named[place])
        place += 1
    return 1.0 / len(named) if answer in named else 0.0


def score_count(prediction: str, answer: str) -> float:
    """Share of the numbers in the prediction that are the answer."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def score_retrieval(prediction: str, answer: str, label: str = "Paragraph ") -> float:
    """Share of the numbers in the prediction that are the number behind `label` in the answer.

    Raises:
        ValueError: the answer has no such number.
    """
    found = re.search(label + r"(\d+)", answer)
    if found is None:
        raise ValueError(f"the answer {answer!r} must name a number as in '{label}3'.")
    return score_count(prediction, found[1])


def score_code_similarity(prediction: str, answer: str) -> float:
    """Similarity of the answer and the prediction's first line that looks like code, in hundredths.

    Lines with a back quote, `#` or `//` do not look like code. The similarity is difflib's, which is what fuzzywuzzy
    uses without its C extension; rapidfuzz and Levenshtein give other numbers.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, answer).ratio()) / 100


def _normalise(text: str) -> list[str]:
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


METRICS: dict[str, Metric] = {
    "qa_f1": lambda prediction, answer, _: score_qa_f1(prediction, answer),
    "qa_f1_zh": lambda prediction, answer, _: score_chinese_f1(prediction, answer),
    "rouge": lambda prediction, answer, _: score_rouge_l(prediction, answer),
    "rouge_zh": lambda prediction, answer, _: score_chinese_rouge_l(prediction, answer),
    "classification": score_classification,
    "retrieval": lambda prediction, answer, _: score_retrieval(prediction, answer),
    "retrieval_zh": lambda prediction, answer, _: score_retrieval(prediction, answer, "段落"),
    "count": lambda prediction, answer, _: score_count(prediction, answer),
    "code_sim": lambda prediction, answer, _: score_code_similarity(prediction, answer),
}
