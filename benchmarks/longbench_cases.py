"""Random cases for LongBench's scorers: the same ones on any machine and in any version of Python."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

CASES, CHUNK, SHOWN = 10_000, 500, 40
METRICS = ("qa_f1", "qa_f1_zh", "rouge", "rouge_zh", "classification", "retrieval", "retrieval_zh", "count", "code_sim")
# Enough words that texts share some, and few enough that they do not share all.
ENGLISH_TEXT = """
the a an river council of report 1987 budget new York Paris Dr. it's U.S. well-known energy 42 law and in to was
unanswerable yes no Mary committee annual 3.5% growth treaty, however state-owned (NASA) "quoted" museum
"""
CHINESE_TEXT = """
北京 上海 政府 工作 报告 的 了 在 是 会议 讨论 经济 发展
2021 年 公司 产品 用户 问题 答案 GDP AI 研究 教育 ， 。 、 （ ）
"""
CODE_TEXT = 'x = y + self . value ( ) [ i ] for in range len return if not None def " , : int >= =='
ENGLISH, CHINESE, CODE = ENGLISH_TEXT.split(), CHINESE_TEXT.split(), 20 * CODE_TEXT.split() + ["//", "#", "`"]
CLASSES = [
    *("Food", "Other entity", "Other number", "Number of something", "Number", "Individual", "Group", "person", "City"),
    *("Group or organization of person", "Title of a person", "Other location", "location", "Date", "Food", "体育"),
]
Case = tuple[str, str, list[str]]


class Dice:
    """Random choices built on `random.Random.random` alone, whose numbers Python promises never to change."""

    def __init__(self, seed: str) -> None:
        self._source = random.Random(seed)

    def below(self, bound: int) -> int:
        """A number in [0, bound)."""
        return int(self._source.random() * bound)

    def pick(self, items: Sequence[Any]) -> Any:
        """One of the items."""
        return items[self.below(len(items))]

    def happens(self, chance: float) -> bool:
        """True with this chance."""
        return self._source.random() < chance


def make_cases(metric: str, count: int = CASES, seed: str = "golden") -> Iterator[Case]:
    """`count` cases (prediction, answer, all classes) of a metric; the same ones everywhere."""
    makers: dict[str, Callable[[Dice], Case]] = {
        "qa_f1": lambda dice: make_texts(dice, ENGLISH, " ", 12),
        "rouge": lambda dice: make_texts(dice, ENGLISH, " ", 40),
        "qa_f1_zh": lambda dice: make_texts(dice, CHINESE, "", 12),
        "rouge_zh": lambda dice: make_texts(dice, CHINESE, "", 30),
        "classification": make_classes,
        "count": lambda dice: make_numbers(dice, ""),
        "retrieval": lambda dice: make_numbers(dice, "Paragraph "),
        "retrieval_zh": lambda dice: make_numbers(dice, "段落"),
        "code_sim": make_code,
    }
    for index in range(count):
        yield makers[metric](Dice(f"{seed}/{metric}/{index}"))


def make_texts(dice: Dice, words: Sequence[str], joint: str, most: int) -> Case:
    """An answer, and the same with words left out, put in, moved, in capitals, in several lines and sentences."""
    answer = [dice.pick(words) for _ in range(dice.below(most) + (not dice.happens(0.02)))]
    said, keep = [], dice.below(11) / 10
    for word in answer:
        if dice.happens(0.1):
            said.append(dice.pick(words))
        said.append(word if dice.happens(keep) else dice.pick(words))
        if dice.happens(0.1):
            said[-1] = said[-1].upper()
    if dice.happens(0.3):
        said = said[dice.below(len(said) + 1) :] + said[: dice.below(len(said) + 1)]
    texts = []
    for part in (said, answer):
        joints = [dice.pick((joint,) * 8 + (". ", ".", ", ", "\n", "  ", " . ")) for _ in part]
        texts.append("".join(word + mark for word, mark in zip(part, joints, strict=True)))
    if dice.happens(0.02):
        texts[0] = dice.pick(("", " ", ".", "...", "\n", "the", ". . "))
    return texts[0], texts[1], []


def make_classes(dice: Dice) -> Case:
    """Some classes, one of them right, some of them named."""
    classes = [dice.pick(CLASSES) for _ in range(1 + dice.below(10))]
    answer = dice.pick(classes) if dice.happens(0.9) else dice.pick(CLASSES)
    said = [dice.pick((answer, dice.pick(classes), "Type:", "xyz")) for _ in range(dice.below(5))]
    return dice.pick((" ", ", ", "\n")).join(said), answer, classes


def make_numbers(dice: Dice, label: str) -> Case:
    """Numbers with words around them."""
    answer = str(dice.below(30))
    choices = (answer, answer, answer, label + answer, str(dice.below(30)), "0" + answer, "Paragraph", "٣", "3.5", "is")
    said = [dice.pick(choices) for _ in range(dice.below(7))]
    return dice.pick((" ", "", ", ", "\n")).join(said), label + answer, []


def make_code(dice: Dice) -> Case:
    """A line of code, and several lines that may hold it, comments and fences among them."""
    line = dice.pick((" ", "")).join(dice.pick(CODE) for _ in range(dice.below(24)))
    if dice.happens(0.05):
        line = " " * dice.below(9) + line * 6  # beyond 200 characters, difflib treats frequent ones apart
    lines = ["".join(c if dice.happens(0.9) else dice.pick(CODE) for c in line)]
    for _ in range(dice.below(3)):
        lines.insert(dice.below(2), dice.pick(("# note", "```python", "// note", "", "    ", dice.pick(CODE), line)))
    return "\n" * dice.below(3) + "\n".join(lines), line, []


def make_records(task: str, metric: str, count: int = 200) -> list[dict[str, Any]]:
    """What a model said to `count` records of a task; some answers have several lines, some records several answers."""
    classes = list(dict.fromkeys(CLASSES))
    records = []
    for index, (prediction, answer, _) in enumerate(make_cases(metric, count, f"records of {task}")):
        dice = Dice(f"{task}/{index}")
        if metric == "classification":
            answer = dice.pick(classes)
            prediction = dice.pick((answer, prediction, f"{answer} {dice.pick(classes)}"))
        answers = [answer]
        if metric in ("qa_f1", "qa_f1_zh", "rouge_zh") and dice.happens(0.4):
            answers.append(prediction.split("\n")[0][: dice.below(40)] + answer[:9])
        if dice.happens(0.3):
            prediction = dice.pick(("\n", "\n\n", "")) + prediction + "\n" + answer
        length = dice.below(12_000)
        records.append({"prediction": prediction, "answers": answers, "length": length, "all_classes": classes})
    return records


def make_responses(count: int = CASES) -> Iterator[str]:
    """Answers to the multiple choices of LongBench-v2."""
    parts = ("The correct answer is ", "(", ")", "A", "B", "C", "D", "E", "*", "**", "a", "\n", " ", "the answer")
    for index in range(count):
        dice = Dice(f"responses/{index}")
        yield "".join(
            dice.pick(
                (parts[0], f"{parts[0]}({dice.pick('ABCDE')})", f"{parts[0]}**{dice.pick('ABCD')}", dice.pick(parts))
            )
            for _ in range(dice.below(7))
        )


def digest(values: Sequence[Any]) -> list[str]:
    """A checksum for every `CHUNK` values, of the shortest decimals that give them back."""
    chunks = [values[i : i + CHUNK] for i in range(0, len(values), CHUNK)]
    return [hashlib.sha256("\n".join(map(repr, chunk)).encode()).hexdigest()[:16] for chunk in chunks]
