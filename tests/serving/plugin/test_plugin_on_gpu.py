"""The plugin on a GPU, in half precision: every token is as good as the best one of the transformers path."""

import pytest
import torch
from served_models import HEADS, Engines, Served, make_params, make_prompts, run_engine

from elastic_attention import attach
from elastic_attention.serving.requests import read_route_request
from tiny_models import LAYERS, elastic_config, make_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LENGTHS = [40, 900, 1500, 641, 129, 1100, 385, 700]
MIXED = "011010"
ROUTES = ["sparse", MIXED, "sparse", "off", MIXED, MIXED[::-1], "sparse", MIXED]
CLOSE = 0.05
"""Of the distance between the best and the mean logit: what half precision may turn."""


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Engines of a model whose blocks are those of FlashAttention."""
    folder = tmp_path_factory.mktemp("gpu")
    sizes = dict(head_dim=128, hidden_size=256, num_attention_heads=8, num_key_value_heads=HEADS)
    model = make_model("qwen3", initializer_range=0.06, **sizes)
    model.save_pretrained(folder / "model")
    handle = attach(model, elastic_config(model, block_size=128, num_sink_tokens=128, local_window=256))
    handle.save_pretrained(folder / "routers")
    made = Engines(Served(folder / "model", folder / "routers", model, handle))
    yield made
    made.close()


@pytest.mark.parametrize("chunk", [2048, 512])
def test_tokens_in_graphs(engines, chunk):
    assert len(MIXED) == LAYERS * HEADS
    graphs = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8]}
    engine = engines(
        dtype="float16",
        enforce_eager=False,
        compilation_config=graphs,
        max_model_len=2048,
        max_num_seqs=8,
        max_num_batched_tokens=chunk,
        gpu_memory_utilization=0.3,
    )
    prompts = make_prompts(LENGTHS)
    for _ in range(2):  # from the prefix cache, the second time
        results = run_engine(engine, prompts, [make_params(40, elastic_routes=routes) for routes in ROUTES])
        for prompt, (tokens, _), routes in zip(prompts, results, ROUTES, strict=True):
            assert find_worst(engines.served, prompt, tokens, routes) < CLOSE


def find_worst(served, prompt, tokens, routes):
    """The largest distance of a token's logit from the best one, in parts of the best one's from the mean."""
    served.handle.set_routes(read_route_request({"elastic_routes": routes}, served.handle.config).routes)
    with torch.inference_mode():
        logits = served.model(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :]
    served.handle.set_routes(None)
    best = logits.amax(-1)
    gap = best - logits[torch.arange(len(tokens)), torch.tensor(tokens)]
    return float((gap / (best - logits.mean(-1))).max())
