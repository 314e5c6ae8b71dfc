"""Greedy tokens of the engine are those of the transformers path, for given and for decided routes."""

import random

import pytest
from served_models import HEADS, LIMIT, make_params, make_prompts, run_engine, run_reference

from tiny_models import LAYERS

NEW = 12
LENGTHS = [40, 150, 300, 97, 33, 512, 200, 129]
MIXED = "".join(random.Random(5).choice("01") for _ in range(LAYERS * HEADS))
LAYERED = "".join(digit * HEADS for digit in "101")


def draw_requests(count, seed, mixed=MIXED):
    """Prompts of mixed lengths with mixed options; `mixed`: given routes."""
    chooser = random.Random(seed)
    lengths = [chooser.randint(20, 400) for _ in range(count)]
    kinds = [{}, {}, {"elastic_budget": 0.5}, {"elastic_budget": -0.5}, {"elastic_routes": "off"}]
    kinds += [{"elastic_routes": "sparse"}, {"elastic_routes": mixed}]
    return make_prompts(lengths, seed), [chooser.choice(kinds) for _ in range(count)]


def check(served, results, prompts, extras, **policy):
    """Tokens, and what the request was told, are those of the transformers path."""
    for (tokens, report), prompt, extra in zip(results, prompts, extras, strict=True):
        expected, facts = run_reference(served, prompt, len(tokens), **policy, **extra)
        assert tokens == expected, (len(prompt), extra)
        assert report["prompt_tokens"] == len(prompt)
        assert report["msr"] == pytest.approx(facts["msr"])
        assert report["esr_decode"] == pytest.approx(facts["esr_decode"])


@pytest.mark.parametrize(
    "options",
    [
        dict(enable_prefix_caching=False),
        dict(enable_prefix_caching=True, max_num_batched_tokens=64, max_num_seqs=8),
    ],
    ids=["plain", "chunked, prefix caching"],
)
def test_thirty_two_mixed_requests(engines, served, options):
    engine = engines(**options)
    prompts, extras = draw_requests(32, seed=3)
    params = [make_params(NEW, **extra) for extra in extras]
    check(served, run_engine(engine, prompts, params), prompts, extras)
    if options["enable_prefix_caching"]:  # every block of a prompt is there by now
        check(served, run_engine(engine, prompts, params), prompts, extras)


def test_prompts_that_share_their_start(engines, served):
    engine = engines(enable_prefix_caching=True, max_num_batched_tokens=64, max_num_seqs=8)
    start = make_prompts([256], seed=11)[0]
    prompts = [start + end for end in make_prompts([5, 70, 33, 1, 64, 20], seed=12)]
    extras = [{}, {"elastic_routes": "sparse"}, {}, {"elastic_routes": MIXED}, {"elastic_routes": "sparse"}, {}]
    params = [make_params(NEW, **extra) for extra in extras]
    for prompt, param, extra in zip(prompts, params, extras, strict=True):  # one after the other: every one hits
        check(served, run_engine(engine, [prompt], [param]), [prompt], [extra])
    # A later turn must not read blocks of tokens that were generated sparsely.
    (tokens, _), *_ = run_engine(engine, [prompts[0]], [make_params(64)])
    later = [prompts[0] + tokens + [1, 2, 3]]
    check(served, run_engine(engine, later, [make_params(NEW)]), later, [{}])


@pytest.mark.parametrize("policy", ["first_chunk", "probe"])
def test_other_policies(engines, served, policy):
    engine = engines(
        serving=dict(policy=policy, first_chunk_tokens=128),
        enable_prefix_caching=True,
        max_num_batched_tokens=96,
        max_num_seqs=8,
    )
    prompts, extras = draw_requests(12, seed=8)
    params = [make_params(NEW, **extra) for extra in extras]
    for _ in range(2):
        check(served, run_engine(engine, prompts, params), prompts, extras, policy=policy)


def test_all_full_is_stock(engines):
    prompts = make_prompts(LENGTHS)
    expected = [tokens for tokens, _ in run_engine(engines(is_stock=True), prompts, make_params(32))]
    results = run_engine(engines(), prompts, make_params(32, elastic_routes="off"))
    assert [tokens for tokens, _ in results] == expected
    assert all(report["msr"] == 0 and not report["routed"] for _, report in results)


def test_preempted_requests_keep_their_routes(engines, served):
    # Two blocks fewer than the requests need, so that some are preempted while they generate.
    engine = engines(num_gpu_blocks_override=24, enable_prefix_caching=False, max_num_seqs=8, max_model_len=LIMIT // 2)
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    preempted, preempt = [], scheduler._preempt_request
    scheduler._preempt_request = lambda request, *args, **kw: (preempted.append(request), preempt(request, *args, **kw))
    prompts, new = make_prompts([150, 170, 130, 140], seed=21), 80
    extras = [{}, {"elastic_routes": MIXED}, {"elastic_budget": 0.5}, {}]
    results = run_engine(engine, prompts, [make_params(new, **extra) for extra in extras])
    check(served, results, prompts, extras)
    assert any(request.num_output_tokens for request in preempted)
