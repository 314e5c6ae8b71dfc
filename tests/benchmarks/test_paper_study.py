"""Claims of the papers: intervals, verdicts on made-up answers, and the command on a tiny model."""

import argparse
import dataclasses
import json
import random

import paper_lab
import paper_pictures
import paper_study
import pytest
import torch
from paper_claims import CLAIMS, Claim, Entry, Training
from paper_figures import agree, answer_probed, compare_categories, compare_maps, compare_tasks
from paper_lab import settle_target
from paper_recipes import Scale, set_intervals
from paper_rules import Found
from paper_sharing import Busy
from paper_statistics import Check, Estimate, estimate, find_mastered, give_verdict, is_robust, is_sensitive, pick
from tiny_study import SETTINGS, KindSuite

from elastic_attention.errors import ElasticAttentionError, RecipeError
from elastic_attention.evaluation.answer_log import Line
from elastic_attention.evaluation.session import Base
from elastic_attention.records import build_record, read_record, write_record
from elastic_attention.tasks.suite import Skipped
from elastic_attention.training.recipe import Interval
from made_rows import make_rows, make_tokenizer, write_rows
from tiny_models import make_model

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


def as_estimate(value):
    return Estimate(value=value, low=value, high=value)


def test_estimates():
    better, worse = make_answers(0.9, n=400), make_answers(0.6, n=400, seeds=3)
    gain = estimate(better, worse)
    assert gain.value == pytest.approx(0.3, abs=0.05) and 0.2 < gain.low < gain.value < gain.high < 0.4
    assert estimate(better, better) == as_estimate(0.0)
    ratio = estimate(worse, better, how="ratio")
    assert ratio.value == pytest.approx(0.667, abs=0.06) and ratio.low < ratio.value < ratio.high
    assert estimate(better, measure=lambda line: line.msr).value == pytest.approx(0.8)
    assert estimate(pick(better, lambda line: False)) is None
    assert estimate(better, make_answers(0.0), how="ratio") is None


def test_seeds_widen_the_interval():
    spread = [make_answers(share)[0] for share in (0.3, 0.6, 0.9)]
    one, three = estimate([spread[1]]), estimate(spread)
    assert three.high - three.low > 2 * (one.high - one.low)


def test_what_dense_does_not_master_is_left_out():
    dense = make_answers(0.9, 0.2)
    assert {task for task, _ in find_mastered(dense)} == {"needle", "facts"}
    found = Found(answers={"dense": dense, "ours": make_answers(0.9, 0.0)}, figures={})
    assert found.ratio("ours") == as_estimate(1.0)


def test_separation_of_kinds():
    answers = {"far": make_answers(0.5, msr=(0.4, 0.9)), "near": make_answers(0.5, msr=(0.7, 0.8))}
    found = Found(answers=answers, figures={})
    assert found.separation("far").value == pytest.approx(0.5)
    assert found.separation("far", "near").value == pytest.approx(0.4)


def test_verdicts_follow_from_the_checks():
    yes, no = (Check(text="", estimate=as_estimate(value), at_least=0.5) for value in (0.6, 0.4))
    unclear = Check(text="", estimate=Estimate(value=0.6, low=0.4, high=0.8), at_least=0.5)
    missing = Check(text="", estimate=None, at_least=0.5)
    checks = (yes, no, unclear, missing)
    assert [check.holds for check in checks] == [True, False, False, False]
    assert [check.is_refuted for check in checks] == [False, True, False, False]
    beside = dataclasses.replace(no, counts=False)
    assert give_verdict([yes, yes, beside]) == "reproduced"
    assert give_verdict([yes, unclear]) == "partly"
    assert give_verdict([no, unclear, missing]) == "not"
    assert give_verdict([unclear, missing]) == give_verdict([beside]) == "open"


DENSE, WORSE = make_answers(0.9), make_answers(0.3)
SAME = DENSE
HELPLESS, UNSPOKEN = make_answers(0.3, 0.9), make_answers(0.9, 0.3)  # on sensitive kinds; on robust ones
FAR, DIM = make_answers(0.9, msr=(0.4, 0.9)), make_answers(0.3, msr=(0.3, 0.3))
STEPS = (0.1, 0.2, 0.3, 0.4, 0.5)
MASKS = dict.fromkeys(("static", "prulong", "duo", "static_on_kind"), HELPLESS)
TARGETS = (0.5, 0.7, 0.8, 0.9)


def move_budget(values, first=0.9):
    """Answers of the five budgets with these MSRs."""
    shares = (first, 0.9, 0.9, 0.9, 0.9)
    names = (f"budget_{b}" for b in (-2.0, -1.0, 0.0, 1.0, 2.0))
    return {n: make_answers(s, msr=(m, m)) for n, s, m in zip(names, shares, values, strict=True)}


FIGURES = ("changing", "constant", "agreement_above_chance", "agreement")
GOOD_FIGURES = {name: as_estimate(0.95) for name in FIGURES} | {"change": as_estimate(-0.3)}
BAD_FIGURES = {name: as_estimate(0.0) for name in FIGURES} | {"change": as_estimate(0.3)}
# Answers with which a claim is reproduced, and with which it is not; entries that are not named answer like dense.
CASES = {
    "retention": ({}, {"fa_ssa": DIM}),
    "methods": (MASKS, {"fa_ssa": DIM}),
    "baselines": (MASKS, {"fa_xa": WORSE}),
    "kinds": (MASKS, {"fa_ssa": DIM}),
    "training_free": (dict.fromkeys(("xattention", "triangle_mix", "infllm_v2", "moba"), WORSE), {}),
    "separation": ({"fa_ssa": FAR}, {"fa_ssa": DIM}),
    "static_msr": ({"heads_0.7": HELPLESS}, {"heads_0.7": UNSPOKEN}),
    "length": ({}, {"fa_ssa": WORSE, "fa_xa": WORSE}),
    "quality_esr": ({f"static_{t}": WORSE for t in TARGETS}, {f"routed_{t}": WORSE for t in TARGETS}),
    "head_maps": ({}, {}),
    "map_overlap": ({}, {}),
    "task_similarity": ({}, {}),
    "target_sweep": ({"target_0.4": FAR}, {"target_0.4": WORSE}),
    "temperature": ({"constant": WORSE}, {}),
    "width": ({}, {"width_4": WORSE}),
    "pooling": ({}, {"pooled_100": WORSE}),
    "xa_ssa": ({}, {"xa_ssa": WORSE}),
    "layer_routing": ({"static": HELPLESS}, {"flux": WORSE}),
    "budget": (move_budget(STEPS), move_budget(STEPS[::-1], first=0.3)),
    "probe": ({}, {"probe": WORSE}),
    "decode": ({}, {"fa_ssa": WORSE}),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_can_be_reproduced_and_not(name):
    claim = CLAIMS[name]
    same = dict.fromkeys((*(entry.name for entry in claim.entries), "probe"), DENSE)
    for verdict, case, figures in zip(("reproduced", "not"), CASES[name], (GOOD_FIGURES, BAD_FIGURES), strict=True):
        judged = paper_study.judge(claim, same | case, figures)
        assert judged["verdict"] == verdict, judged["checks"]
        assert json.dumps(judged)


def test_maps_and_tasks():
    def draw(kind, text):
        return [dataclasses.replace(x, routes=text) for x in SAME[0] if x.category == kind]

    every = draw("sensitive", "10 10") + draw("robust", "11 10")
    figures = compare_categories(every)
    assert figures["changing"].value == 0.25 and figures["constant"].value == 0.75
    assert compare_maps(every, draw("sensitive", "10 10"))["agreement_above_chance"].value == 0.5
    assert compare_categories([])["changing"] is None and compare_maps([], [])["agreement_above_chance"] is None
    assert agree(every, draw("sensitive", "10 11")).value == 0.75
    base = torch.ones(4, 3, 2, dtype=torch.float64)
    apart = [base * torch.tensor([1.0, 0.0]), base * torch.tensor([0.0, 1.0])]
    likeness = compare_tasks([base, base], apart)
    assert (likeness["before"].value, likeness["after"].value) == (pytest.approx(1.0), pytest.approx(0.0))
    assert likeness["change"].high < -0.9


def test_targets_and_intervals():
    assert settle_target(Training(target="fa_ssa/sensitive"), {"fa_ssa": make_answers(1.0, msr=(0.61, 0.9))}) == 0.61
    recipe = {"sensitive": Interval(low=0.66, high=0.7), "robust": Interval(low=0.84, high=1.0)}
    assert set(set_intervals(recipe, Training(source="static", target=0.7)).values()) == {Interval(low=0.7, high=0.7)}
    assert set_intervals(recipe, Training(sensitive=0.4))["sensitive"] == Interval(low=0.4, high=0.4)
    assert set(set_intervals(recipe, Training(only="robust"))) == {"robust"}
    assert set_intervals(recipe, Training()) == recipe


class MixtureSuite(KindSuite):
    """Under the name and with the categories of the mixture."""

    name, kinds = "mixture", {"plain": "sensitive", "targets": "robust"}


TINY = Scale(
    name="tiny",
    recipe="tiny.toml",
    lengths={"mixture": (80,)},
    samples={"mixture": 3},
    short=200,
    steps=2,
    step_tokens=410,
    training_rate=1,
    reading_rate=1,
)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Arguments of the command; the model, its recipe and its suite are tiny."""
    rows = write_rows(tmp_path / "train.jsonl", make_rows(24))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.toml").write_text(
        f"""model = "tiny"
steps = 9
validate_every = 0
precision = "float32"
[data.packs]
files = ["{rows}"]
tokens = 410
cache = "{tmp_path / "cache"}"
over_long = "skip"
"""
        + SETTINGS
    )
    model = make_model(vocab_size=600, max_position_embeddings=4096)
    cpu, tokenizer = torch.device("cpu"), make_tokenizer()
    base = Base(name="tiny", model=model, tokenizer=tokenizer, device=cpu, dtype=model.dtype, context=4096)
    monkeypatch.setattr(paper_study, "ROOT", tmp_path)
    monkeypatch.setattr(paper_study, "open_base", lambda *_, **__: base)
    monkeypatch.setattr(paper_study, "find_scale", lambda model: TINY)
    monkeypatch.setattr(paper_lab, "open_suite", lambda name, **_: MixtureSuite())
    return ["--output", str(tmp_path / "paper"), "--corpora", ""]


def test_command_stops_in_time_goes_on_and_shares(tiny, tmp_path, monkeypatch):
    path = tmp_path / "paper_tiny_xa_ssa.json"
    claim = Claim(
        title="t", paper="p", rule="r", judge=CLAIMS["xa_ssa"].judge,
        entries=(
            Entry(name="dense", method="dense"),
            Entry(name="fa_ssa", training=Training()),
            Entry(name="xa_ssa", method="static", training=Training(source="static", target="fa_ssa")),
        ),
    )  # fmt: skip
    monkeypatch.setitem(CLAIMS, "xa_ssa", claim)
    arguments = ["xa_ssa", *tiny, "--results", str(tmp_path)]
    assert paper_study.main([*arguments, "--max-minutes", "0"]) == 1
    assert not path.exists()
    assert paper_study.main(arguments) == 0
    first = read_record(path)["metrics"]
    assert first["verdict"] in ("reproduced", "partly", "not", "open")
    assert [row["entry"] for row in first["trainings"]] == ["fa_ssa", "xa_ssa"]
    assert {row["entry"] for row in first["rows"] if row["kinds"] == "all"} == {"dense", "fa_ssa", "xa_ssa"}

    summary = read_record(tmp_path / "paper_tiny.json")["metrics"]
    assert {row["claim"] for row in summary["rows"] if row["n"]} == {"xa_ssa"}
    assert len(summary["rows"]) == len(CLAIMS) and len(summary["checks"]) == len(first["checks"])

    def refuse(*_, **__):
        raise AssertionError("done again")

    for name in ("train", "run_plan"):
        monkeypatch.setattr(paper_lab, name, refuse)
    assert paper_study.main(arguments) == 0
    assert read_record(path)["metrics"]["checks"] == first["checks"]
    # Another claim finds the adapter and the answers of this one.
    shared = dataclasses.replace(claim, entries=claim.entries[:2], judge=lambda found: [])
    monkeypatch.setitem(CLAIMS, "width", shared)
    assert paper_study.main(["width", *tiny]) == 0
    # No place of this computer is part of what is kept, so all of it may go on elsewhere.
    kept = [path, *(tmp_path / "paper" / "answers").rglob("*.json*")]
    assert not any(str(tmp_path) in file.read_text() for file in kept)


def test_processes_leave_each_other_their_work(tiny, tmp_path, monkeypatch):
    asked, seen = paper_lab.Lab._run, []

    def run(lab, entry, *arguments):
        # While this process asks dense, another one takes the rest of the claim, and leaves dense.
        if not seen:
            seen.append(entry.name)
            with pytest.raises(Busy):
                paper_study.study(paper_lab.Lab(**settings), "xa_ssa", None)
            seen.append("other")
        return asked(lab, entry, *arguments)

    monkeypatch.setattr(paper_lab.Lab, "_run", run)
    settings = dict(
        base=paper_study.open_base(), scale=TINY, recipes=tmp_path / "recipes", output=tmp_path / "paper",
        corpora=None, deadline=float("inf"),
    )  # fmt: skip
    lab = paper_lab.Lab(**settings)
    assert "xa_ssa" in paper_study.study_all(lab, ["xa_ssa"], tmp_path)
    assert seen == ["dense", "other"]
    assert len(list((tmp_path / "paper" / "trained").glob("*/result.json"))) == 2


def test_a_full_gpu_is_tried_again(tiny, tmp_path, monkeypatch, capsys):
    """Out of memory, and as the trainer says it; then there is some. At last it is said what to do."""
    trained, refusals = paper_lab.train, [torch.OutOfMemoryError("full"), RecipeError("no room"), RecipeError("odd")]
    refusals[1].__cause__ = torch.OutOfMemoryError("full")

    def train(*arguments, **options):
        if refusals:
            raise refusals.pop(0)
        return trained(*arguments, **options)

    monkeypatch.setattr(paper_lab, "train", train)
    monkeypatch.setattr(paper_study.time, "sleep", lambda seconds: None)
    assert paper_study.main(["task_similarity", *tiny]) == 1
    assert capsys.readouterr().out.startswith("task_similarity stays open: odd")
    assert paper_study.main(["task_similarity", *tiny]) == 0
    monkeypatch.setattr(paper_lab, "PATIENCE", 2)
    refusals += [torch.OutOfMemoryError("full")] * 2
    assert paper_study.main(["task_similarity", *tiny, "--steps", "1"]) == 1
    assert "stays open: full Lower --batch-tokens" in capsys.readouterr().out


def test_targets_are_entries_before():
    for claim in CLAIMS.values():
        for place, entry in enumerate(claim.entries):
            if entry.training and isinstance(entry.training.target, str):
                assert entry.training.target.partition("/")[0] in {other.name for other in claim.entries[:place]}
    with pytest.raises(Busy):
        settle_target(Training(target="later"), {})
    with pytest.raises(ElasticAttentionError, match="'fa_ssa' answered no sensitive question"):
        settle_target(Training(target="fa_ssa/sensitive"), {"fa_ssa": pick(SAME, is_robust)})


def test_probed_samples_that_could_not_be_made_are_named():
    (line,) = answer_probed(None, None, None, [Skipped(task="plain", index=0, length=80, reason="no text")])
    assert line.skipped == "no text" and line.method == "probe"


@pytest.mark.parametrize("name", ["map_overlap", "task_similarity", "probe"])
def test_figures_of_a_tiny_model(name, tiny, tmp_path):
    path = tmp_path / f"paper_tiny_{name}.json"
    assert paper_study.main([name, *tiny, "--results", str(tmp_path)]) == 0
    metrics = read_record(path)["metrics"]
    assert metrics["checks"] and metrics["figures"]
    if name == "probe":
        assert "probe" in {row["entry"] for row in metrics["rows"]}
    assert paper_study.main([name, *tiny, "--results", str(tmp_path)]) == 0
    assert read_record(path)["metrics"]["figures"] == metrics["figures"]


def test_all_trainings_make_recipes(tiny, tmp_path):
    lab = paper_lab.Lab(
        base=paper_study.open_base(), scale=TINY, recipes=tmp_path / "recipes", output=tmp_path, corpora=None,
        deadline=float("inf"),
    )  # fmt: skip
    wanted = {entry.training for claim in CLAIMS.values() for entry in claim.entries if entry.training}
    for training in wanted:
        if training.source != "retrieval_heads":
            target = 0.7 if isinstance(training.target, str) else training.target
            assert lab.build_recipe(dataclasses.replace(training, target=target), 0).steps == 2


def test_pictures_of_what_there_is(tmp_path):
    entries = {
        "static_msr": {f"heads_{t}": t for t in (0.1, 0.5)},
        "quality_esr": {"routed_0.5": 0.5, "static_0.5": 0.5},
        "target_sweep": {f"target_{t}": t for t in (0.4, 0.7)},
    }
    check = {"check": "above", "value": 0.2, "low": 0.1, "high": 0.3, "at_least": 0.0, "at_most": None}
    summary = {"rows": [], "checks": [check | {"claim": "width", "holds": True, "refuted": False, "counts": True}]}

    def save(name, metrics):
        record = build_record(
            "c", config={}, model="m", data={}, device="cpu", seed=0, n=1, metrics=metrics, seconds=1.0, bytes=None
        )
        write_record(tmp_path / f"paper_smollm2{name}.json", record)

    save("", summary)
    for claim, msr in entries.items():
        answers = {"dense": DENSE} | {name: make_answers(0.8, msr=(t, t), n=20) for name, t in msr.items()}
        rows = [row | {"esr_prefill": row["msr"] / 2} for row in paper_study.make_rows(answers)]
        save(f"_{claim}", {"rows": rows})
    assert paper_pictures.main(["--results", str(tmp_path), "--figures", str(tmp_path)]) == 0
    drawn = (tmp_path / "paper_smollm2.svg").read_text()
    assert all(title in drawn for title in ("Static sparsity", "Quality against sparsity", "Target sweep"))
    assert (tmp_path / "paper_smollm2_checks.svg").exists()


def test_list_and_options(capsys):
    assert paper_study.main(["--list"]) == 0
    assert all(name in capsys.readouterr().out for name in ("methods",))
    with pytest.raises(SystemExit):
        paper_study.parse_options([])
    assert isinstance(paper_study.parse_options(["decode"]), argparse.Namespace)
    assert is_sensitive(SAME[0][0])
