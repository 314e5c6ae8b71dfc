"""What the evaluation runner asks of a suite of tasks: samples with ready prompts, and scores of what a model answers.

A suite is one class and one line in `SUITES`. It is constructed as `Class(name, data=FOLDER_OR_NONE, **options)` and
has what `Suite` lists. The runner builds the samples of a task once, has every method answer the same ones, and calls
`score` on each answer. Rules that keep records comparable:

- A sample depends on (task, length, seed, index, data, tokenizer) alone, so that any part can be made anywhere.
- `prompt_ids` is all that the model reads; `render_prompt` makes it. Prompt and answer together fit `length` tokens.
- A record of a data file that cannot be used becomes a `Skipped` in its place: it is named and counted, the rest goes
  on. A whole file that is missing or unreadable is a `DataError` from `check`, before any model is asked.
- Data that stands in for an official source names itself in `substitutes`; tables carry the mark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, get_args

from elastic_attention.errors import DataError
from elastic_attention.tasks.lengths import TooShort, describe_least, find_working_length
from elastic_attention.tasks.sample import Tokenizer, open_chat

# name -> module below `tasks`, and the class in it. Modules are imported on first use.
SUITES = {
    "mixture": ("kinds_suite", "KindsSuite"),
    "pairs": ("kinds_suite", "PairsSuite"),
    "validation": ("kinds_suite", "ValidationSuite"),
    "ruler": ("ruler.suite", "RulerSuite"),
    "longbench": ("longbench.suite", "LongBenchSuite"),
    "longbench-e": ("longbench.suite", "LongBenchSuite"),
    "longbench-v2": ("longbench.multiple_choice", "MultipleChoiceSuite"),
    "gsm8k": ("problems.suite", "Gsm8kSuite"),
    "aime24": ("problems.suite", "AimeSuite"),
    "almanac": ("longbench.almanac", "AlmanacSuite"),
    "everyday": ("everyday.suite", "EverydaySuite"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteSample:
    """One question, ready to be asked.

    Attributes:
        task: one of the suite's tasks.
        index: identity within (task, length); with the seed it decides the sample.
        length: the `length` that `build` was called with.
        category: what means are grouped by in tables, such as "retrieval" or "single_doc_qa".
        prompt: the text the model reads, chat markers and the beginning of the answer included.
        prompt_ids: its tokens.
        answers: the references, at least one.
        max_new_tokens: the longest answer.
        min_new_tokens: no end of answer before this many tokens.
        stop: texts at which an answer ends; the answer is cut before the first of them.
        target_ids: where given, these tokens are fed instead of the model's own, and the tokens of the `Answer` are
            what the model would have said at each place.
        groups: further labels by which means are reported, such as {"bucket": "4-8k", "difficulty": "hard"}.
        details: what `score` needs besides, such as {"all_classes": [...]}; plain JSON values.
    """

    task: str
    index: int
    length: int
    category: str
    prompt: str
    prompt_ids: tuple[int, ...]
    answers: tuple[str, ...]
    max_new_tokens: int
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    target_ids: tuple[int, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A sample that could not be made, such as a malformed record; `reason` names file, line and remedy."""

    task: str
    index: int
    length: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said: `text` without special tokens and cut at `stop`, and the tokens as they were generated."""

    text: str
    token_ids: tuple[int, ...]


class Suite(Protocol):
    """A benchmark: named tasks, their samples and their scores.

    Attributes:
        name: what records and tables call it.
        tasks: all task names, in the order of the tables.
        default_lengths: asked where the user names no lengths; empty = the model's own context.
        substitutes: task -> name of the data that stands in for the official source; official tasks are absent.
        headline: tasks behind the overall mean.
    """

    name: str
    tasks: tuple[str, ...]
    default_lengths: tuple[int, ...]

    @property
    def substitutes(self) -> Mapping[str, str]:
        """task -> name of the stand-in for its official source."""

    @property
    def headline(self) -> tuple[str, ...]:
        """The tasks that the overall mean is taken over."""

    def describe(self) -> dict[str, Any]:
        """All that decides its samples besides tasks, lengths and seed: options, data files by name and checksum.

        Plain JSON values and no paths of this computer: records hold it, and a resumed run must find it unchanged.
        """

    def check(self, tasks: Sequence[str]) -> None:
        """Raise DataError, naming file and remedy, when the data of `tasks` is missing or unreadable."""

    def count_samples(self, task: str, wanted: int | None) -> int:
        """How many samples `build` can make of a task: `wanted` at most; None = all, or the official number.

        Malformed records count, because `build` names them.
        """

    def find_least_length(self, task: str) -> int:
        """Fewest tokens at which a sample of the task can be made, where that is known without a tokenizer; else 1."""

    def build(
        self, task: str, indexes: Sequence[int], *, length: int, seed: int, tokenizer: Tokenizer
    ) -> Iterator[SuiteSample | Skipped]:
        """The samples with these indexes (below `count_samples`), in that order, one result each.

        The runner asks for a few at a time, in several processes: files are read once a process (`lru_cache`).

        Args:
            length: most tokens of prompt and answer together. Generated prompts fill it, given ones are cut to it; a
                sample that cannot have this length is `Skipped`.
        """

    def score(self, answer: Answer, sample: SuiteSample) -> float:
        """The official score of an answer, in [0, 1]; an empty answer has a score as well."""


def make_or_skip(
    make: Callable[[str, int, int, int, Tokenizer], SuiteSample],
    task: str,
    indexes: Sequence[int],
    *,
    length: int,
    seed: int,
    tokenizer: Tokenizer,
) -> Iterator[SuiteSample | Skipped]:
    """What `make(task, index, length, seed, tokenizer)` gives, or the reason why the data cannot give it."""

    def explain(index: int, error: DataError) -> str:
        if not isinstance(error, TooShort):
            return str(error)
        least = find_working_length(lambda longer: make(task, index, longer, seed, tokenizer), length, error)
        return f"{describe_least(task, length, least)}."

    for index in indexes:
        made: SuiteSample | Skipped
        try:
            made = make(task, index, length, seed, tokenizer)
        except DataError as error:
            made = Skipped(task=task, index=index, length=length, reason=explain(index, error))
        yield made


def render_prompt(
    tokenizer: Tokenizer, text: str, *, answer_prefix: str = "", is_chat: bool = True
) -> tuple[str, list[int]]:
    """A prompt as the model reads it, and its tokens.

    With `is_chat` and a tokenizer that has a chat template, `text` is the user's turn and `answer_prefix` the beginning
    of the assistant's. Otherwise both are plain text, behind the special tokens that the tokenizer puts in front.
    """
    if is_chat and has_chat_template(tokenizer):
        prompt = open_chat(tokenizer, text) + answer_prefix
        return prompt, list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    prompt = text + answer_prefix
    return prompt, list(tokenizer(prompt, add_special_tokens=True)["input_ids"])


def has_chat_template(tokenizer: Tokenizer) -> bool:
    """Can the tokenizer write a conversation? Base models often cannot."""
    return bool(getattr(tokenizer, "chat_template", None))


def open_suite(name: str, *, data: str | Path | None = None, **options: Any) -> Suite:
    """The suite of that name.

    Args:
        data: folder or file with the suite's data; None where it generates everything.
        options: the suite's own settings; a number may be given as text, as a command line has it.

    Raises:
        DataError: an unknown suite or option; names what there is.
    """
    if name not in SUITES:
        raise DataError(f"suite {name!r} is unknown; choose one of {', '.join(SUITES)}.")
    module, attribute = SUITES[name]
    make: Callable[..., Suite] = getattr(import_module(f"{__package__}.{module}"), attribute)
    parameters = signature(make, eval_str=True).parameters
    known = sorted(set(parameters) - {"name", "data"})
    if unknown := sorted(set(options) - set(known)):
        raise DataError(f"suite {name!r} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}.")
    settings = {key: read_setting(value, parameters[key].annotation) for key, value in options.items()}
    return make(name, data=None if data is None else Path(data), **settings)


def read_setting(value: Any, kind: Any) -> Any:
    """The number that a text of digits names, where a setting of this annotation is one; else the value itself.

    What is no number stays a text, which the suite then refuses by name; a folder may be called 2024.
    """
    if isinstance(value, str) and int in (kind, *get_args(kind)):
        with suppress(ValueError):
            return int(value)
    return value


def check_tasks(suite: Suite, tasks: Sequence[str]) -> tuple[str, ...]:
    """The wanted tasks, without repetitions and in the suite's order; all of them for none.

    Raises:
        DataError: names unknown tasks, the known ones, and what `Suite.check` finds.
    """
    if unknown := [task for task in tasks if task not in suite.tasks]:
        raise DataError(f"suite {suite.name!r} has no task {', '.join(unknown)}; choose from {', '.join(suite.tasks)}.")
    chosen = tuple(task for task in suite.tasks if not tasks or task in tasks)
    suite.check(chosen)
    return chosen
