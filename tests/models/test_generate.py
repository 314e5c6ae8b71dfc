"""generate() as people use it, against a model that attends by masks and knows nothing of this library."""

import pytest
import torch

from elastic_attention.models import generation
from tiny_models import GREEDY, attach_tiny, generate, left_padded, make_model, random_routes, text


@pytest.mark.parametrize("decode", ["sparse", "full"])
@pytest.mark.parametrize("length", [49, 64, 111, 150])
def test_greedy_routed_tokens_equal_the_oracle(model, oracle, decode, length):
    handle = attach_tiny(model, decode=decode)
    out = generate(model, text(length))
    routes = handle.report()["routes"]
    assert routes.any() and not routes.all()
    wanted = oracle.greedy(text(length), routes, 40, prompt_length=length if decode == "full" else None)
    assert torch.equal(out, wanted)


@pytest.mark.parametrize("routes", ["full", "sparse"])
def test_greedy_all_full_and_all_sparse(model, handle, oracle, routes):
    handle.set_routes(routes)
    given = torch.full((3, 2), routes == "sparse")
    assert torch.equal(generate(model, text(111)), oracle.greedy(text(111), given, 40))


def test_batch_with_left_padding_routes_every_row_as_if_alone(model, handle, oracle):
    lengths = [150, 111, 63, 30]
    ids, mask, _ = left_padded([text(150, seed=s)[:, :n] for s, n in enumerate(lengths)])
    out = generate(model, ids, attention_mask=mask)
    report = handle.report()
    assert report["prompt_tokens"] == lengths and report["routed"] == [True, True, True, False]
    assert len({str(r.tolist()) for r in report["routes"]}) == 3
    for b, n in enumerate(lengths):
        prompt = text(150, seed=b)[:, :n]
        alone = generate(model, prompt)
        assert torch.equal(out[b, 150:], alone[0, n:])
        assert torch.equal(handle.report()["routes"][0], report["routes"][b])
        assert torch.equal(alone, oracle.greedy(prompt, report["routes"][b], 40))


def test_all_full_padded_batch_says_what_the_base_model_says(model):
    ids, mask, positions = left_padded([text(150), text(63, seed=2), text(1, seed=3)])
    options = dict(attention_mask=mask, position_ids=positions)
    base, logits = generate(model, ids, attention_mask=mask), model(ids, **options).logits
    attach_tiny(model).set_routes("full")
    assert torch.equal(generate(model, ids, attention_mask=mask), base)
    found = model(ids, **options).logits
    torch.testing.assert_close(found[mask.bool()], logits[mask.bool()], rtol=0, atol=2e-4)


def test_given_routes_of_each_row(model, handle, oracle):
    routes = random_routes(model, batch=3)
    handle.set_routes(routes)
    ids = text(111, rows=3)
    assert torch.equal(generate(model, ids), oracle.greedy(ids, routes, 40))
    assert torch.equal(handle.report()["routes"], routes)


def test_sampling_with_a_seed(model):
    def sample():
        torch.manual_seed(11)
        return model.generate(text(111), do_sample=True, temperature=0.9, top_k=20, max_new_tokens=30)

    base = sample()
    handle = attach_tiny(model)
    routed = sample()
    assert torch.equal(routed, sample()) and not torch.equal(routed, base)
    handle.set_routes("full")
    assert torch.equal(sample(), base)


@pytest.mark.parametrize("decode", ["sparse", "full"])
def test_beams_follow_their_prompts_routes(model, decode):
    ids, mask, _ = left_padded([text(111, seed=1), text(80, seed=2)])
    options = dict(attention_mask=mask, num_beams=3, num_return_sequences=2, max_new_tokens=30)
    base = generate(model, ids, **options)
    handle = attach_tiny(model, decode=decode)
    handle.set_routes("full")
    assert torch.equal(generate(model, ids, **options), base)
    handle.set_routes(None)
    routed = generate(model, ids, **options)
    report = handle.report()
    assert len(report["msr"]) == 6
    for b in range(2):
        assert (report["routes"][3 * b : 3 * b + 3] == report["routes"][3 * b]).all()
    handle.set_routes(report["routes"][[0, 3]])
    assert torch.equal(generate(model, ids, **options), routed)
    # Without a cache nothing is reordered.
    assert torch.equal(generate(model, ids, use_cache=False, **options), routed)


def test_num_return_sequences_share_the_prompts_route(model, handle):
    torch.manual_seed(5)
    out = model.generate(text(111, rows=2), do_sample=True, num_return_sequences=3, max_new_tokens=8)
    report = handle.report()
    assert out.shape[0] == 6 and len(report["msr"]) == 6
    handle.set_routes(report["routes"][[0, 3]])
    torch.manual_seed(5)
    again = model.generate(text(111, rows=2), do_sample=True, num_return_sequences=3, max_new_tokens=8)
    assert torch.equal(out, again)


def test_inputs_embeds(model, handle):
    out = generate(model, text(111))
    embeds = model.get_input_embeddings()(text(111))
    assert torch.equal(model.generate(inputs_embeds=embeds, **GREEDY)[:, -40:], out[:, -40:])
    assert handle.report()["prompt_tokens"] == [111]


def test_without_a_cache(model, handle, oracle, caplog):
    generation._warn_once.cache_clear()
    for _ in range(2):
        generate(model, text(111), use_cache=False, max_new_tokens=3)
    assert [r.getMessage() for r in caplog.records if "use_cache=False" in r.getMessage()] == [
        "use_cache=False decides the routes again at every token; set_routes fixes them."
    ]
    generation._warn_once.cache_clear()
    caplog.clear()
    handle.set_routes(routes := random_routes(model))
    assert torch.equal(generate(model, text(111), use_cache=False), oracle.greedy(text(111), routes, 40))
    assert not caplog.records
    handle.set_routes(None)
    model.generation_config.use_cache = False
    generate(model, text(111), max_new_tokens=2)
    assert len(caplog.records) == 1


def test_prompt_past_the_limit_names_both_lengths():
    short = make_model(max_position_embeddings=64)
    attach_tiny(short)
    with pytest.raises(ValueError, match="65 tokens, the model takes 64"):
        short.generate(text(65), max_new_tokens=1)
    # Padding does not count.
    ids, mask, _ = left_padded([text(40)], width=80)
    assert short.generate(ids, attention_mask=mask, max_new_tokens=1, do_sample=False).shape == (1, 81)
