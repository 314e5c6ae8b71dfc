"""Packed sequences: one row whose positions start again equals its sequences alone."""

import pytest
import torch
from transformers.masking_utils import causal_mask_function

from elastic_attention import TriangleConfig, UnsupportedModel, XAttentionConfig
from elastic_attention.models.packing import number_sequences, span_sequences
from elastic_attention.models.recompute import recompute_layers
from elastic_attention.router import BoundaryPool, select_boundary, select_ends
from tiny_models import POOLED, attach_tiny, elastic_config, make_model, random_routes, text

LENGTHS = (70, 51, 90, 20, 1)
PATTERNS = {
    "FA-SSA": {},
    "FA-XA": {"sparse_pattern": XAttentionConfig(block_size=16, stride=4, threshold=0.5)},
    "XA-SSA": {"full_pattern": XAttentionConfig(block_size=16, stride=4, threshold=0.5)},
    "FA-TA": {
        "sparse_pattern": TriangleConfig(num_sink_tokens=16, local_window=32, block_size=16, num_last_queries=16)
    },
}


def pack(lengths=LENGTHS):
    rows = [text(n, seed=i) for i, n in enumerate(lengths)]
    return torch.cat(rows, 1), torch.cat([torch.arange(n) for n in lengths])[None], rows


def config_for(model, pair, granularity):
    sizes = PATTERNS[pair]
    if "sparse_pattern" in sizes:
        sizes = sizes | {"num_sink_tokens": None, "local_window": None, "block_size": None}
    return elastic_config(model, granularity=granularity, **sizes)


@torch.no_grad()
def forward(model, handle, ids, positions=None, **options):
    given = {} if positions is None else {"position_ids": positions}
    return model(input_ids=ids, use_cache=False, **given, **options).logits[0], handle.report()["routes"]


@pytest.mark.parametrize("family", ("llama", "qwen2", "qwen3", "phi3", "gemma3_text", "olmo3", "granite", "smollm3"))
def test_packed_logits_and_routes_are_those_of_the_sequences_alone(family):
    model = make_model(family)
    handle = attach_tiny(model)
    ids, positions, rows = pack()
    logits, routes = forward(model, handle, ids, positions)
    alone = [forward(model, handle, row) for row in rows]
    assert torch.equal(routes, torch.cat([r for _, r in alone]))
    torch.testing.assert_close(logits, torch.cat([x for x, _ in alone]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("granularity", ["head", "layer"])
@pytest.mark.parametrize("pair", PATTERNS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_pattern_packs(model, pair, granularity, backend):
    handle = attach_tiny(model, config=config_for(model, pair, granularity), backend=backend)
    ids, positions, rows = pack()
    prompts = torch.tensor([n - min(n - 1, 7) for n in LENGTHS])
    with handle.routed_by(handle.decide, is_sampling=False, prompt_lengths=prompts) as record:
        logits, _ = forward(model, handle, ids, positions)
    for i, row in enumerate(rows):
        begin = sum(LENGTHS[:i])
        with handle.routed_by(handle.decide, is_sampling=False, prompt_lengths=prompts[i : i + 1]) as alone:
            wanted, _ = forward(model, handle, row)
        assert torch.equal(record.stack()[i : i + 1], alone.stack())
        torch.testing.assert_close(logits[begin : begin + LENGTHS[i]], wanted, rtol=1e-4, atol=1e-4)


def test_given_routes_are_by_sequence(model):
    handle = attach_tiny(model)
    ids, positions, rows = pack()
    routes = random_routes(model, batch=len(rows))
    handle.set_routes(routes)
    logits, reported = forward(model, handle, ids, positions)
    assert torch.equal(reported, routes)
    report = handle.report()
    assert report["prompt_tokens"] == list(LENGTHS) and report["msr"][0] == routes[0].float().mean().item()
    for i, row in enumerate(rows):
        handle.set_routes(routes[i])
        begin = sum(LENGTHS[:i])
        torch.testing.assert_close(logits[begin : begin + LENGTHS[i]], forward(model, handle, row)[0])


def test_all_full_packs_are_those_of_the_base_model(model):
    ids, positions, _ = pack()
    with torch.no_grad():
        wanted = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
    handle = attach_tiny(model)
    handle.set_routes("full")
    torch.testing.assert_close(forward(model, handle, ids, positions)[0], wanted, rtol=1e-4, atol=1e-4)


def test_nothing_leaks_between_sequences(model):
    handle = attach_tiny(model)
    ids, positions, rows = pack()
    before, _ = forward(model, handle, ids, positions)
    changed = ids.clone()
    changed[:, 70:121] = text(51, seed=99)
    after, _ = forward(model, handle, changed, positions)
    assert torch.equal(before[:70], after[:70]) and torch.equal(before[121:], after[121:])
    assert not torch.equal(before[70:121], after[70:121])


def test_layers_that_are_computed_again_give_the_same_gradients(model):
    handle = attach_tiny(model)
    ids, positions, _ = pack()
    gradients = []
    for is_on in (False, True):
        if is_on:
            recompute_layers(model, True)
        scores = torch.full((3, 2), 0.5, requires_grad=True)
        with handle.routed_by(lambda index, pooled, s=scores: s[index].expand(len(pooled), -1)) as record:
            loss = model(input_ids=ids, position_ids=positions, use_cache=False).logits.square().mean()
            (loss + record.stack().square().mean()).backward()
        gradients.append(scores.grad)
    assert torch.equal(*gradients) and gradients[0].abs().min() > 0
    assert not model.training
    recompute_layers(model, False)
    assert not any(module.training for module in model.modules())


def test_select_ends_is_select_boundary():
    lengths = torch.tensor([1, 5, 9, 10, 19, 20, 21, 64])
    start = lengths.cumsum(0) - lengths
    states = torch.randn(1, int(lengths.sum()), 2, 4)
    index, rank, is_valid = select_ends(start, lengths, POOLED)
    packed = BoundaryPool(POOLED)
    packed.update(states[0, index], rank, is_valid)
    for i, (first, length) in enumerate(zip(start.tolist(), lengths.tolist(), strict=True)):
        part = states[:, first : first + length]
        place, alone_rank, alone_valid = select_boundary(
            torch.ones(1, length, dtype=torch.bool), torch.zeros(1, dtype=torch.long), POOLED
        )
        assert set(rank[i][is_valid[i]].tolist()) == set(alone_rank[alone_valid].tolist())
        assert (index[i][is_valid[i]] - first).tolist() == rank[i][is_valid[i]].tolist()
        for is_twice in (False, True):
            alone = BoundaryPool(POOLED)
            alone.update(part[0, place[0]][None], alone_rank, alone_valid)
            torch.testing.assert_close(
                packed.mean(count_overlap_twice=is_twice)[i], alone.mean(count_overlap_twice=is_twice)[0]
            )


# The mask function ------------------------------------------------------------------------------------------------


def packed_mask(lengths):
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    return lambda b, h, q, k: (q >= k) & (number[b, q] == number[b, k])


@pytest.mark.parametrize("lengths", [(5,), (1, 1, 1), (3, 1, 7), (1, 9)])
def test_sequences_are_found_by_asking_the_mask(lengths):
    numbers = number_sequences(packed_mask(lengths), length=sum(lengths), device=torch.device("cpu"))
    spans, found = span_sequences(numbers)
    assert numbers.dtype == torch.int32 and found == list(lengths)
    assert spans.is_packed and spans.query_start.tolist() == [sum(lengths[:i]) for i in range(len(lengths))]


@pytest.mark.parametrize(
    "mask",
    [
        lambda b, h, q, k: torch.ones_like(q + k, dtype=torch.bool),  # bidirectional
        lambda b, h, q, k: (q >= k) & (q - k < 4),  # a window
        lambda b, h, q, k: (q >= k) & (q % 2 == k % 2),  # no neighbours
        lambda b, h, q, k: causal_mask_function(b, h, q, k) | ((q < 6) & (k < 6)),  # a prefix that sees itself
    ],
)
def test_other_masks_are_refused(mask):
    with pytest.raises(UnsupportedModel, match="start again at 0"):
        number_sequences(mask, length=12, device=torch.device("cpu"))


def test_packed_rows_of_a_batch_are_refused(handle):
    ids, positions, _ = pack()
    with pytest.raises(ValueError, match="this batch has 2"):
        handle.model(input_ids=ids.expand(2, -1), position_ids=positions.expand(2, -1), use_cache=False)
