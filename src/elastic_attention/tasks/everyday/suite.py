"""The suite of everyday facts: what is left where neither kind of prompt, nor texts, nor wordings were trained on.

One fact at a random depth of a haystack, begun again at the end of a plain text, or asked for in a chat.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache
from inspect import cleandoc
from pathlib import Path

from elastic_attention.errors import DataError
from elastic_attention.tasks.corpora import load_corpora
from elastic_attention.tasks.corpora_suite import CorporaSuite
from elastic_attention.tasks.drawing import take_split
from elastic_attention.tasks.everyday.wordings import REPEATED, WORDINGS, draw_fact
from elastic_attention.tasks.passages import split_sentences
from elastic_attention.tasks.ruler.draft import Draft, find_size
from elastic_attention.tasks.ruler.scoring import match_part
from elastic_attention.tasks.sample import Tokenizer
from elastic_attention.tasks.suite import Answer, SuiteSample, render_prompt

CHAT = "_chat"
SEPARATORS = {"lines": "\n", "prose": " ", "document": "\n"}
# Of the units before the fact: at 2,048 tokens neither a sink of 64 nor a window of 512 shows it.
FIRST_DEPTH, LAST_DEPTH = 0.1, 0.7
# A chat may answer in a whole sentence; a plain text goes on with the answer at once.
LONGEST_CHAT, LONGEST_PLAIN = 32, 12
MAX_DRAWS = 100
DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)


class EverydaySuite(CorporaSuite):
    """Everyday facts; see `Suite` for what its methods promise.

    A sample is as long as its length allows: one more unit of haystack would not fit. Wordings take turns.

    Args:
        data: folder of `tasks.corpora` for prose and documents; None takes the small texts in the package.
    """

    tasks = headline = tuple(f"{haystack}{way}" for haystack in SEPARATORS for way in ("", CHAT))
    default_lengths: tuple[int, ...] = (2048, 4096)
    default_split = "heldout_format"
    default_samples = 100

    def __init__(self, name: str, *, data: Path | None = None) -> None:
        super().__init__(name, data=data)

    def score(self, answer: Answer, sample: SuiteSample) -> float:
        """1 if the fact's answer stands in what the model said."""
        return match_part(answer.text, sample.answers)

    def draft(self, task: str, index: int, *, length: int, seed: int) -> Draft:
        """A sample before its size is settled; its units are lines or sentences."""
        rng, haystack = random.Random(f"{seed}/everyday/{task}/{length}/{index}"), task.removesuffix(CHAT)
        units = rng.choice(REPEATED) if haystack == "lines" else read_units(haystack, self.data)
        wording, first, text = name_wording(index), rng.randrange(len(units)), "\n".join(units).lower()
        drawn = (draw_fact(wording, rng) for _ in range(MAX_DRAWS))
        fact = next((fact for fact in drawn if fact.answer.lower() not in text), None)
        if fact is None:
            raise DataError(f"the texts hold {MAX_DRAWS} drawn answers of {wording!r} already; use other texts.")
        depth = rng.uniform(FIRST_DEPTH, LAST_DEPTH)
        ending = f"\n\n{fact.question}" if task.endswith(CHAT) else ""

        def write(num_units: int) -> str:
            # Short texts go round.
            body = [units[(first + i) % len(units)] for i in range(num_units)]
            body.insert(int(num_units * depth), fact.sentence)
            return SEPARATORS[haystack].join(body) + ending

        return Draft(write=write, answer_prefix="" if ending else f"\n\n{fact.beginning}", answers=(fact.answer,))

    def render(self, task: str, draft: Draft, num_units: int, tokenizer: Tokenizer) -> tuple[str, list[int]]:
        """The prompt with so many units of haystack, and its tokens."""
        text = draft.write(num_units)
        return render_prompt(tokenizer, text, answer_prefix=draft.answer_prefix, is_chat=task.endswith(CHAT))

    def _build_sample(self, task: str, index: int, length: int, seed: int, tokenizer: Tokenizer) -> SuiteSample:
        longest = LONGEST_CHAT if task.endswith(CHAT) else LONGEST_PLAIN
        draft = self.draft(task, index, length=length, seed=seed)
        size = find_size(
            lambda n: len(self.render(task, draft, n, tokenizer)[1]), smallest=draft.smallest, limit=length - longest
        )
        prompt, ids = self.render(task, draft, size, tokenizer)
        return SuiteSample(
            task=task,
            index=index,
            length=length,
            category=task.removesuffix(CHAT),
            prompt=prompt,
            prompt_ids=tuple(ids),
            answers=draft.answers,
            max_new_tokens=longest,
            groups={"fact": name_wording(index)},
            details={"units": size},
        )


def name_wording(index: int) -> str:
    """The wording of the sample with this index."""
    return list(WORDINGS)[index % len(WORDINGS)]


@lru_cache(maxsize=8)
def read_units(haystack: str, data: Path | None) -> tuple[str, ...]:
    """Held-out texts in order: sentences of "prose", or lines of the "document" that docstrings of code make."""
    corpora = load_corpora(data)
    if haystack == "prose":
        texts = [document.text for document in take_split(corpora.prose, is_heldout=True)]
        return tuple(sentence.strip() for text in texts for sentence in split_sentences(text))
    code = take_split(corpora.code, is_heldout=True)
    texts = [cleandoc(text) for document in code for text in DOCSTRING.findall(document.text)]
    return tuple(line.strip() for text in texts for line in text.splitlines() if line.strip())
