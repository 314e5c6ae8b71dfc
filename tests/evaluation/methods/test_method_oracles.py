"""Every method on a tiny model against masks drawn from its paper's rule: logits, answers, ESR and bytes.

Constants are small here, so that 200 tokens show every rule; `test_registry` holds the papers' constants.
"""

import dataclasses

import pytest
import torch
import transformers

from elastic_attention import StreamingConfig, TriangleConfig, XAttentionConfig
from elastic_attention.evaluation.methods import METHODS, Method, attach_method, find_method, registry
from elastic_attention.evaluation.readers import open_reader
from elastic_attention.models.checkpoint import save_static_routes
from elastic_attention.patterns import InfllmConfig, MobaConfig
from oracles import visible_mask
from tiny_models import LAYERS, attach_tiny, elastic_config, make_model, random_routes
from token_choice_oracle import read_keys
from xattention_oracle import score_naively, select_naively

LENGTH, NEW = 200, 4
SMALL = {
    "xattention": XAttentionConfig(block_size=16, stride=4, threshold=0.6),
    "triangle_mix": TriangleConfig(num_sink_tokens=16, local_window=32, block_size=16, num_last_queries=20),
    "moba": MobaConfig(block_size=16, num_blocks=3),
    "infllm_v2": InfllmConfig(
        block_size=16, local_window=32, num_blocks=2, pooled_tokens=8, pooling_stride=4, dense_tokens=64
    ),
}
STREAMING = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)


def mask_xattention(config, q, k):
    rows = []
    for head in range(len(q)):
        keys, mask = k[head * len(k) // len(q)], torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
        for m, (masses, votes) in score_naively(q[head], keys, config, q.shape[2] ** -0.5).items():
            for n in select_naively(masses, votes, config):
                mask[m * 16 : (m + 1) * 16, n * 16 : (n + 1) * 16] = True
        rows.append(mask.tril())
    return torch.stack(rows)


def mask_token_choice(config, q, k):
    mask = torch.zeros(len(q), LENGTH, LENGTH, dtype=torch.bool)
    for head in range(len(q)):
        for t in range(LENGTH):
            no_pooled_key = t + 1 < getattr(config, "pooled_tokens", 0)
            mask[head, t, list(range(t + 1)) if no_pooled_key else sorted(read_keys(config, q, k, head, t))] = True
    return mask


def mask_triangle(config, q, k):
    mask = visible_mask(config, LENGTH)
    mask[LENGTH - config.num_last_queries :] = True
    return mask.tril().expand(len(q), -1, -1)


def mask_streaming(config, q, k):
    return visible_mask(config, LENGTH).expand(len(q), -1, -1)


MASKS = {
    XAttentionConfig: mask_xattention,
    MobaConfig: mask_token_choice,
    InfllmConfig: mask_token_choice,
    TriangleConfig: mask_triangle,
    StreamingConfig: mask_streaming,
}
SEEN = []


def attend(module, query, key, value, attention_mask, scaling=None, rule=None, **kwargs):
    """Masked attention by the rule (routes (L, G), sparse pattern, full pattern); what was shown goes into `SEEN`."""
    routes, sparse, full = rule
    group, length = query.shape[1] // key.shape[1], query.shape[2]
    causal = torch.ones(length, length).tril().bool().expand(query.shape[1], -1, -1)
    if length == LENGTH:
        masks = {c: MASKS[type(c)](c, query[0], key[0]) for c in {sparse, full} - {None}}
        chosen = routes[module.layer_idx].repeat_interleave(group)[:, None, None]
        visible = torch.where(chosen, masks[sparse], causal if full is None else masks[full])
        SEEN.append(visible)
    else:
        visible = causal
    keys, values = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = (query @ keys.transpose(-1, -2) * scaling).masked_fill(~visible, float("-inf"))
    return (scores.softmax(-1) @ values).transpose(1, 2), None


transformers.AttentionInterface.register("method_oracle", attend)
transformers.AttentionMaskInterface.register("method_oracle", lambda *args, **kwargs: None)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(2, 97, (1, LENGTH), generator=torch.Generator().manual_seed(3))


def run_oracle(ids, routes, sparse, full):
    """Logits of the prompt, and the share of the pairs that were hidden."""
    model = make_model()
    model.set_attn_implementation("method_oracle")
    SEEN.clear()
    with torch.no_grad():
        logits = model(ids, use_cache=False, rule=(routes, sparse, full)).logits
    read, causal = sum(int(mask.sum()) for mask in SEEN), len(SEEN) * 6 * LENGTH * (LENGTH + 1) // 2
    return logits, 1 - read / causal


def run_method(method, ids, **options):
    """Logits of the prompt, books of an answer of a few tokens, and the routes."""
    model = make_model()
    with open_reader(method, model, **options) as reader:
        with reader.reading([0]), torch.no_grad():
            logits = model(ids, use_cache=False).logits
            routes = next(iter(reader.handle.report()["routes"]), None)
        with reader.reading([0]), torch.no_grad():
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
        return logits, {name: values[0] for name, values in reader.report([LENGTH], [NEW]).items()}, routes


def assert_method(method, ids, sparse, full=None, **options):
    logits, books, routes = run_method(method, ids, **options)
    wanted, hidden = run_oracle(ids, routes, sparse, full)
    torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-4)
    assert books["esr_prefill"] == pytest.approx(hidden, abs=1e-3) and hidden > 0.05
    assert books["msr"] == pytest.approx(routes.float().mean().item())
    return books, routes


@pytest.mark.parametrize("name", SMALL)
def test_methods_without_routers(ids, name, monkeypatch):
    monkeypatch.setitem(registry.METHODS, name, dataclasses.replace(METHODS[name], pattern=SMALL[name]))
    books, routes = assert_method(Method(name=name), ids, SMALL[name])
    if name == "triangle_mix":
        assert not routes[: LAYERS // 2].any() and routes[LAYERS // 2 :].all()
    else:
        assert routes.all()
    assert books["kv_bytes"] == books["kv_bytes_dense"] and books["esr_decode"] == 0.0  # decoding is dense


def test_all_streaming(ids, tmp_path):
    attach_and_save(tmp_path)
    books, routes = assert_method(Method(name="all_sparse"), ids, STREAMING, routers=str(tmp_path))
    assert routes.all() and books["kv_bytes"] < books["kv_bytes_dense"] / 2 and books["esr_decode"] > 0.5
    full, _ = assert_method(Method(name="all_sparse", decode="full"), ids, STREAMING, routers=str(tmp_path))
    assert full["kv_bytes"] == full["kv_bytes_dense"] and full["esr_decode"] == 0.0


def test_dense_is_the_base_model(ids):
    logits, books, _ = run_method(Method(name="dense"), ids)
    with torch.no_grad():
        assert torch.equal(logits, make_model()(ids).logits)
    assert (books["msr"], books["esr_prefill"], books["esr_decode"]) == (0, 0, 0)
    assert books["kv_bytes"] == books["kv_bytes_dense"] == LAYERS * 2 * 2 * 16 * 4 * (LENGTH + NEW - 1)


def attach_and_save(folder, **changes):
    model = make_model()
    handle = attach_tiny(model, config=elastic_config(model, **changes))
    handle.save_pretrained(folder)
    handle.detach()


NO_SIZES = dict(num_sink_tokens=None, local_window=None, block_size=None)
ROUTED = {
    "fa_ssa": ({}, STREAMING, None),
    "fa_xa": (NO_SIZES | dict(sparse_pattern=SMALL["xattention"]), SMALL["xattention"], None),
    "xa_ssa": (dict(full_pattern=SMALL["xattention"]), STREAMING, SMALL["xattention"]),
    "fa_ta": (NO_SIZES | dict(sparse_pattern=SMALL["triangle_mix"]), SMALL["triangle_mix"], None),
    "flux": (dict(granularity="layer"), STREAMING, None),
    "flux_ta": (
        NO_SIZES | dict(granularity="layer", sparse_pattern=SMALL["triangle_mix"]),
        SMALL["triangle_mix"],
        None,
    ),
}


@pytest.mark.parametrize("name", ROUTED)
def test_routed_methods(ids, name, tmp_path):
    changes, sparse, full = ROUTED[name]
    attach_and_save(tmp_path, **changes)
    books, routes = assert_method(Method(name=name, folder=str(tmp_path)), ids, sparse, full)
    assert routes.any() and not routes.all()
    if name.startswith("flux"):
        assert torch.equal(routes[:, 0], routes[:, 1])
    same, _ = assert_method(Method(name="routed", folder=str(tmp_path)), ids, sparse, full)
    assert same == books
    for other in ROUTED:
        if other != name:
            with pytest.raises(ValueError, match=f"is no adapter of '{other}'.*write routed="):
                attach_method(Method(name=other, folder=str(tmp_path)), make_model())


@pytest.mark.parametrize("name", ["static", "prulong", "duo_attention", "retrieval_heads"])
def test_masks_bring_their_pattern(ids, name, tmp_path):
    mask = random_routes(make_model())
    sizes = dict(num_sink_tokens=16, local_window=32, block_size=16)
    save_static_routes(tmp_path, mask, {}, {"sparse_pattern": sizes})
    _, routes = assert_method(Method(name=name, folder=str(tmp_path)), ids, STREAMING)
    assert torch.equal(routes, mask)
    handle = attach_method(Method(name=name, folder=str(tmp_path)), make_model())
    assert handle.config.sparse_pattern == STREAMING


def test_random_heads(ids, tmp_path):
    attach_and_save(tmp_path)
    method = Method(name="random", target=0.5)
    _, routes = assert_method(method, ids, STREAMING, routers=str(tmp_path))
    assert 0 < routes.float().mean() < 1


def test_every_method_has_an_oracle():
    tested = {*SMALL, *ROUTED, "dense", "all_sparse", "random", "routed"}
    tested |= {"static", "prulong", "duo_attention", "retrieval_heads"}
    assert tested == set(METHODS)
    assert all(find_method(Method(name=n, target=0.5, folder="x")).summary for n in METHODS)


@pytest.mark.parametrize("name", SMALL)
def test_rows_of_a_batch_answer_as_they_do_alone(ids, name, monkeypatch):
    monkeypatch.setitem(registry.METHODS, name, dataclasses.replace(METHODS[name], pattern=SMALL[name]))
    prompts, found = [ids[0], ids[0, 40:], ids[0, 90:]], []
    with open_reader(Method(name=name), make_model()) as reader:

        def answer(rows):
            columns = max(map(len, rows))
            padded = torch.stack([torch.nn.functional.pad(row, (columns - len(row), 0)) for row in rows])
            mask = torch.stack([torch.arange(columns) >= columns - len(row) for row in rows]).long()
            with reader.reading(range(len(rows))) as model, torch.no_grad():
                said = model.generate(input_ids=padded, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
            books = reader.report([len(row) for row in rows], [NEW] * len(rows))
            return said[:, columns:].tolist(), books

        said, books = answer(prompts)
        for number, prompt in enumerate(prompts):
            alone, own = answer([prompt])
            assert said[number] == alone[0]
            assert {key: values[number] for key, values in books.items()} == pytest.approx(
                {key: values[0] for key, values in own.items()}, abs=1e-6
            )
            found.append(own["esr_prefill"][0])
    assert found[0] > found[2] > 0 or name == "xattention"
