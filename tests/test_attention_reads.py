"""What the observer of reads counts, against the masks that the oracle shows."""

import pytest
import torch

from elastic_attention import StreamingConfig, TriangleConfig, XAttentionConfig, hybrid_attention
from elastic_attention.attention.reads import observe_reads
from elastic_attention.kernels.reference import read_lists, show_keys, unpack_lists
from elastic_attention.patterns import MobaConfig

STREAMING = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)
TRIANGLE = TriangleConfig(num_sink_tokens=16, local_window=32, block_size=16, num_last_queries=20)
XATTENTION = XAttentionConfig(block_size=16, stride=4, threshold=0.6)
PAIRS = {"FA-XA": (XATTENTION, "full"), "XA-SSA": (STREAMING, XATTENTION), "FA-TA": (TRIANGLE, "full")}
ROUTES = torch.tensor([[True, False], [False, True], [True, True]])


def make_qkv(num_queries=150, num_keys=150):
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 6, num_queries, 16), (3, 2, num_keys, 16), (3, 2, num_keys, 16)
    return [3 * torch.randn(shape, generator=generator) for shape in shapes]


def count_by_masks(note, q, k, padding):
    """(pairs read, causal pairs) of every sequence from what the oracle shows each query head."""
    totals = []
    for b, pad in enumerate(padding):
        x, y = q[b, :, max(0, pad - (k.shape[2] - q.shape[2])) :], k[b, :, pad:]
        blocks = None
        if note.lists is not None:
            listed = unpack_lists(note.lists, len(note.modes), q, k, note.spans)[b]
            blocks = read_lists(listed, note.lists.block_size, x, y)
        dense = None if note.dense_rows is None else note.dense_rows[b]
        shown = show_keys(x, y, note.modes[b], note.config, blocks, dense)
        causal = sum(range(y.shape[1] - x.shape[1] + 1, y.shape[1] + 1))
        totals.append((int(shown.sum()) / 3, 2 * causal))
    return totals


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("num_queries", [150, 41])
@pytest.mark.parametrize("padding", [None, [0, 37, 60]])
@pytest.mark.parametrize("ends", [None, [130, 113, 90]])
def test_reads_are_those_of_the_masks(pair, num_queries, padding, ends):
    q, k, v = make_qkv(num_queries)
    pattern, full = pair
    with observe_reads() as observer:
        hybrid_attention(
            q,
            k,
            v,
            ROUTES,
            pattern=pattern,
            full_pattern=full,
            left_padding=None if padding is None else torch.tensor(padding),
            prompt_lengths=None if ends is None else torch.tensor(ends),
        )
    (note,) = observer.notes
    wanted = count_by_masks(note, q, k, padding or [0, 0, 0])
    for (read, causal), (shown, pairs) in zip(observer.sum_pairs(3), wanted, strict=True):
        assert causal == pairs and read == pytest.approx(shown, abs=1)
    assert observer.sum_pairs(2) == [(0, 0), (0, 0)]  # of another number of sequences


def test_only_data_dependent_reads_are_noted():
    q, k, v = make_qkv()
    with observe_reads() as observer:
        hybrid_attention(q, k, v, ROUTES, pattern=STREAMING)
        hybrid_attention(q, k, v, ROUTES, pattern=MobaConfig(block_size=16, num_blocks=2))
    hybrid_attention(q, k, v, ROUTES, pattern=XATTENTION)  # nobody observes
    assert observer.notes == [] and observer.sum_pairs(3) == [(0, 0)] * 3
