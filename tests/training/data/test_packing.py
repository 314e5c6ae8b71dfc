import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_attention.training.data.packing import PackPlan, plan_packs

lengths_of = st.lists(st.integers(1, 100), min_size=1, max_size=120)


@given(lengths_of, st.integers(100, 400), st.integers(1, 20))
def test_every_sample_is_in_exactly_one_pack_that_holds_it(lengths, capacity, lookahead):
    packs = list(plan_packs(range(len(lengths)), np.array(lengths), capacity=capacity, lookahead=lookahead))
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    assert all(packs) and all(sum(lengths[i] for i in pack) <= capacity for pack in packs)


@given(lengths_of, st.integers(1, 20))
def test_look_ahead_is_bounded(lengths, lookahead):
    """A sample may overtake no more than `lookahead` others, and the stream is not read further than needed."""
    read = []

    def stream():
        for i in range(len(lengths)):
            read.append(i)
            yield i

    packed = set()
    for pack in plan_packs(stream(), np.array(lengths), capacity=100, lookahead=lookahead):
        packed |= set(pack)
        assert len(set(read) - packed) <= lookahead
    oldest = [min(pack) for pack in plan_packs(range(len(lengths)), np.array(lengths), capacity=100, lookahead=9)]
    assert oldest == sorted(oldest)  # a pack begins with the oldest that waits


def test_first_fit():
    lengths = np.array([60, 50, 30, 10, 45, 70])
    assert list(plan_packs(range(6), lengths, capacity=100, lookahead=4)) == [[0, 2, 3], [1, 4], [5]]
    assert list(plan_packs(range(6), lengths, capacity=100, lookahead=1)) == [[0], [1, 2, 3], [4], [5]]


def test_a_sample_that_fits_nowhere_ends_the_plan():
    with pytest.raises(ValueError, match="sample 1 of 11 tokens is longer than a pack of 10"):
        list(plan_packs(range(3), np.array([10, 11, 3]), capacity=10, lookahead=4))


def test_many_short_samples_fill_a_pack_beyond_the_look_ahead():
    packs = list(plan_packs(range(1000), np.full(1000, 10), capacity=1000, lookahead=4))
    assert [len(pack) for pack in packs] == [100] * 10


@given(lengths_of, st.integers(0, 5), st.integers(1, 12), st.integers(0, 200))
def test_any_pack_is_found_from_its_number_alone(lengths, seed, lookahead, start):
    """Resuming at pack p gives the stream that never stopped, in whatever order packs are asked for."""
    lengths, categories = np.array(lengths), np.arange(len(lengths)) % 3

    def plan():
        return PackPlan(np.arange(len(lengths)), lengths, categories, capacity=120, lookahead=lookahead, seed=seed)

    whole = plan()
    stream = [whole.pack(p).tolist() for p in range(start + 8)]
    resumed = plan()
    assert [resumed.pack(p).tolist() for p in range(start, start + 8)] == stream[start:]
    assert plan().pack(start).tolist() == stream[start]
    assert whole.pack(0).tolist() == stream[0]


def test_each_epoch_holds_every_sample_once_in_another_order():
    plan = PackPlan(
        np.array([1, 2, 5, 6, 9]), np.full(10, 30), np.zeros(10, dtype=np.int64), capacity=60, lookahead=2, seed=0
    )
    stream = [plan.pack(p).tolist() for p in range(30)]
    epochs = [[i for pack in stream[e : e + 3] for i in pack] for e in range(0, 30, 3)]
    assert all(sorted(epoch) == [1, 2, 5, 6, 9] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5
    assert len(plan._epochs) <= 2


@pytest.mark.parametrize(("lookahead", "wanted"), [(1, 0.70), (64, 0.93)])
def test_packs_are_well_filled(lookahead, wanted):
    lengths = np.exp(np.random.default_rng(0).uniform(np.log(2048), np.log(65_536), 2000)).astype(np.int64)
    packs = list(plan_packs(range(2000), lengths, capacity=65_536, lookahead=lookahead))
    fill = lengths.sum() / 65_536 / len(packs)
    assert fill > wanted, fill
