"""The part for GPUs, wired as there but with a kernel of PyTorch: layouts, tables, rows and routes are right."""

import pytest
from served_models import HEADS, make_params, make_prompts, run_engine
from test_exact import LAYERED, MIXED, NEW, check, draw_requests

import elastic_attention.serving.vllm.attention as attention
import elastic_attention.serving.vllm.worker_cpu as worker_cpu
from elastic_attention.serving.vllm.layout import PlainKeys

fake_flash = pytest.importorskip("fake_flash")
attention_cuda = pytest.importorskip("elastic_attention.serving.vllm.attention_cuda")
pytest.importorskip("vllm.v1.attention.backends.zentorch_sdpa", reason="how a CPU takes this backend in newer releases")


@pytest.fixture(params=["FakeFlashBackend", "GraphedFlashBackend"])
def flash(engines, monkeypatch, request):
    """Engines with FlashAttention's classes; without and with buffers for CUDA graphs."""
    engines.close()
    monkeypatch.setattr(worker_cpu, "ElasticCPUBackend", getattr(fake_flash, request.param))
    monkeypatch.setattr(attention_cuda, "count_requests", lambda config: config.scheduler_config.max_num_seqs)
    monkeypatch.setattr(attention, "make_reader", lambda *_: PlainKeys())
    yield engines
    engines.close()


@pytest.mark.parametrize(
    "policy, granularity", [("deferred", "head"), ("deferred", "layer"), ("first_chunk", "head"), ("probe", "head")]
)
def test_requests_in_chunks_with_prefix_caching(flash, served, layered, policy, granularity):
    served, mixed = (served, MIXED) if granularity == "head" else (layered, LAYERED)
    engine = flash(
        serving=dict(routers=str(served.routers), policy=policy, first_chunk_tokens=128),
        enable_prefix_caching=True,
        max_num_batched_tokens=96,
        max_num_seqs=8,
    )
    prompts, extras = draw_requests(12, seed=17, mixed=mixed)
    params = [make_params(NEW, **extra) for extra in extras]
    fake_flash.HEADS_SEEN.clear()
    for _ in range(2):
        check(served, run_engine(engine, prompts, params), prompts, extras, policy=policy)
    assert 1 in fake_flash.HEADS_SEEN and {1, HEADS} >= fake_flash.HEADS_SEEN


@pytest.mark.parametrize("granularity", ["head", "layer"])
def test_a_cached_prompt_whose_last_token_follows_the_routes_it_decides(flash, served, layered, granularity):
    """All blocks but the last token's are cached, so a step of single tokens decides behind the first chunk."""
    served = served if granularity == "head" else layered
    serving = dict(routers=str(served.routers), policy="first_chunk", first_chunk_tokens=128)
    engine = flash(serving=serving, enable_prefix_caching=True, max_num_seqs=8)
    prompts = make_prompts([257] * 4, seed=23)
    for _ in range(2):
        for prompt in prompts:
            check(served, run_engine(engine, [prompt], [make_params(NEW)]), [prompt], [{}], policy="first_chunk")
