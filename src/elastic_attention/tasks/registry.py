"""The kinds of samples, and `generate`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from elastic_attention.tasks.aggregation import make_most_frequent
from elastic_attention.tasks.bodies import HAYSTACKS, draw_comments, draw_repeated
from elastic_attention.tasks.continuation import make_code, make_prose, make_repeated_lines
from elastic_attention.tasks.copying import make_copying
from elastic_attention.tasks.corpora import Corpora
from elastic_attention.tasks.drawing import SPLITS, Draw
from elastic_attention.tasks.facts import make_facts
from elastic_attention.tasks.few_shot import make_classes, make_regions
from elastic_attention.tasks.lengths import TooShort
from elastic_attention.tasks.lookup import make_constants, make_lookup
from elastic_attention.tasks.needles import make_needle, make_needles
from elastic_attention.tasks.relations import VALIDATION
from elastic_attention.tasks.sample import Sample, Tokenizer, encode_prompt
from elastic_attention.tasks.subject import make_subject
from elastic_attention.tasks.told import make_hidden, make_skimmed, make_told

SENSITIVE, ROBUST = "sensitive", "robust"
EXACT, TOKEN_ACCURACY = "exact", "token_accuracy"
MIN_TOKENS = 512
MAX_TRIES = 8


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of sample: its category, how it is scored, and the function (draw, kind, category) that makes one.

    metric "exact": all answer tokens are greedy predictions; "token_accuracy": the share that are.
    """

    category: str
    metric: str
    make: Callable[[Draw, str, str], Sample]


# What the suite `mixture` asks and its records name; recipes train on the pairs as well.
KINDS = {
    "needle": Kind(SENSITIVE, EXACT, make_needle),
    "needles_2": Kind(SENSITIVE, EXACT, partial(make_needles, num_keys=2)),
    "needles_4": Kind(SENSITIVE, EXACT, partial(make_needles, num_keys=4)),
    "lookup": Kind(SENSITIVE, EXACT, make_lookup),
    "constants": Kind(SENSITIVE, EXACT, make_constants),
    "facts": Kind(SENSITIVE, EXACT, make_facts),
    "copying": Kind(SENSITIVE, EXACT, make_copying),
    "prose": Kind(ROBUST, TOKEN_ACCURACY, make_prose),
    "code": Kind(ROBUST, TOKEN_ACCURACY, make_code),
    "repeated_lines": Kind(ROBUST, EXACT, make_repeated_lines),
    "classes": Kind(ROBUST, EXACT, make_classes),
    "regions": Kind(ROBUST, EXACT, make_regions),
    "most_frequent": Kind(ROBUST, EXACT, make_most_frequent),
    "subject": Kind(ROBUST, EXACT, make_subject),
}
# On each haystack a sensitive and a robust kind, told apart by the question alone.
PAIRS = {f"told_{name}": Kind(SENSITIVE, EXACT, partial(make_told, haystack=name)) for name in HAYSTACKS} | {
    f"skimmed_{name}": Kind(ROBUST, EXACT, partial(make_skimmed, haystack=name)) for name in HAYSTACKS
}
# Steps and targets are chosen on these, whose relations and words no training has.
VALIDATION_KINDS = {
    f"validation_{name}": Kind(
        SENSITIVE, EXACT, partial(make_hidden, make_body=body, joint="\n", relations=VALIDATION, is_brief=True)
    )
    for name, body in {"comments": draw_comments, "repeated": draw_repeated}.items()
}
TRAINED_KINDS = KINDS | PAIRS
ALL_KINDS = TRAINED_KINDS | VALIDATION_KINDS


def generate(
    kind: str,
    *,
    seed: int,
    index: int,
    target_tokens: int,
    corpora: Corpora,
    tokenizer: Tokenizer,
    split: str = "train",
) -> Sample:
    """One sample whose prompt has at most `target_tokens` tokens and about nine tenths of that at least.

    The same arguments give the same sample on any machine. `split` is "train", "heldout" (other texts, words and
    numbers) or "heldout_format" (held out, and in a wording that training never sees). Raises ValueError for an
    unknown kind or split, TooShort (which is one) for fewer than 512 tokens and for a kind that does not fit.
    """
    if kind not in ALL_KINDS:
        raise ValueError(f"kind {kind!r} is unknown; choose one of {', '.join(ALL_KINDS)}.")
    return make_sample(
        kind,
        ALL_KINDS[kind].category,
        ALL_KINDS[kind].make,
        seed=seed,
        index=index,
        target_tokens=target_tokens,
        corpora=corpora,
        tokenizer=tokenizer,
        split=split,
    )


def make_sample(
    kind: str,
    category: str,
    make: Callable[[Draw, str, str], Sample],
    *,
    seed: int,
    index: int,
    target_tokens: int,
    corpora: Corpora,
    tokenizer: Tokenizer,
    split: str,
) -> Sample:
    """`generate` for any function that makes samples, under any names of kind and category; raises as it does."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}.")
    if target_tokens < MIN_TOKENS:
        raise TooShort(
            f"target_tokens is {target_tokens}; samples need at least {MIN_TOKENS}.", MIN_TOKENS - target_tokens
        )
    num_tokens = target_tokens
    for _ in range(MAX_TRIES):
        rng = random.Random(f"{seed}/{split}/{kind}/{index}")
        draw = Draw(rng=rng, split=split, corpora=corpora, tokenizer=tokenizer, num_tokens=num_tokens)
        sample = make(draw, kind, category)
        excess = len(encode_prompt(sample, tokenizer)) - target_tokens
        if excess <= 0:
            return sample
        # At least a step that drops a line, or a small excess would come back try after try.
        num_tokens -= max(excess, target_tokens // 64)
    raise TooShort(f"kind {kind!r} does not fit {target_tokens} tokens with this tokenizer; ask for more.", excess)
