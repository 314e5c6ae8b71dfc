"""Answers of methods that were never run, for tests of what is made of answers."""

import random

from elastic_attention.evaluation.answer_log import Line

KINDS = {"needle": "sensitive", "facts": "sensitive", "prose": "robust", "code": "robust"}


def make_answers(sensitive, robust=None, *, msr=(0.7, 0.9), n=200, seeds=1, routes="", length=2048):
    """Answers whose scores are 1 in a share of the samples, the same ones for equal shares."""
    shares = {"sensitive": sensitive, "robust": sensitive if robust is None else robust}
    sparse = dict(zip(("sensitive", "robust"), msr, strict=True))
    return [
        [
            Line(
                method="made", task=task, length=length, index=i, category=kind, msr=sparse[kind], routes=routes,
                score=float(random.Random(f"{task}/{i}").random() < shares[kind]),
            )
            for task, kind in KINDS.items()
            for i in range(n)
        ]
        for _ in range(seeds)
    ]  # fmt: skip
