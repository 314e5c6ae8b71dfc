"""generate() as people use it, against a model that attends by masks and knows nothing of this library."""

import copy

import pytest
import torch
from transformers import DynamicCache

from elastic_attention import find_handle
from elastic_attention.models import generation
from oracle_model import OracleModel
from tiny_models import NEEDED, attach_tiny, elastic_config, left_padded, make_model, random_routes, text

GREEDY = dict(do_sample=False, max_new_tokens=40)


@pytest.fixture(scope="module")
def oracle():
    model = make_model()
    return OracleModel(model, elastic_config(model))


def generate(model, ids, **options):
    return model.generate(ids, **(GREEDY | options))


# One turn ---------------------------------------------------------------------------------------------------------


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


# Chunked prefill --------------------------------------------------------------------------------------------------


def dense_pooled(model, handle, ids, first=None):
    """Pooled keys by layer of a dense pass over `ids`, brute force: the mean over the first and last n tokens."""
    n, pooled = handle.config.router.pooled_tokens, {}

    def note(index, keys):
        pooled[index] = keys
        return torch.zeros(keys.shape[:2], dtype=torch.bool)

    chosen = ids[:, :first]
    with torch.no_grad(), handle.routed_by(note, is_sampling=False):
        model.base_model(input_ids=chosen, use_cache=False)
    assert n * 2 < chosen.shape[1]
    return pooled


@pytest.mark.parametrize("chunk", [16, 32, 50, 149, 150])
def test_deferred_is_dense_while_prefilling_and_routes_at_the_end(model, handle, chunk):
    ids = text(150)
    base_first = None
    with handle.disabled():
        base_first = generate(model, ids, max_new_tokens=1)
    pooled = dense_pooled(model, handle, ids)
    wanted = torch.stack([handle.decide(i, pooled[i])[0] for i in range(3)])
    out = generate(model, ids, prefill_chunk_size=chunk)
    report = handle.report()
    if chunk < 150:
        assert torch.equal(report["routes"][0], wanted) and report["routed"] == [True]
        assert torch.equal(out[:, :151], base_first)
        assert report["esr_prefill"] == [0.0] and report["esr_decode"][0] > 0
        assert torch.equal(out, generate(model, ids, prefill_chunk_size=37))
    else:
        assert report["esr_prefill"][0] > 0
    assert report["kv_bytes"][0] < report["kv_bytes_dense"][0]


@pytest.mark.parametrize("first", [60, 100, 149])
def test_first_chunk_pools_the_same_tokens_whatever_the_chunk(model, first):
    handle = attach_tiny(model, prefill_policy="first_chunk", first_chunk_tokens=first)
    ids = text(150)
    pooled = dense_pooled(model, handle, ids, first)
    wanted = torch.stack([handle.decide(i, pooled[i])[0] for i in range(3)])
    for chunk in (None, 16, 32, 50, 100):
        generate(model, ids, prefill_chunk_size=chunk, max_new_tokens=2)
        assert torch.equal(handle.report()["routes"][0], wanted), chunk


def test_first_chunk_in_a_padded_batch_equals_each_row_alone(model):
    handle = attach_tiny(model, prefill_policy="first_chunk", first_chunk_tokens=20)
    lengths = [150, 70, 55, 40]
    prompts = [text(150, seed=s)[:, :n] for s, n in enumerate(lengths)]
    ids, mask, _ = left_padded(prompts)
    for chunk in (None, 16):
        generate(model, ids, attention_mask=mask, prefill_chunk_size=chunk, max_new_tokens=2)
        together = handle.report()
        for b, prompt in enumerate(prompts):
            generate(model, prompt, prefill_chunk_size=chunk and min(chunk, prompt.shape[1] - 1), max_new_tokens=2)
            assert torch.equal(handle.report()["routes"][0], together["routes"][b])
            assert handle.report()["routed"] == [together["routed"][b]] == [lengths[b] > NEEDED]


def test_probe_makes_chunks_exact(model, oracle):
    handle = attach_tiny(model, prefill_policy="probe")
    ids, mask, _ = left_padded([text(150), text(100, seed=4), text(30, seed=5)])
    whole = generate(model, ids, attention_mask=mask)
    routes = handle.report()["routes"]
    assert routes[:2].any() and not routes[2].any()
    assert handle.report()["esr_prefill"][0] > 0
    for chunk in (16, 50):
        assert torch.equal(generate(model, ids, attention_mask=mask, prefill_chunk_size=chunk), whole)
        assert torch.equal(handle.report()["routes"], routes)
    assert torch.equal(whole[:1], oracle.greedy(text(150), routes[0], 40))
    # The probe reads the first and last n tokens at their own positions.
    n = handle.config.router.pooled_tokens
    ends = torch.cat([text(150)[:, :n], text(150)[:, -n:]], 1)
    positions = torch.cat([torch.arange(n), torch.arange(150 - n, 150)])[None]
    seen = {}
    with torch.no_grad(), handle.routed_by(lambda i, x: seen.setdefault(i, x)[..., 0] > torch.inf, is_sampling=False):
        model.base_model(ends, attention_mask=torch.ones_like(ends), position_ids=positions, use_cache=False)
    wanted = torch.stack([handle.decide(i, seen[i])[0] for i in range(3)])
    assert torch.equal(routes[0], wanted)


# Several turns ----------------------------------------------------------------------------------------------------


def converse(model, turns, *, num_new=10, cache=None, **options):
    """Each turn appends (1, n) tokens to what was said and generates `num_new`; returns all ids and the cache."""
    said, cache = torch.zeros(1, 0, dtype=torch.long), cache or DynamicCache(config=model.config)
    for turn in turns:
        said = torch.cat([said, turn], 1)
        said = generate(model, said, past_key_values=cache, max_new_tokens=num_new, **options)
    return said, cache


def test_turns_over_a_kept_cache_equal_the_oracle(model, handle, oracle):
    turns = [text(70, seed=1), text(1, seed=2), text(90, seed=3)]
    said, _ = converse(model, turns)
    report = handle.report()
    routes, wanted = report["routes"], torch.zeros(1, 0, dtype=torch.long)
    assert routes.any() and report["prompt_tokens"] == [91]  # and the last token of the turn before, not cached yet
    for turn in turns:
        wanted = oracle.greedy(torch.cat([wanted, turn], 1), routes, 10)
    assert torch.equal(said, wanted)


def test_a_batch_with_holes_equals_each_conversation_alone(model, handle):
    """Turns of different length leave padding in the middle of the mask."""
    conversations = [
        [text(70, seed=1), text(40, seed=2), text(30, seed=3)],
        [text(20, seed=4), text(60, seed=5), text(9, seed=6)],
    ]
    alone, routes = [], []
    for turns in conversations:
        alone.append(converse(model, turns)[0])
        routes.append(handle.report()["routes"][0])
    cache, said, masks = DynamicCache(config=model.config), None, None
    for parts in zip(*conversations, strict=True):
        ids, mask, _ = left_padded(list(parts))
        said = ids if said is None else torch.cat([said, ids], 1)
        masks = mask if masks is None else torch.cat([masks, mask], 1)
        said = generate(model, said, attention_mask=masks, past_key_values=cache, max_new_tokens=10)
        masks = torch.cat([masks, torch.ones(2, 10, dtype=torch.long)], 1)
    assert (masks[:, 80:].sum(1) < masks.shape[1] - 80).all()  # there were holes
    for b in range(2):
        assert torch.equal(said[b][masks[b].bool()], alone[b][0])
        assert torch.equal(handle.report()["routes"][b], routes[b])


def test_right_padding_follows_the_same_rule(model, handle, oracle):
    handle.set_routes(routes := random_routes(model))
    ids, mask = text(150, rows=2).clone(), torch.ones(2, 150, dtype=torch.long)
    mask[1, 90:] = 0
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        logits = model(ids, attention_mask=mask, past_key_values=cache).logits
        longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        step = model(
            text(1, rows=2, seed=9),
            attention_mask=longer,
            past_key_values=cache,
            position_ids=torch.tensor([[150], [90]]),
        ).logits
    for b, n in enumerate((150, 90)):
        wanted = oracle.logits(torch.cat([ids[b : b + 1, :n], text(1, rows=2, seed=9)[b : b + 1]], 1), routes)
        torch.testing.assert_close(logits[b, :n], wanted[0, :n], rtol=0, atol=2e-4)
        torch.testing.assert_close(step[b, 0], wanted[0, n], rtol=0, atol=2e-4)


def test_short_sequences_stay_undecided_until_a_prompt_makes_them_long(model, handle, oracle):
    cache = DynamicCache(config=model.config)
    said = generate(model, text(30), past_key_values=cache, max_new_tokens=60)
    report = handle.report()
    # 89 tokens are cached by now: decoding alone does not decide.
    assert report["routed"] == [False] and report["msr"] == [0.0] and report["esr_decode"] == [0.0]
    assert report["kv_bytes"] == report["kv_bytes_dense"]
    assert torch.equal(said, oracle.greedy(text(30), torch.zeros(3, 2, dtype=torch.bool), 60))
    said = generate(model, torch.cat([said, text(2, seed=2)], 1), past_key_values=cache)
    report = handle.report()
    assert report["routed"] == [True] and report["msr"][0] > 0
    assert report["kv_bytes"][0] < report["kv_bytes_dense"][0]


@pytest.mark.parametrize("length, is_routed", [(NEEDED - 1, False), (NEEDED, False), (NEEDED + 1, True)])
def test_the_length_that_is_routed(model, handle, length, is_routed):
    generate(model, text(length), max_new_tokens=2)
    assert handle.report()["routed"] == [is_routed]
    with torch.no_grad():
        model(text(length), use_cache=False)
    assert handle.report()["routed"] == [is_routed]


def test_a_live_cache_keeps_its_routes(model, handle):
    cache = DynamicCache(config=model.config)
    said = generate(model, text(111), past_key_values=cache, max_new_tokens=4)
    routes = handle.report()["routes"]
    handle.set_routes("sparse")
    handle.budget = 1e4
    generate(model, torch.cat([said, text(60, seed=8)], 1), past_key_values=cache, max_new_tokens=4)
    assert torch.equal(handle.report()["routes"], routes)


def test_reroute_on_append_only_turns_full_heads_sparse(model):
    handle = attach_tiny(model, reroute_on_append=True)
    cache = DynamicCache(config=model.config)
    handle.budget = -15.0
    said = generate(model, text(111), past_key_values=cache, max_new_tokens=4)
    before = handle.report()["routes"]
    handle.budget = 10.0
    said = generate(model, torch.cat([said, text(60, seed=8)], 1), past_key_values=cache, max_new_tokens=4)
    after = handle.report()["routes"]
    assert before.any() and (after & ~before).any() and not (before & ~after).any()
    handle.budget = -1e4
    generate(model, torch.cat([said, text(60, seed=9)], 1), past_key_values=cache, max_new_tokens=4)
    assert torch.equal(handle.report()["routes"], after)
    # Heads that turned sparse late hold what sparse heads hold.
    held = handle.report()["kv_bytes"][0]
    assert held < handle.report()["kv_bytes_dense"][0]
    for layer in cache.layers:
        stored = layer.store.stored_lengths(layer.store.groups[1])
        assert set(stored) <= {layer.store.pattern.count_held(layer.store.lengths[0])}


def test_late_sparse_heads_read_what_is_left(model, oracle):
    """After a reroute, tokens equal those of an oracle whose last layer changed its routes at that turn."""
    handle = attach_tiny(model, reroute_on_append=True)
    first = torch.zeros(3, 2, dtype=torch.bool)
    first[2, 0] = True
    then = first.clone()
    then[2, 1] = True
    cache = DynamicCache(config=model.config)
    turns = [text(111, seed=1), text(50, seed=2)]
    with torch.no_grad():
        with handle.routed_by(lambda i, x: first[i : i + 1], is_sampling=False):
            model(turns[0], past_key_values=cache)
        with handle.routed_by(lambda i, x: then[i : i + 1], is_sampling=False):
            logits = model(turns[1], past_key_values=cache).logits
            step = model(text(1), past_key_values=cache).logits
    # Only the last layer is ever sparse, so its inputs do not depend on the routes.
    wanted = oracle.logits(torch.cat([*turns, text(1)], 1), then)
    torch.testing.assert_close(logits, wanted[:, 111:161], rtol=0, atol=2e-4)
    torch.testing.assert_close(step, wanted[:, 161:], rtol=0, atol=2e-4)


def test_deep_copied_caches_go_their_own_ways(model, handle):
    cache = DynamicCache(config=model.config)
    said = generate(model, text(111), past_key_values=cache, max_new_tokens=4)
    saved = copy.deepcopy(cache)
    turn_a, turn_b = (torch.cat([said, text(30, seed=s)], 1) for s in (1, 2))
    first = generate(model, turn_a, past_key_values=cache)
    other = generate(model, turn_b, past_key_values=copy.deepcopy(saved))
    assert torch.equal(generate(model, turn_a, past_key_values=copy.deepcopy(saved)), first)
    assert torch.equal(generate(model, turn_b, past_key_values=saved), other)
    assert not torch.equal(first[:, -20:], other[:, -20:])


def test_cache_batch_operations_carry_routes(model, handle):
    """What contrastive search and reward-guided decoding do: repeat, select, reorder, then go on."""
    cache = DynamicCache(config=model.config)
    ids = text(111, rows=2)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        routes = handle.report()["routes"]
        assert not torch.equal(routes[0], routes[1])
        one_by_one = [copy.deepcopy(cache) for _ in range(2)]
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 0, 1, 2]))
        cache.batch_select_indices(torch.tensor([0, 1, 2]))
        found = model(text(1).expand(3, 1), past_key_values=cache).logits
        assert torch.equal(handle.report()["routes"], routes[[1, 0, 0]])
        for b, single in enumerate(one_by_one):
            single.batch_select_indices(torch.tensor([b]))
            wanted = model(text(1), past_key_values=single).logits
            for row in {0: (1, 2), 1: (0,)}[b]:
                torch.testing.assert_close(found[row], wanted[0], rtol=0, atol=1e-4)


@torch.no_grad()
def test_batch_operations_on_undecided_and_padded_sequences(model, handle):
    """Pools, decisions and holes travel with their sequences, and a later prompt decides as if alone."""
    first = [text(40, seed=1), text(30, seed=2), text(100, seed=3)]
    then = [text(30, seed=4), text(20, seed=5), text(9, seed=6)]
    alone = []
    for one, two in zip(first, then, strict=True):
        cache = DynamicCache(config=model.config)
        model(one, past_key_values=cache)
        alone.append((model(two, past_key_values=cache).logits, handle.report()["routes"][0]))
    ids, mask, positions = left_padded(first)
    cache = DynamicCache(config=model.config)
    model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
    assert handle.report()["routed"] == [False, False, True]
    order = [2, 0, 0, 1]
    cache.batch_select_indices(torch.tensor(order))
    ids, more, _ = left_padded([then[i] for i in order])
    both = torch.cat([mask[order], more], 1)
    positions = (both.cumsum(1) - 1).clamp(min=0)[:, 100:]
    before = copy.deepcopy(cache)
    for _ in range(2):
        logits = model(ids, attention_mask=both, position_ids=positions, past_key_values=cache).logits
        report = handle.report()
        assert report["routed"] == [True, True, True, True]
        for row, i in enumerate(order):
            assert torch.equal(report["routes"][row], alone[i][1])
            torch.testing.assert_close(logits[row, more[row].bool()], alone[i][0][0], rtol=0, atol=2e-4)
        cache = before


@torch.no_grad()
def test_cropping_columns_that_hold_padding(model, handle):
    """A crop counts columns; a sequence loses only the real tokens among them."""
    handle.set_routes(random_routes(model))
    ids, mask, positions = left_padded([text(100, seed=1), text(70, seed=2)])
    cache = DynamicCache(config=model.config)
    model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
    cache.reorder_cache(torch.tensor([1, 0]))
    mask = mask[[1, 0]]
    turn, more, _ = left_padded([text(2, seed=3), text(6, seed=4)])
    both = torch.cat([mask, more], 1)
    options = dict(attention_mask=both, position_ids=(both.cumsum(1) - 1)[:, 100:])
    first = model(turn, past_key_values=cache, **options).logits
    lengths = [layer.store.lengths for layer in cache.layers]
    assert lengths == [[72, 106]] * 3
    cache.crop(-6)
    assert [layer.store.lengths for layer in cache.layers] == [[70, 100]] * 3
    again = model(turn, past_key_values=cache, **options).logits
    torch.testing.assert_close(again[more.bool()], first[more.bool()], rtol=0, atol=2e-4)


@torch.no_grad()
def test_tokens_that_were_taken_back_never_reach_the_router(model):
    """Only a handle that routes again keeps pooling once a route is decided."""
    handle = attach_tiny(model, reroute_on_append=True)
    pooled = []

    def note(index, keys):
        pooled.append(keys)
        return torch.zeros(keys.shape[:2], dtype=torch.bool)

    with handle.routed_by(note, is_sampling=False):
        for seed in (1, 2):
            cache = DynamicCache(config=model.config)
            model(torch.cat([text(140), text(10, seed=seed)], 1), past_key_values=cache)
            cache.crop(-10)
            model(text(3, seed=3), past_key_values=cache)
    after_the_long_turn, after_the_crop = pooled[0::6], pooled[3::6]  # of layer 0, in both conversations
    assert torch.equal(*after_the_crop) and not torch.equal(*after_the_long_turn)


def test_a_prompt_shorter_than_its_cache(model, handle):
    cache = DynamicCache(config=model.config)
    said = generate(model, text(70), past_key_values=cache)
    with pytest.raises(
        ValueError, match="generate got 20 columns, but the cache already holds 109.*whole conversation"
    ):
        generate(model, text(20, seed=4), past_key_values=cache)
    turn = torch.cat([said[:, -1:], text(20, seed=4)], 1)
    whole = torch.cat([said, text(20, seed=4)], 1)
    new_only = copy.deepcopy(cache)
    out = generate(model, turn, past_key_values=new_only, attention_mask=torch.ones_like(whole))
    assert handle.report()["prompt_tokens"] == [21]
    assert torch.equal(out[:, -40:], generate(model, whole, past_key_values=cache)[:, -40:])


def test_reset_starts_a_new_sequence(model, handle):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        fresh = model(text(111), past_key_values=cache).logits
        cache.reset()
        assert cache.get_seq_length() == 0
        assert torch.equal(model(text(111), past_key_values=cache).logits, fresh)


# Taking tokens back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", ["sparse", "full"])
@pytest.mark.parametrize("length", [30, 47, 111, 150])
def test_prompt_lookup_says_what_greedy_says(model, decode, length):
    handle = attach_tiny(model, decode=decode)
    prompt = text(10, seed=3).repeat(1, 15)[:, :length]  # repetitive, so that candidates are found and rejected
    wanted = generate(model, prompt, max_new_tokens=60)
    routes = handle.report()["routes"]
    assert torch.equal(generate(model, prompt, max_new_tokens=60, prompt_lookup_num_tokens=5), wanted)
    assert torch.equal(handle.report()["routes"], routes)


@pytest.mark.parametrize("decode", ["sparse", "full"])
@pytest.mark.parametrize("is_assistant_routed", [False, True])
def test_assisted_decoding_says_what_greedy_says(model, decode, is_assistant_routed):
    attach_tiny(model, decode=decode)
    assistant = make_model(num_hidden_layers=3)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))  # right often, not always
    if is_assistant_routed:
        attach_tiny(assistant).set_routes("sparse")
    wanted = generate(model, text(111), max_new_tokens=60)
    assert torch.equal(generate(model, text(111), max_new_tokens=60, assistant_model=assistant), wanted)


def test_a_cache_kept_from_assisted_decoding_evicts_again(model, handle):
    handle.set_routes("sparse")
    cache = DynamicCache(config=model.config)
    said = generate(model, text(111), past_key_values=cache, prompt_lookup_num_tokens=4)
    said = torch.cat([said, text(30, seed=2)], 1)
    again = generate(model, said, past_key_values=copy.deepcopy(cache))
    assert torch.equal(again, generate(model, said))
    generate(model, said, past_key_values=cache, max_new_tokens=100)
    for layer in cache.layers:
        assert max(layer.store.stored_lengths(layer.store.groups[1])) <= NEEDED


def test_undecided_sequences_pool_only_the_candidates_that_were_kept(model, handle):
    """The later route must not depend on tokens that were guessed and taken back."""
    prompt = text(10, seed=3).repeat(1, 3)
    routes = []
    for options in ({}, {"prompt_lookup_num_tokens": 5}):
        cache = DynamicCache(config=model.config)
        said = generate(model, prompt, past_key_values=cache, max_new_tokens=15, **options)
        generate(model, torch.cat([said, text(20, seed=4)], 1), past_key_values=cache, max_new_tokens=2)
        assert handle.report()["routed"] == [True]
        routes.append(handle.report()["routes"])
        pools = [layer.pool for layer in cache.layers]
        assert pools == [None] * 3
    assert torch.equal(*routes)


def test_cropping_by_hand(model, handle, oracle):
    from elastic_attention import CacheDepthError

    handle.set_routes(routes := random_routes(model))
    ids = text(150)
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(ids[:, :147], past_key_values=cache)
        cache.crop(-2)  # 145 is in the same block, nothing of its window is gone
        found = model(ids[:, 145:], past_key_values=cache).logits
        torch.testing.assert_close(found, oracle.logits(ids, routes)[:, 145:], rtol=0, atol=2e-4)
        before = copy.deepcopy(cache)
        with pytest.raises(CacheDepthError, match="Cropping 60 of 150 tokens.*decode='full'"):
            cache.crop(-60)
        again = model(text(1), past_key_values=cache).logits  # the failed crop changed nothing
        assert torch.equal(again, model(text(1), past_key_values=before).logits)


# Without a cache, copies, adapters --------------------------------------------------------------------------------


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


def test_deep_copied_models_go_their_own_ways(model, handle):
    base = generate(make_model(), text(111))
    routed = generate(model, text(111))
    twin = copy.deepcopy(model)
    other = find_handle(twin)
    assert other is not handle and other.model is twin
    assert torch.equal(generate(twin, text(111)), routed)
    other.set_routes("full")
    assert torch.equal(generate(twin, text(111)), base) and torch.equal(generate(model, text(111)), routed)
    other.detach()
    assert torch.equal(generate(twin, text(111)), base)
    assert find_handle(model) is handle and torch.equal(generate(model, text(111)), routed)
    handle.detach()
    assert torch.equal(generate(model, text(111)), base)


@pytest.mark.parametrize("on", ["peft model", "base model"])
def test_lora_underneath(on):
    peft = pytest.importorskip("peft")
    model = make_model()
    lora = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["q_proj", "k_proj"], r=4, init_lora_weights=False)
    )
    lora.eval()
    base = generate(lora, text(111))
    assert not torch.equal(base, generate(make_model(), text(111)))
    handle = attach_tiny(lora if on == "peft model" else model, config=elastic_config(model))
    assert find_handle(lora) is handle is find_handle(model)
    handle.set_routes("full")
    assert torch.equal(generate(lora, text(111)), base)
    handle.set_routes(None)
    routed = generate(lora, text(111))
    assert handle.report()["routed"] == [True] and handle.report()["msr"][0] > 0
    names = set(lora.state_dict())
    handle.detach()
    assert set(lora.state_dict()) == names and not any("router" in name for name in names)
    assert torch.equal(generate(lora, text(111)), base) and not torch.equal(routed, base)


def test_loading_an_adapter_afterwards_and_removing_it(model, handle):
    peft = pytest.importorskip("peft")
    routed = generate(model, text(111))
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=4, init_lora_weights=False)).eval()
    assert not torch.equal(generate(lora, text(111)), routed)
    assert torch.equal(generate(lora.unload(), text(111)), routed)


def test_prompt_past_the_limit_names_both_lengths():
    short = make_model(max_position_embeddings=64)
    attach_tiny(short)
    with pytest.raises(ValueError, match="65 tokens, the model takes 64"):
        short.generate(text(65), max_new_tokens=1)
    # Padding does not count.
    ids, mask, _ = left_padded([text(40)], width=80)
    assert short.generate(ids, attention_mask=mask, max_new_tokens=1, do_sample=False).shape == (1, 81)
