"""Claims of the papers: intervals, figures and verdicts on made-up answers."""

import dataclasses
import json

import paper_study
import pytest
import torch
from made_answers import make_answers
from paper_claims import CLAIMS, Training
from paper_figures import agree, answer_probed, compare_categories, compare_maps, compare_tasks
from paper_lab import settle_target
from paper_recipes import SCALES, fit_claim, set_intervals
from paper_rules import Found
from paper_sharing import Busy
from paper_statistics import Check, Estimate, centre, estimate, find_mastered, give_verdict, is_robust, pick

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.tasks.suite import Skipped
from elastic_attention.training.recipe import Interval


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


def test_an_interval_holds_its_figure():
    with pytest.raises(ValueError, match="draws of this figure are biased; use `centre`"):
        Estimate(value=-0.453, low=-0.48, high=-0.461)
    centred = centre(-0.453, -0.48, -0.461)
    assert (centred.low, centred.high) == (pytest.approx(-0.4625), pytest.approx(-0.4435))
    # Means of prompts that are drawn anew are noisier, and less alike, than the means themselves.
    noisy = [torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(i), dtype=torch.float64) + 1 for i in (0, 1)]
    before = compare_tasks(noisy, noisy)["before"]
    assert before.low < before.value < before.high


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
    "exchange": ({"fa_ssa": WORSE}, {"fa_ta": WORSE}),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_can_be_reproduced_and_not(name):
    claim = CLAIMS[name]
    same = dict.fromkeys((*(entry.name for entry in claim.entries), "probe"), DENSE)
    for verdict, case, figures in zip(("reproduced", "not"), CASES[name], (GOOD_FIGURES, BAD_FIGURES), strict=True):
        judged = paper_study.judge(claim, same | case, figures)
        assert judged["verdict"] == verdict, judged["checks"]
        assert json.dumps(judged)


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_of_one_seed_and_fewer_entries_are_judged(name):
    claim = fit_claim(CLAIMS[name], SCALES["qwen2.5-coder"])
    assert {entry.seeds for entry in claim.entries} == {1}
    assert ("1 of the seeds" in claim.rule) == any(entry.seeds > 1 for entry in CLAIMS[name].entries)
    same = dict.fromkeys((*(entry.name for entry in claim.entries), "probe"), DENSE)
    judged = paper_study.judge(claim, same | {k: v for k, v in CASES[name][0].items() if k in same}, GOOD_FIGURES)
    assert judged["verdict"] == "reproduced"
    if name == "quality_esr":
        assert len(judged["checks"]) == 3
    assert fit_claim(CLAIMS[name], SCALES["smollm2"]) == CLAIMS[name]


def test_a_claim_without_some_entries_says_so():
    scale = dataclasses.replace(SCALES["smollm2"], without=("infllm_v2", "moba"))
    claim = fit_claim(CLAIMS["training_free"], scale)
    assert [entry.name for entry in claim.entries] == ["dense", "fa_ssa", "xattention", "triangle_mix"]
    assert claim.rule.endswith("; without infllm_v2, moba")
    judged = paper_study.judge(claim, {"dense": DENSE, "fa_ssa": DENSE, "xattention": WORSE, "triangle_mix": DENSE}, {})
    assert [check["holds"] for check in judged["checks"]] == [True, False] and judged["verdict"] == "partly"
    half = paper_study.judge(CLAIMS["quality_esr"], {"dense": DENSE, "routed_0.9": DENSE, "static_0.5": DENSE}, {})
    assert half["checks"] == [] and half["verdict"] == "open"


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
