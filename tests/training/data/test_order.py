import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_attention.training.data.order import shuffle_epoch


@given(st.lists(st.integers(0, 5), min_size=1, max_size=300), st.integers(0, 2**40), st.integers(0, 50))
def test_every_sample_once_and_the_same_each_time(categories, seed, epoch):
    order = shuffle_epoch(np.array(categories), seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(len(categories)))
    assert (order == shuffle_epoch(np.array(categories), seed=seed, epoch=epoch)).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=300), st.integers(0, 9))
def test_categories_are_spread_in_proportion(categories, seed):
    """Up to any place of the epoch each category has had its share, up to one sample on either side."""
    categories = np.array(categories)
    dealt = categories[shuffle_epoch(categories, seed=seed, epoch=0)]
    count = len(dealt)
    for category in set(categories.tolist()):
        share = np.cumsum(dealt == category) - np.arange(1, count + 1) * (categories == category).mean()
        assert np.abs(share).max() <= len(set(categories.tolist()))


def test_seed_and_epoch_matter():
    categories = np.zeros(500, dtype=np.int64)
    orders = [shuffle_epoch(categories, seed=s, epoch=e) for s in (0, 1) for e in (0, 1)]
    assert all((a != b).mean() > 0.9 for i, a in enumerate(orders) for b in orders[:i])
    for order in orders:  # no trace of the file's order
        assert abs(np.corrcoef(order, np.arange(500))[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("seed", "golden"), [(0, [8, 9, 0, 7, 10, 11, 2, 3, 4, 1, 6, 5]), (7, [11, 6, 7, 8, 3, 0, 5, 2, 10, 1, 9, 4])]
)
def test_golden_order(seed, golden):
    """The order never changes between machines, library versions and releases."""
    assert shuffle_epoch(np.array([0, 1] * 6), seed=seed, epoch=2).tolist() == golden
