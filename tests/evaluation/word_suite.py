"""A suite for tiny random models: prompts are random tokens, so that any vocabulary will do."""

import random

from elastic_attention.errors import DataError
from elastic_attention.tasks.suite import Skipped, SuiteSample
from tiny_models import VOCAB


class TokenTokenizer:
    """Tokens as numbers in a text; ids from 2 on."""

    pad_token_id, eos_token_id, chat_template = 0, 1, None

    def __call__(self, text, *, add_special_tokens):
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids, *, skip_special_tokens):
        return " ".join(str(int(i)) for i in ids if i > 1)


class WordSuite:
    """Two generative tasks, one with given answers; sample 3 of "broken" cannot be made."""

    name = "words"
    tasks = ("plain", "targets", "broken")
    headline = ("plain", "targets")
    default_lengths = (120,)
    substitutes = {"broken": "random tokens for the official ones"}

    def __init__(self, salt=""):
        self.salt, self.built = salt, []

    def describe(self):
        return {"salt": self.salt}

    def check(self, tasks):
        if self.salt == "missing":
            raise DataError("words.jsonl is missing; download it.")

    def count_samples(self, task, wanted):
        return 5 if wanted is None else min(wanted, 5)

    def build(self, task, indexes, *, length, seed, tokenizer):
        for index in indexes:
            self.built.append((task, length, index))
            if task == "broken" and index == 3:
                yield Skipped(task=task, index=index, length=length, reason="line 4 of words.jsonl has no answer")
                continue
            rng = random.Random(f"{self.salt}/{seed}/{task}/{length}/{index}")
            ids = tuple(rng.randrange(2, VOCAB) for _ in range(length - 8 - rng.randrange(20)))
            targets = tuple(rng.randrange(2, VOCAB) for _ in range(1 + index % 3)) if task == "targets" else ()
            yield SuiteSample(
                task=task,
                index=index,
                length=length,
                category="given" if targets else "spoken",
                prompt=" ".join(map(str, ids)),
                prompt_ids=ids,
                answers=("7",),
                max_new_tokens=len(targets) or 6,
                target_ids=targets,
                groups={"parity": "even" if index % 2 == 0 else "odd"},
            )

    def score(self, answer, sample):
        if sample.target_ids:
            return sum(a == b for a, b in zip(answer.token_ids, sample.target_ids, strict=True)) / len(answer.token_ids)
        return sum(token % 2 for token in answer.token_ids) / sample.max_new_tokens


class EndlessSuite(WordSuite):
    """The same, with as many samples as anybody wants."""

    def count_samples(self, task, wanted):
        return wanted
