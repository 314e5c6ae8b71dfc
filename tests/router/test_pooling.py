"""Boundary pooling: one mean, however the sequence arrives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_attention.router import BoundaryPool, count_ends, select_boundary, select_ends

G, D = 2, 4


def brute_force(keys, n, *, count_overlap_twice=False):
    """keys (T, G, D) of one sequence: mean over the first n and last n, the union unless told otherwise."""
    total = len(keys)
    chosen = list(range(total))[:n] + list(range(total))[max(0, total - n) :]
    if not count_overlap_twice:
        chosen = sorted(set(chosen))
    return keys[chosen].double().mean(0).float() if total else torch.zeros(G, D)


def feed(pool, keys, real, before):
    """One forward: (B, T, G, D) keys of which `real` (B, T) count; what is padding is NaN."""
    before = torch.tensor(before)
    index, rank, is_valid = select_boundary(real, before, pool.num_pooled)
    chosen = keys.gather(1, index[..., None, None].expand(-1, -1, G, D))
    pool.update(chosen, rank, is_valid)
    return (before + real.sum(1)).tolist()


@st.composite
def arrivals(draw):
    """n, and per sequence the columns of each forward: True = real token, False = padding anywhere."""
    n, batch = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    widths = draw(st.lists(st.integers(1, 25), min_size=1, max_size=5))
    masks = [
        draw(st.lists(st.lists(st.booleans(), min_size=w, max_size=w), min_size=batch, max_size=batch)) for w in widths
    ]
    return n, [torch.tensor(mask) for mask in masks]


@given(arrivals(), st.booleans(), st.integers(0, 99))
@settings(max_examples=150)
def test_chunked_and_padded_equal_brute_force(case, count_overlap_twice, seed):
    n, masks = case
    torch.manual_seed(seed)
    pool, batch = BoundaryPool(n), len(masks[0])
    before, sequences = [0] * batch, [[] for _ in range(batch)]
    for real in masks:
        keys = torch.randn(*real.shape, G, D)
        for b in range(batch):
            sequences[b].extend(keys[b, real[b]])
        before = feed(pool, keys, real, before)
    assert before == [len(s) for s in sequences]
    pooled = pool.mean(count_overlap_twice=count_overlap_twice)
    for b, sequence in enumerate(sequences):
        keys = torch.stack(sequence) if sequence else torch.zeros(0, G, D)
        torch.testing.assert_close(pooled[b], brute_force(keys, n, count_overlap_twice=count_overlap_twice))


@given(st.integers(1, 7), st.lists(st.integers(0, 25), min_size=1, max_size=4), st.booleans())
def test_ends_of_whole_sequences_equal_brute_force(n, lengths, count_overlap_twice):
    keys, length = torch.randn(sum(lengths) + 1, G, D), torch.tensor(lengths)
    start = length.cumsum(0) - length
    places, rank, is_valid = select_ends(start, length, n)
    counts = count_ends(rank, is_valid, length, n, count_overlap_twice=count_overlap_twice)
    means = (keys[places] * counts[..., None, None]).sum(1) / counts.sum(1).clamp(min=1)[:, None, None]
    for mean, sequence in zip(means, keys.split([*lengths, 1]), strict=False):
        torch.testing.assert_close(mean, brute_force(sequence, n, count_overlap_twice=count_overlap_twice))


@pytest.mark.parametrize("length", [1, 5, 9, 10, 11, 15, 19, 20, 21, 111])
def test_chunks_pool_bit_equally(length):
    keys = torch.randn(1, length, G, D)
    whole, chunked = BoundaryPool(10), BoundaryPool(10)
    feed(whole, keys, torch.ones(1, length, dtype=torch.bool), [0])
    before = [0]
    for part in keys.split(4, dim=1):
        before = feed(chunked, part, torch.ones(1, part.shape[1], dtype=torch.bool), before)
    assert torch.equal(whole.mean(), chunked.mean())


def test_short_prompts_count_their_overlap_once_or_for_parity_twice():
    keys = torch.arange(6.0).view(1, 6, 1, 1).expand(1, 6, G, D)
    pool = BoundaryPool(4)
    feed(pool, keys, torch.ones(1, 6, dtype=torch.bool), [0])
    assert pool.mean()[0, 0, 0] == 15 / 6
    assert pool.mean(count_overlap_twice=True)[0, 0, 0] == (0 + 1 + 2 + 3 + 2 + 3 + 4 + 5) / 8


def test_only_boundary_tokens_are_looked_at():
    real = torch.ones(2, 1000, dtype=torch.bool)
    real[1, :300] = False
    index, rank, is_valid = select_boundary(real, torch.tensor([0, 50]), 100)
    assert index.shape == (2, 200) and is_valid[0].all()
    assert sorted(rank[1][is_valid[1]].tolist()) == [*range(50, 100), *range(650, 750)]
    assert torch.equal(index[1][is_valid[1]], rank[1][is_valid[1]] - 50 + 300)


def test_padding_may_hold_nan():
    keys = torch.randn(1, 12, G, D)
    real = torch.tensor([[False] * 5 + [True] * 7])
    keys[0, :5] = torch.nan
    for n in (3, 10):
        pool = BoundaryPool(n)
        feed(pool, keys, real, [0])
        torch.testing.assert_close(pool.mean()[0], brute_force(keys[0, 5:], n))


def test_float32_whatever_the_keys_are():
    keys = torch.randn(1, 50, G, D).bfloat16()
    pool = BoundaryPool(100)
    feed(pool, keys, torch.ones(1, 50, dtype=torch.bool), [0])
    assert pool.mean().dtype == torch.float32
    torch.testing.assert_close(pool.mean()[0], keys[0].float().mean(0))


def test_select_reorders_and_repeats_sequences():
    keys = torch.randn(3, 30, G, D)
    pool = BoundaryPool(5)
    feed(pool, keys, torch.ones(3, 30, dtype=torch.bool), [0, 0, 0])
    before = pool.mean()
    pool.select(torch.tensor([2, 0, 0, 1]))
    assert torch.equal(pool.mean(), before[[2, 0, 0, 1]])
    more = torch.randn(4, 3, G, D)
    feed(pool, more, torch.ones(4, 3, dtype=torch.bool), [30] * 4)
    torch.testing.assert_close(pool.mean()[0], brute_force(torch.cat([keys[2], more[0]]), 5))


@pytest.mark.parametrize("total, kept, again", [(30, 25, 6), (8, 6, 1), (30, 3, 40), (12, 12, 3)])
def test_cropped_tokens_do_not_count(total, kept, again):
    """A ring slot that a forgotten token had overwritten is left out; nothing forgotten is ever averaged."""
    n = 5
    keys, more = torch.randn(1, total, G, D), torch.randn(1, again, G, D)
    pool = BoundaryPool(n)
    feed(pool, keys, torch.ones(1, total, dtype=torch.bool), [0])
    pool.crop(torch.tensor([kept]))
    feed(pool, more, torch.ones(1, again, dtype=torch.bool), [kept])
    sequence, length = torch.cat([keys[0, :kept], more[0]]), kept + again
    was_overwritten = {r for r in range(n, kept) if r + n < total and r + n >= n}
    wanted = [r for r in range(length) if (r < n or r >= length - n) and not (r < kept and r in was_overwritten)]
    torch.testing.assert_close(pool.mean()[0], sequence[wanted].mean(0))
