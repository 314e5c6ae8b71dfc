"""Parts of a pack: what their processes add up is what the whole pack says."""

import numpy as np
import torch

from elastic_attention.training.data.batch import PackedSample, join_samples
from elastic_attention.training.parallel import part
from elastic_attention.training.parallel.part import cut_pack
from elastic_attention.training.parallel.ulysses import cut_evenly


def test_all_right_is_exactly_one_however_the_answer_is_cut(monkeypatch):
    sent = []
    monkeypatch.setattr(part.dist, "all_reduce", lambda values, group: sent.append(values.clone()))
    for length in range(8, 60):
        sample = PackedSample(
            tokens=np.arange(length), context=(0, 1), question=(1, 1), response=(1, length), sample_id=0,
            category="a", task="a", weight=1.0,
        )  # fmt: skip
        batch = join_samples([sample])
        sent.clear()
        counts = cut_evenly(length, 8)
        edges = np.cumsum([0, *counts]).tolist()
        for first, last in zip(edges[:-1], edges[1:], strict=True):
            mine = cut_pack(batch, slice(first, last), None)
            mine.average_samples((mine.targets >= 0).float())
        assert sum(sent) / batch.count_targets() == torch.ones(1)
