import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_attention import DataError
from elastic_attention.training.data.fitting import fit_samples, keep_pieces

LENGTHS, CONTEXTS = np.array([10, 25, 20, 40]), np.array([5, 20, 15, 35])
CATEGORIES = ["code", "code", "single_qa", "single_qa"]


def fit(policy, capacity=20, contexts=CONTEXTS):
    return fit_samples(LENGTHS, contexts, CATEGORIES, capacity=capacity, policy=policy, where=lambda i: f"file:{i + 1}")


def test_skip_leaves_out_and_counts():
    fitting = fit("skip")
    assert fitting.kept.tolist() == [0, 2]
    assert fitting.over_long == {"code": 1, "single_qa": 1}
    assert str(fitting) == "2 of 4 samples are longer than a pack and left out (1 code, 1 single_qa)."


def test_truncation_keeps_all_and_counts():
    fitting = fit("truncate_middle")
    assert fitting.kept.tolist() == [0, 1, 2, 3]
    assert fitting.removed.tolist() == [0, 5, 0, 20]
    assert "2 of 4 samples are longer than a pack and cut in the middle" in str(fitting)


def test_error_names_the_sample_and_the_remedy():
    with pytest.raises(DataError, match=r"^file:2 and 1 more: 25 tokens do not fit a pack of 20. Raise data.packs.tok"):
        fit("error")
    with pytest.raises(DataError, match=r"^file:4: 40 tokens do not fit a pack of 39"):
        fit("error", capacity=39)
    assert fit("error", capacity=40).over_long == {}


def test_context_too_short_to_cut():
    with pytest.raises(DataError, match=r"^file:4: 40 tokens .*too short to cut.*over_long to one of \['skip'\]"):
        fit("truncate_middle", contexts=np.array([5, 5, 5, 19]))


def test_nothing_fits():
    with pytest.raises(DataError, match="no sample fits a pack of 9 tokens"):
        fit("skip", capacity=9)


@given(st.data())
def test_pieces_lose_exactly_the_middle_of_the_context(data):
    length = data.draw(st.integers(1, 60))
    first = data.draw(st.integers(0, length))
    last = data.draw(st.integers(first, length))
    removed = data.draw(st.integers(0, last - first))
    kept = [i for begin, end in keep_pieces(length, (first, last), removed) for i in range(begin, end)]
    lost = sorted(set(range(length)) - set(kept))
    assert kept == sorted(set(kept)) and len(lost) == removed
    if lost:
        assert lost == list(range(lost[0], lost[-1] + 1))  # one hole
        before, after = lost[0] - first, last - 1 - lost[-1]
        assert before >= 0 and after >= 0 and 0 <= before - after <= 1
