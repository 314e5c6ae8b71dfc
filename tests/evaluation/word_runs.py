"""Runs of the word suite on a tiny model."""

import dataclasses

from word_suite import TokenTokenizer, WordSuite

from elastic_attention.evaluation.plan import EvalPlan, parse_method
from elastic_attention.evaluation.runner import run_plan

METHODS = tuple(map(parse_method, ("dense", "routed", "routed/full", "random@0.5")))
PLAN = EvalPlan(tasks=WordSuite.tasks, lengths=(80, 120), samples=None, methods=METHODS, batch_tokens=360)
TOKENIZER = TokenTokenizer()


def run(subject, output, *, plan=PLAN, suite=None, **options):
    model, routers = subject
    return run_plan(
        plan, suite or WordSuite(), model, TOKENIZER, output, identity={"model": "tiny"}, routers=routers, **options
    )


def without_seconds(lines):
    return [dataclasses.replace(line, seconds=0, prefill_seconds=0) for line in lines]


def make_samples(indexes, length=120):
    return list(WordSuite().build("plain", indexes, length=length, seed=1, tokenizer=None))
