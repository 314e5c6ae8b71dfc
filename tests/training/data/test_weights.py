import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_attention.training.data.weights import weigh_categories


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=50))
def test_each_category_weighs_the_same(categories):
    weights = weigh_categories(categories)
    assert sum(weights) == pytest.approx(1.0)
    for category in set(categories):
        share = sum(w for w, c in zip(weights, categories, strict=True) if c == category)
        assert share == pytest.approx(1 / len(set(categories)))
        assert len({w for w, c in zip(weights, categories, strict=True) if c == category}) == 1
