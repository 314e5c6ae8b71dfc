import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from elastic_attention.models.answers import IGNORED
from elastic_attention.training.data.batch import PackedSample, join_samples


@st.composite
def samples_of(draw):
    edges = sorted(draw(st.lists(st.integers(0, 30), min_size=4, max_size=4)))
    prompt = draw(st.integers(edges[3], 35))
    length = prompt + draw(st.integers(1, 5)) + (prompt == 0)
    tokens = draw(st.lists(st.integers(0, 9), min_size=length, max_size=length))
    return PackedSample(
        tokens=np.array(tokens, dtype=np.int64),
        context=(edges[0], edges[1]),
        question=(edges[2], edges[3]),
        response=(prompt, length),
        sample_id=draw(st.integers(0, 2**40)),
        category=draw(st.sampled_from("ab")),
        task="t",
        weight=draw(st.floats(0.0, 1.0, width=32)),
    )


@given(st.lists(samples_of(), min_size=1, max_size=6), st.sampled_from(["response", "all"]))
def test_samples_stand_in_the_pack_as_they_are(samples, loss_on):
    batch = join_samples(samples, loss_on=loss_on)
    assert batch.cu_seqlens.dtype == torch.int32 and batch.cu_seqlens[-1] == len(batch.input_ids)
    for i, sample in enumerate(samples):
        begin, end = batch.cu_seqlens[i : i + 2].tolist()
        tokens = sample.tokens.tolist()
        assert batch.input_ids[begin:end].tolist() == tokens
        assert batch.position_ids[begin:end].tolist() == list(range(len(tokens)))
        first = 1 if loss_on == "all" else max(1, sample.response[0])
        wanted = [tokens[p + 1] if first <= p + 1 < len(tokens) else IGNORED for p in range(len(tokens))]
        assert batch.targets[begin:end].tolist() == wanted  # the last position wants nothing of the next sample
        for part in ("context", "question", "response"):
            place = slice(*getattr(batch, part)[i].tolist())
            assert batch.input_ids[place].tolist() == tokens[slice(*getattr(sample, part))]
        assert batch.prompt_lengths[i] == sample.response[0]
        assert batch.sample_ids[i] == sample.sample_id
    assert batch.categories == tuple(s.category for s in samples)


@given(st.lists(samples_of(), min_size=1, max_size=6))
def test_token_weights_give_the_weighted_mean_of_each_sample(samples):
    batch = join_samples(samples)
    losses = torch.rand(len(batch.input_ids), dtype=torch.float64)
    expected = 0.0
    for i, sample in enumerate(samples):
        part = slice(*batch.cu_seqlens[i : i + 2].tolist())
        is_counted = batch.targets[part] != IGNORED
        if is_counted.any():
            expected += sample.weight * losses[part][is_counted].mean().item()
    weights = batch.token_weights()
    assert weights.dtype == torch.float32 and not weights[batch.targets == IGNORED].any()
    assert abs((weights.double() * losses).sum().item() - expected) < 1e-5


def test_moving_keeps_everything():
    sample = PackedSample(
        tokens=np.arange(5), context=(0, 1), question=(1, 2), response=(3, 5), sample_id=1, category="a", task="t",
        weight=1.0,
    )  # fmt: skip
    batch = join_samples([sample])
    moved = batch.to("meta")
    assert moved.input_ids.device.type == moved.weights.device.type == "meta"
    assert moved.categories == batch.categories and moved.tasks == ("t",)
