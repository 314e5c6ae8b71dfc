"""The plugin on a GPU, in half precision: every token is as good as the best one of the transformers path."""

import pytest
import torch
from ranks import ask_ranks, join_ranks
from served_models import HEADS, Engines, Served, make_params, make_prompts, run_engine

from elastic_attention import attach
from elastic_attention.models.generation import Prompt, tell_prompt
from elastic_attention.models.loading import new_cache
from elastic_attention.serving.requests import read_route_request
from tiny_models import LAYERS, elastic_config, make_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LENGTHS = [40, 900, 1500, 641, 129, 1100, 385, 700]
BLOCK, FIRST = 128, 512
MIXED = "011010"
ROUTES = ["sparse", MIXED, "sparse", "off", MIXED, MIXED[::-1], "sparse", MIXED]
CLOSE = 0.05
"""Of the distance between the best and the mean logit: what half precision may turn."""
OPTIONS = dict(
    dtype="float16",
    max_model_len=2048,
    max_num_seqs=8,
    gpu_memory_utilization=0.1,
    kv_cache_memory_bytes=1 << 30,
)
GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8]}
GRAPHED = OPTIONS | dict(enforce_eager=False, compilation_config=GRAPHS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model whose blocks are those of FlashAttention, with routers of both kinds, by granularity."""
    folder, found = tmp_path_factory.mktemp("gpu"), {}
    sizes = dict(head_dim=128, hidden_size=256, num_attention_heads=8, num_key_value_heads=HEADS)
    for granularity in ("head", "layer"):
        model = make_model("qwen3", initializer_range=0.06, **sizes)
        model.save_pretrained(folder / "model")
        torch.manual_seed(1)
        streaming = dict(block_size=BLOCK, num_sink_tokens=128, local_window=256)
        handle = attach(model, elastic_config(model, granularity=granularity, **streaming))
        handle.save_pretrained(folder / granularity)
        found[granularity] = Served(folder / "model", folder / granularity, model, handle)
    return found


@pytest.fixture(scope="module")
def engines(made):
    """Engines of that model; its head routers unless told otherwise."""
    engines = Engines(made["head"])
    yield engines
    engines.close()


def test_all_full_is_stock(engines):
    prompts = make_prompts(LENGTHS)
    block = dict(block_size=BLOCK)
    wanted = [tokens for tokens, _ in run_engine(engines(is_stock=True, **GRAPHED, **block), prompts, make_params(40))]
    results = run_engine(engines(**GRAPHED, **block), prompts, make_params(40, elastic_routes="off"))
    assert [tokens for tokens, _ in results] == wanted


@pytest.mark.parametrize("chunk", [2048, 512])
def test_tokens_in_graphs(engines, chunk):
    assert len(MIXED) == LAYERS * HEADS
    engine = engines(max_num_batched_tokens=chunk, **GRAPHED)
    prompts = make_prompts(LENGTHS)
    for _ in range(2):  # from the prefix cache, the second time
        results = run_engine(engine, prompts, [make_params(40, elastic_routes=routes) for routes in ROUTES])
        for prompt, (tokens, _), routes in zip(prompts, results, ROUTES, strict=True):
            given = read_route_request({"elastic_routes": routes}, engines.served.handle.config).routes
            assert find_worst(read_logits(engines.served, prompt, tokens, given=given), tokens) < CLOSE


@pytest.mark.parametrize("granularity", ["head", "layer"])
@pytest.mark.parametrize("policy", ["deferred", "first_chunk"])
def test_decided_routes(engines, made, policy, granularity):
    """The second time all blocks but the last token's are cached, so that a graph's step ends the prompt."""
    served, prompts = made[granularity], make_prompts([n * BLOCK + 1 for n in (5, 8, 6, 7)], seed=9)
    serving = dict(routers=str(served.routers), policy=policy, first_chunk_tokens=FIRST)
    engine = engines(serving=serving, **GRAPHED)
    for _ in range(2):
        for prompt in prompts:
            ((tokens, report),) = run_engine(engine, [prompt], make_params(24))
            cut = FIRST if policy == "first_chunk" else len(prompt) // 2
            logits = read_logits(served, prompt, tokens, policy=policy, cut=cut)
            assert report["msr"] == pytest.approx(float(served.handle.report()["msr"][0]))
            assert find_worst(logits, tokens) < CLOSE


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("granularity", ["head", "layer"])
def test_ranks_on_gpus(made, granularity, size):
    """Each rank decides for its own heads, or all decide alike, as the transformers path does."""
    if torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} GPUs")
    served, lengths, new = made[granularity], [900, 1500, 641, 1100], 24
    results, ranks = ask_ranks(served, lengths, new, tensor_parallel_size=size, **OPTIONS)
    for prompt, (tokens, _), routes in zip(make_prompts(lengths), results, join_ranks(ranks, HEADS), strict=True):
        logits = read_logits(served, prompt, tokens, policy="deferred", cut=len(prompt) // 2)
        assert routes == served.handle.report()["routes"][0].tolist()
        assert find_worst(logits, tokens) < CLOSE


@torch.inference_mode()
def read_logits(served, prompt, tokens, *, given=None, policy="deferred", cut=None):
    """Logits (new tokens, V) of the transformers path, which reads the prompt in two chunks where `cut` says so."""
    model, handle, cache = served.model, served.handle, new_cache(served.model)
    handle.prefill_policy, handle.first_chunk_tokens = policy, FIRST
    handle.set_routes(given)
    ids = torch.tensor([prompt])
    with tell_prompt(handle, Prompt(num_columns=len(prompt), routes=None)):
        handle.restart_report()
        for chunk in ids.split(cut or len(prompt), dim=1):
            first = model(chunk, past_key_values=cache, logits_to_keep=1).logits
        rest = model(torch.tensor([tokens[:-1]]), past_key_values=cache).logits
    handle.set_routes(None)
    return torch.cat([first, rest], dim=1)[0]


def find_worst(logits, tokens):
    """The largest distance of a token's logit from the best one, in parts of the best one's from the mean."""
    best = logits.amax(-1)
    gap = best - logits[torch.arange(len(tokens)), torch.tensor(tokens)]
    return float((gap / (best - logits.mean(-1))).max())
