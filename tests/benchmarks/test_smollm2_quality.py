"""The quality study on a tiny model: everybody answers through the runner, masks are cut where they should be."""

import argparse
import shutil
import time
from pathlib import Path

import mask_cutting
import pytest
import quality_study
import smollm2_quality
import torch
from paper_samples import KeptSuite
from paper_sharing import Busy
from quality_study import Study
from smollm2_quality import PARTS, keep_origin, list_masks, pack_steps, summarize

from elastic_attention import StreamingConfig
from elastic_attention.config import TriangleConfig
from elastic_attention.errors import ElasticAttentionError
from elastic_attention.evaluation.session import Base
from elastic_attention.models.checkpoint import load_adapter, read_static_routes, save_static_routes
from elastic_attention.records import build_record, write_record
from elastic_attention.settings import to_dict
from elastic_attention.tasks.suite import open_suite
from elastic_attention.training.recipe import load_recipe
from elastic_attention.viz.gain_tables import render_gains
from elastic_attention.viz.renderers import render_frontier, render_quality
from hash_tokenizer import HashTokenizer
from tiny_models import BLOCK, SINK, WINDOW, attach_tiny, make_model, random_routes

RECIPE = load_recipe(Path(smollm2_quality.ROOT) / "recipes" / "smollm2-head-router.toml")
OPTIONS = argparse.Namespace(
    samples=4, few_samples=2, aim=0.7, budgets=[-20.0], routers=None, fa_xa=None,
)  # fmt: skip
PATTERN = to_dict(StreamingConfig(num_sink_tokens=64, local_window=128, block_size=64))
NAMES = {"static": "logits", "hard_concrete": "log_alpha", "alpha": "alpha"}


class Tokenizer(HashTokenizer):
    chat_template = "yes"

    def decode(self, ids, *, skip_special_tokens):
        return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def study(folder):
    """A study of two kinds that takes at most some seconds; training writes an adapter without any step."""
    model = make_model(max_position_embeddings=2048)

    def save_routers(path):
        handle = attach_tiny(model)
        handle.save_pretrained(path)
        handle.detach()

    def train(recipe, path, **_):
        source = recipe.routes.source
        if source in NAMES:
            facts = {"recipe": {"routes": {"source": source}}, "sparse_pattern": PATTERN}
            save_static_routes(path / "adapter", random_routes(model), {NAMES[source]: torch.rand(3, 2)}, facts)
        else:
            save_routers(path / "adapter")
        return {"is_finished": True, "steps": recipe.steps, "seconds": 0.0}

    def take(seconds=600.0, part="masks"):
        suite = open_suite("mixture")
        suite.tasks = suite.headline = ("needle", "prose")
        made = Study(
            base=Base(
                name="tiny", model=model, tokenizer=Tokenizer(), device=torch.device("cpu"), dtype=torch.float32,
                context=2048,
            ),
            suite=KeptSuite(suite, folder / "samples"), corpora=None, output=folder, lengths=(512, 640),
            samples=OPTIONS.samples, workers=0, batch_tokens=1, deadline=time.monotonic() + seconds,
            routers=str(folder / "shipped"),
        )  # fmt: skip
        contestants = [c for c in PARTS[part](RECIPE, OPTIONS) if c.method.name != "fa_xa"]
        made.is_complete = made.take_all(contestants)
        return made

    save_routers(folder / "shipped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality_study, "train", train)
        patch.setattr(quality_study, "rank_retrieval_heads", lambda *_, **__: torch.rand(3, 2))
        yield take


def test_everybody_is_asked_and_a_stopped_study_goes_on(study, folder, monkeypatch):
    late = study(seconds=-1)
    assert not late.is_complete and not late.answers
    made = study()
    labels = list(made.answers)
    plain = [label for label in labels if "-kind-" not in label]
    masks = [label for own in made.cuts.values() for label in own]
    assert made.is_complete and [label for label in plain if label not in masks] == [
        "dense", "routed", "routed-full", "all_sparse", "random@0.700", "xattention", "triangle_mix",
    ]  # fmt: skip
    few = [label for label in plain if label not in masks]
    assert [len(made.answers[label]) for label in few] == [8, 8, 4, 8, 8, 4, 4]
    for (router, name, place), own in made.cuts.items():  # no more sparse heads than the routers have there
        ((msr, kinds),) = made.find_suite(router) if place == "suite" else made.find_kinds(router)
        note = "-kind-routed" if place == "kind" else ""
        assert own == [f"{name}@{int(msr * 6 + 1e-6) / 6:.3f}{note}"]
        assert {line.task for line in made.answers[own[0]]} == set(kinds)
        assert all(msr - 1 / 6 < line.msr <= msr + 1e-6 for line in made.answers[own[0]])
    assert len(made.cuts) == 4 * 2
    monkeypatch.setattr("elastic_attention.evaluation.runner.ask_samples", None)  # nothing is asked again
    again = study(seconds=-1)  # what is there is read, however late it is
    assert again.is_complete and again.answers == made.answers and not again.has_asked


def test_a_dial_turns_routers_beside_masks_of_the_same_sparsity(study):
    made = study(part="dial")
    masks = {router: own for (router, _, _), own in made.cuts.items()}
    assert made.is_complete and list(masks) == ["routed", "routed-budget-20"]
    for router, own in masks.items():
        ((msr, _),) = made.find_suite(router)
        assert own == [f"static@{int(msr * 6 + 1e-6) / 6:.3f}-dial"]
    asked = {label: len(lines) for label, lines in made.answers.items()}
    assert asked == {"dense": 8, "routed": 8, "fa_ta-exchanged": 8, "routed-budget-20": 4} | {
        label: 4 for own in masks.values() for label in own
    }
    assert made.find_suite("routed-budget-20")[0][0] < made.find_suite("routed")[0][0]
    assert load_adapter(made.methods["fa_ta-exchanged"].folder)[0].sparse_pattern == TriangleConfig(
        num_sink_tokens=SINK,
        local_window=WINDOW,
        block_size=BLOCK,
        num_last_queries=128,
    )
    for lines in made.answers.values():
        for line in lines:
            object.__setattr__(line, "score", 1.0)
    budgets = {row["label"]: row.get("budget") for row in summarize(made, OPTIONS.samples)["rows"]}
    assert budgets == dict.fromkeys(asked) | {"routed": 0.0, "routed-budget-20": -20.0}


def test_what_is_missing_does_not_hide_what_comes_after_it(study, folder):
    study()
    away = folder / "prose"
    (folder / "answers" / "routed-full" / "prose").rename(away)
    late = study(seconds=-1)
    away.rename(folder / "answers" / "routed-full" / "prose")
    assert not late.is_complete and "routed-full" not in late.answers and "triangle_mix" in late.answers


def test_answers_of_other_routers_are_refused(study, folder, tmp_path):
    made = study()
    other = Path(shutil.copytree(folder / "shipped", tmp_path / "other"))
    (config,) = other.glob("*.json")
    config.write_text(config.read_text() + "\n")
    method, made.routers = made.methods["routed"], str(other)
    del made.answers["routed"]
    with pytest.raises(ElasticAttentionError, match="answers of other routers; choose another --output"):
        made.ask(method, made.suite.tasks, OPTIONS.samples)


def test_routers_that_others_train_are_waited_for(study, folder, tmp_path, capsys):
    made = study()
    capsys.readouterr()
    (given,) = (c for c in list_masks(RECIPE, replaced_options(tmp_path)) if c.method.label == "routed")
    for _ in range(2):
        with pytest.raises(Busy):
            made.settle(given)
    assert capsys.readouterr().out == f"routed: waits for an adapter in {tmp_path / 'adapter'}\n"  # said once
    made.deadline = 0.0
    assert not made.take_all([given])
    (folder / "shipped").rename(tmp_path / "adapter")
    ((method, kinds),) = made.settle(given)
    (tmp_path / "adapter").rename(folder / "shipped")
    assert method.folder == str(tmp_path / "adapter") and kinds == made.suite.tasks


def replaced_options(path):
    return argparse.Namespace(**vars(OPTIONS) | {"routers": str(path / "adapter")})


def test_masks_are_cut_in_the_order_of_their_numbers(study, tmp_path):
    made = study()
    scores = torch.tensor([[0.1, 0.9], [0.5, 0.4], [0.8, 0.2]])
    for name, sign in mask_cutting.SIGNS.items():
        save_static_routes(tmp_path / name, torch.zeros(3, 2, dtype=torch.bool), {name: scores}, {})
        (made.output / "cut" / f"cut_{name}-3").mkdir(parents=True)  # as a process leaves it that is killed
        method = made.cut(smollm2_quality.Method(name=f"cut_{name}"), tmp_path / name, 0.5)
        wanted = scores >= 0.5 if sign > 0 else scores < 0.5
        assert torch.equal(read_static_routes(method.folder), wanted) and method.target == 0.5


def test_the_record_is_what_the_tables_read(study):
    made = study()
    for label, lines in made.answers.items():  # dense masters one kind, routers are better than masks
        for line in lines:
            object.__setattr__(line, "score", float(line.task == "needle" and label in ("dense", "routed")))
    found = summarize(made, OPTIONS.samples)
    assert found["mastered"] == ["needle"]
    rows = {row["label"]: row for row in found["rows"]}
    assert rows["dense"]["relative_score"] == rows["routed"]["relative_score"] == 1.0 and rows["dense"]["n"] == 4
    shares = {(row["label"], row["of"], row["kinds"]): row for row in found["shares"]}
    assert shares["routed", "dense", "sensitive"]["value"] == 1.0 and shares["routed", "dense", "all"]["n"] == 4
    assert not any(label == of or label == "dense" or kinds == "robust" for label, of, kinds in shares)
    kinds = {row["kind"]: row for row in found["by_kind"]}
    assert kinds["needle"]["dense"] == 1.0 and kinds["prose"]["dense"] == 0.0 and kinds["needle"]["n"] == 4
    gains = {(g["router"], g["mask"], g["kinds"], g["same_msr_on"]): g for g in found["gains"]}
    assert len(gains) == 4 * (2 + 1)  # all and sensitive kinds, and at the kind's own MSR the sensitive one
    assert gains["routed", "prulong", "sensitive", "suite"]["low"] == 1.0
    at_kind = gains["routed", "prulong", "sensitive", "kind"]
    assert at_kind["value"] == 1.0 and at_kind["msr_router"] - 1 / 6 < at_kind["msr_mask"] <= at_kind["msr_router"]
    table = render_quality({"metrics": found})
    assert table.index("| needle |") < table.index("Outside the mean") < table.index("| prose |")
    assert render_frontier({"metrics": found}).count("| routed |") == 2 and "empty" not in rows["routed"]
    line = next(
        line for line in render_gains({"metrics": found}).splitlines() if "| routed | prulong | on the suite" in line
    )
    assert line.endswith("| 1.000 \\[1.000, 1.000\\] | – | 1.000 \\[1.000, 1.000\\] |")


def test_a_record_that_is_written_elsewhere_keeps_where_it_was_asked(tmp_path):
    path = tmp_path / "quality.json"
    facts = {"config": {}, "model": "tiny", "data": {}, "seed": 1, "n": 1, "metrics": {}, "seconds": 1.0, "bytes": 5}
    here = build_record("tool", device="this computer", **facts | {"bytes": 7})
    assert keep_origin(here, path) == here
    write_record(path, build_record("tool", device="a GPU", **facts | {"n": 9}))
    kept = keep_origin(here, path)
    assert (kept["device"], kept["bytes"], kept["n"]) == ("a GPU", 5, 1)


def test_larger_packs_leave_the_steps_as_they_are():
    packs = RECIPE.data.packs
    larger = pack_steps(RECIPE, packs.tokens * packs.per_step, 32_768).data.packs
    assert larger.tokens * larger.per_step == packs.tokens * packs.per_step and larger.tokens == 32_768
