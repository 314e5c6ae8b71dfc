"""The quality comparison on a tiny model: everybody answers through the runner, and a stopped run goes on."""

import argparse
import time
from pathlib import Path

import pytest
import smollm2_quality
import torch

from elastic_attention.evaluation.session import Base
from elastic_attention.models.checkpoint import save_static_routes
from elastic_attention.tasks.suite import open_suite
from elastic_attention.training.recipe import load_recipe
from elastic_attention.viz.renderers import render_frontier, render_quality
from hash_tokenizer import HashTokenizer
from tiny_models import attach_tiny, make_model, random_routes

RECIPE = load_recipe(Path(smollm2_quality.ROOT) / "recipes" / "smollm2-head-router.toml")
OPTIONS = argparse.Namespace(
    samples=4, frontier_samples=2, compare_at=None, targets=[0.7], frontier_tokens=1, frontier_steps=1
)


class Tokenizer(HashTokenizer):
    chat_template = "yes"

    def decode(self, ids, *, skip_special_tokens):
        return " ".join(map(str, ids))


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """Run the comparison for some seconds; training writes an adapter without any step."""

    def train(recipe, folder, *, model, **_):
        if recipe.routes.source == "static":
            save_static_routes(folder / "adapter", random_routes(model), {}, {})
        else:
            handle = attach_tiny(model)
            handle.save_pretrained(folder / "adapter")
            handle.detach()
        return {"is_finished": True}

    monkeypatch.setattr(smollm2_quality, "train", train)

    def run(seconds=600.0):
        suite = open_suite("mixture")
        suite.tasks = suite.headline = ("needle", "prose")
        model = make_model(max_position_embeddings=2048)
        base = Base(
            name="tiny",
            model=model,
            tokenizer=Tokenizer(),
            device=torch.device("cpu"),
            dtype=torch.float32,
            context=2048,
        )
        made = smollm2_quality.Comparison(
            base=base, suite=suite, output=tmp_path, lengths=(512, 640), workers=0,
            deadline=time.monotonic() + seconds,
        )  # fmt: skip
        try:
            smollm2_quality.compare(made, RECIPE, OPTIONS)
        except smollm2_quality.TimeUp:
            return made, False
        return made, True

    return run


def test_everybody_is_asked_and_a_stopped_run_goes_on(compare, monkeypatch):
    assert compare(seconds=-1)[1] is False
    run, is_complete = compare()
    assert is_complete
    labels = [method.label for method in run.methods]
    msr = sum(line.msr for line in run.lines if line.method == "routed") / 8
    assert labels == [
        "dense", "all_sparse", "routed", "routed-full", f"random@{msr:.3f}", f"static@{msr:.3f}",
        "routed@0.700-frontier", "static@0.700-frontier",
    ]  # fmt: skip
    assert [sum(line.method == label for line in run.lines) for label in labels] == [8] * 6 + [4] * 2
    monkeypatch.setattr("elastic_attention.evaluation.runner.ask_samples", None)  # nothing is asked again
    again, _ = compare(seconds=60)
    assert again.lines == run.lines


def test_the_record_is_what_the_tables_read(compare):
    run, _ = compare()
    for line in run.lines:  # dense masters one kind
        if line.method == "dense":
            object.__setattr__(line, "score", float(line.task == "prose"))
    found = run.summarize(OPTIONS.samples)
    assert {cell["task"] for cell in found["mastered"]} == {"prose"} and len(found["mastered"]) == 2
    assert [row["n"] for row in found["rows"]] == [4] * 6 + [2] * 2 and found["rows"][0]["relative_score"] == 1.0
    kinds = {row["kind"]: row for row in found["by_kind"]}
    assert kinds["prose"]["dense"] == 1.0 and kinds["needle"]["dense"] == 0.0 and kinds["needle"]["n"] == 4
    assert 0 < kinds["prose"]["msr routed"] <= 1
    record = {"metrics": found}
    table = render_quality(record)
    assert table.index("| prose |") < table.index("Outside the mean") < table.index("| needle |")
    assert render_frontier(record).count("| routed |") == 3
