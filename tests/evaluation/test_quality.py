import math

import pytest
import torch

from elastic_attention.evaluation.decoding import score_through_cache
from elastic_attention.evaluation.intervals import bootstrap_macro
from elastic_attention.evaluation.methods import Method, prepare_source
from elastic_attention.evaluation.quality import SampleScore, SuiteConfig, draw_suite, score_method
from elastic_attention.evaluation.summary import summarize_methods
from hash_tokenizer import HashTokenizer
from tiny_models import attach_tiny, make_model

SUITE = SuiteConfig(kinds=("needle", "prose"), lengths=(512, 640), samples=4, tokens_per_forward=1400)


@pytest.fixture(scope="module")
def long_handle():
    return attach_tiny(make_model("llama", max_position_embeddings=4096))


@pytest.fixture(scope="module")
def batches():
    return draw_suite(SUITE, HashTokenizer())


def test_suite_holds_every_sample_once(batches):
    found = sorted((row.kind, row.index) for batch in batches for row in batch.rows)
    assert found == sorted((kind, i) for kind in SUITE.kinds for i in range(4))


def test_scores_resume_without_asking_twice(long_handle, batches, tmp_path, monkeypatch):
    method, path = Method(name="routed"), tmp_path / "scores.jsonl"
    whole = score_method(method, long_handle, batches, path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + '\n{"kind": "need')  # killed in the middle of a line
    assert score_method(method, long_handle, batches, path) == whole

    def refuse(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr(long_handle.model, "forward", refuse)
    assert score_method(method, long_handle, batches, path) == whole


def test_one_forward_scores_like_decoding_through_the_cache(long_handle, batches, tmp_path):
    once = {(s.kind, s.index): s for s in score_method(Method(name="routed"), long_handle, batches, tmp_path / "a")}
    rows = [row for batch in batches for row in batch.rows]
    for score in score_through_cache(long_handle, rows, "cache"):
        other = once[score.kind, score.index]
        assert (score.score, score.msr) == (other.score, pytest.approx(other.msr))
        assert score.loss == pytest.approx(other.loss, abs=1e-4)
        assert score.esr_prefill == pytest.approx(other.esr_prefill)


def test_methods_route_as_they_say(long_handle):
    ids, pooled = torch.arange(2000), torch.zeros(2000, 2, 16)
    assert not prepare_source(Method(name="dense"), long_handle)(ids)(0, pooled).any()
    assert prepare_source(Method(name="all_sparse"), long_handle)(ids)(0, pooled).all()
    random = prepare_source(Method(name="random", target=0.3), long_handle)(ids)(1, pooled)
    assert random.float().mean().item() == pytest.approx(0.3, abs=0.03)
    again = prepare_source(Method(name="random", target=0.3), long_handle)(ids.flip(0))(1, pooled)
    assert torch.equal(again.flip(0), random)
    with pytest.raises(ValueError, match="target"):
        prepare_source(Method(name="random"), long_handle)


def make_scores(kind, values, msr=0.5):
    return [
        SampleScore(kind=kind, category="a", index=i, prompt_tokens=9, score=v, loss=0.0, msr=msr, esr_prefill=0.25)
        for i, v in enumerate(values)
    ]


def test_summary_pairs_samples_and_leaves_out_what_dense_cannot_do():
    dense = make_scores("easy", [1.0, 1.0, 1.0, 0.0]) + make_scores("hard", [0.0, 0.0, 0.0, 1.0])
    routed = make_scores("easy", [1.0, 1.0])
    metrics = summarize_methods([(Method(name="dense"), dense), (Method(name="routed"), routed)])
    assert metrics["mastered"] == ["easy"]
    assert metrics["rows"][1]["relative_score"] == 1.0  # against the same two samples, not against all four
    assert metrics["rows"][0]["score"] == 0.75
    with pytest.raises(ValueError, match="hard"):
        summarize_methods([(Method(name="dense"), make_scores("hard", [0.0]))])


def test_bootstrap_covers_and_pairs():
    generator = torch.Generator().manual_seed(0)
    base = {"k": (torch.rand(400, generator=generator) < 0.8).double()}
    interval = bootstrap_macro(base, base)
    low, high = interval["score"][1:]
    expected = 1.96 * (0.8 * 0.2 / 400) ** 0.5
    assert (high - low) / 2 == pytest.approx(expected, rel=0.15)
    assert interval["relative"] == (1.0, 1.0, 1.0)  # the same samples on both sides leave no doubt


def test_a_few_resamples_without_a_base_leave_the_interval():
    """Of eight samples, one resample in 256 holds no right answer of the base; where a third do, nothing is known."""
    base = {"k": torch.tensor([1, 0] * 4, dtype=torch.float64)}
    low, high = bootstrap_macro({"k": base["k"] / 2}, base)["relative"][1:]
    assert low == high == 0.5
    rare = {"k": torch.tensor([1] + [0] * 7, dtype=torch.float64)}
    assert bootstrap_macro(rare, rare)["relative"] == (1.0, -math.inf, math.inf)
