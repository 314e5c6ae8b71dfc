"""Scoring and selection in plain PyTorch against loops over tokens and sorted Python lists."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_attention.config import XAttentionConfig
from elastic_attention.kernels.xattention import choose_blocks, score_blocks, select_blocks
from xattention_oracle import assert_chosen, bound_mass_error, score_naively, select_naively

SIZES = dict(block_size=8, stride=4)


def configs():
    threshold = st.builds(XAttentionConfig, threshold=st.sampled_from([0.05, 0.5, 0.9, 1.0]), **mapped(SIZES))
    density = st.builds(XAttentionConfig, density=st.sampled_from([0.01, 0.4, 1.0]), **mapped(SIZES))
    return threshold | density


def mapped(sizes):
    return {name: st.just(value) for name, value in sizes.items()}


def make(num_queries, num_keys, heads, kv_heads, seed, width=4):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(1, heads, num_queries, width, generator=generator) * 2
    return q, torch.randn(1, kv_heads, num_keys, width, generator=generator) * 2


@given(
    config=configs(),
    num_queries=st.integers(1, 40),
    before=st.integers(0, 30),
    dense=st.none() | st.tuples(st.integers(0, 70), st.integers(0, 30)),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_masses_and_choice_are_the_formulas(config, num_queries, before, dense, seed):
    q, k = make(num_queries, num_queries + before, 2, 1, seed)
    rows = None if dense is None else torch.tensor([[dense[0], dense[0] + dense[1]]])
    mass, voters = score_blocks(q, k, config, 0.5, dense_rows=rows, dtype=torch.float64)
    chosen = select_blocks(mass, voters, config)
    first = before // config.block_size
    for head in range(2):
        wanted = score_naively(q[0, head], k[0, 0], config, 0.5, (0, 0) if rows is None else rows[0].tolist())
        assert len(wanted) == mass.shape[2]
        for m, (masses, votes) in wanted.items():
            row = mass[0, head, m - first]
            torch.testing.assert_close(row[: m + 1], torch.tensor(masses, dtype=torch.float64), atol=1e-12, rtol=1e-9)
            assert not row[m + 1 :].any() and bool(voters[0, m - first]) == votes
            kept = chosen[0, head, m - first].nonzero()[:, 0].tolist()
            assert kept == select_naively(row[: m + 1].tolist(), votes, config)
            assert votes or kept == list(range(m + 1))


@given(
    masses=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=12),
    threshold=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
)
@settings(max_examples=100, deadline=None)
def test_equal_masses_are_taken_by_index(masses, threshold):
    config = XAttentionConfig(threshold=threshold, **SIZES)
    mass = torch.tensor(masses, dtype=torch.float64)[None, None, None]  # sums of these are exact
    chosen = select_blocks(mass, torch.ones(1, 1, dtype=torch.bool), config)[0, 0, 0]
    assert chosen.nonzero()[:, 0].tolist() == select_naively(masses, True, config)


@given(config=configs(), num_tokens=st.integers(1, 90), before=st.integers(0, 50), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_single_precision_chooses_as_well(config, num_tokens, before, seed):
    q, k = make(num_tokens, num_tokens + before, 4, 2, seed)
    exact, voters = score_blocks(q, k, config, 0.5, dtype=torch.float64)
    low = score_blocks(q, k, config, 0.5)[0]
    tolerance = bound_mass_error(q, k, config, 0.5)
    assert low.dtype == torch.float32 and tolerance < 0.02
    slots = config.block_size // config.stride
    assert (low.double() - exact).abs().max() <= tolerance * slots
    assert_chosen(select_blocks(low, voters, config), exact, config, tolerance)


@given(num_blocks=st.integers(2, 6), cut=st.integers(1, 5), rest=st.integers(0, 7), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_chunks_that_end_on_blocks_change_nothing(num_blocks, cut, rest, seed):
    config = XAttentionConfig(threshold=0.7, **SIZES)
    size, edge = num_blocks * 8 + rest, min(cut, num_blocks) * 8
    q, k = make(size, size, 2, 1, seed)
    whole = select_blocks(*score_blocks(q, k, config, 0.5, dtype=torch.float64), config)
    early = select_blocks(*score_blocks(q[:, :, :edge], k[:, :, :edge], config, 0.5, dtype=torch.float64), config)
    assert torch.equal(early, whole[:, :, : edge // 8, : edge // 8])
    if edge < size:
        late = select_blocks(*score_blocks(q[:, :, edge:], k, config, 0.5, dtype=torch.float64), config)
        assert torch.equal(late, whole[:, :, edge // 8 :])


@given(prompt=st.integers(1, 40), response=st.integers(0, 30), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_responses_do_not_vote(prompt, response, seed):
    """The prompt chooses as if the response were not there yet; blocks of the response alone list everything."""
    config = XAttentionConfig(threshold=0.7, **SIZES)
    q, k = make(prompt + response, prompt + response, 2, 1, seed)
    rows = torch.tensor([[prompt, 2**31 - 1]], dtype=torch.int32)
    with_response = choose_blocks(q, k, config, 0.5, dense_rows=rows, dtype=torch.float64)
    alone = choose_blocks(q[:, :, :prompt], k[:, :, :prompt], config, 0.5, dtype=torch.float64)
    num_rows, first = alone.counts.shape[2], torch.zeros(1, dtype=torch.long)
    masks = [x.to_mask(first, with_response.counts.shape[2]) for x in (with_response, alone)]
    assert torch.equal(masks[0][:, :, :num_rows], masks[1][:, :, :num_rows])
    later = with_response.counts[0, :, num_rows:]
    assert torch.equal(later, (torch.arange(later.shape[1]) + num_rows + 1).int().expand(2, -1))
