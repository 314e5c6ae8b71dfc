"""A trained model with the routers that ship for it: the engine says what the transformers path says."""

import pytest
from served_models import Engines, Served, make_params, run_engine, run_reference

from elastic_attention import attach
from elastic_attention.models.embedded import resolve_model
from elastic_attention.models.loading import load_model

FACTS = "The grass is green. The sky is blue. "
KEY = "The key of the red house lies under the third stone. "
ASK = "\n\nThe key of the red house lies under the"


@pytest.fixture(scope="module")
def smollm2(engines):
    """The model in float32, attached."""
    engines.close()
    model, tokenizer = load_model("smollm2", dtype="float32", device="cpu")
    model.generation_config.eos_token_id = None
    handle = attach(model)
    yield Served(resolve_model("smollm2"), None, model, handle), tokenizer


@pytest.mark.model
def test_mixed_requests(smollm2):
    served, tokenizer = smollm2
    engines = Engines(served)
    engine = engines(serving={"routers": None}, max_model_len=2048, max_num_batched_tokens=512, max_num_seqs=8)
    texts = [FACTS * n + KEY + FACTS * m + ASK for n, m in ((20, 50), (3, 70), (60, 10), (2, 1), (40, 40), (5, 5))]
    prompts = [tokenizer(text).input_ids for text in texts]
    extras = [{}, {"elastic_budget": 1.0}, {"elastic_routes": "off"}, {}, {"elastic_routes": "sparse"}, {}]
    results = run_engine(engine, prompts, [make_params(8, **extra) for extra in extras])
    again = run_engine(engine, prompts, [make_params(8, **extra) for extra in extras])
    engines.close()
    assert again == results
    for (tokens, report), prompt, extra in zip(results, prompts, extras, strict=True):
        expected, facts = run_reference(served, prompt, 8, **extra)
        assert tokens == expected, (len(prompt), extra)
        assert report["msr"] == pytest.approx(facts["msr"])
    assert "third stone" in tokenizer.decode(results[0][0]) and results[0][1]["msr"] > 0.5
