"""XAttention by plain loops over tokens and sorted lists, and a judge that allows for rounding."""

import math

import torch


def score_naively(q, k, config, scale, dense=(0, 0)):
    """Masses of one head of one sequence as nested lists; q (T, D) holds the last queries of k (S, D).

    Returns {query block: (masses of the blocks 0..m, does any query vote)}.
    """
    stride, block = config.stride, config.block_size
    num_queries, num_keys = len(q), len(k)
    front = num_keys - num_queries

    def dot(query, key):
        is_query = front <= query < num_keys and not dense[0] <= query < dense[1]
        is_key = key < num_keys and not (dense[0] <= key < dense[1] and key // stride == dense[0] // stride)
        return float(q[query - front].double() @ k[key].double()) if is_query and is_key else 0.0

    result = {}
    for m in range(front // block, -(-num_keys // block)):
        masses, votes = [0.0] * (m + 1), False
        for x in range(m * block // stride, (m + 1) * block // stride):
            queries = range(max(front, x * stride), min(num_keys, (x + 1) * stride))
            if all(dense[0] <= query < dense[1] for query in queries):
                continue
            votes = True
            scores = [
                sum(dot(stride * x + stride - 1 - i, stride * y + i) for i in range(stride)) * scale / stride
                for y in range(x + 1)
            ]
            total = sum(math.exp(score - max(scores)) for score in scores)
            for y, score in enumerate(scores):
                masses[y * stride // block] += math.exp(score - max(scores)) / total
        result[m] = (masses, votes)
    return result


def select_naively(masses, votes, config):
    """The chosen blocks of one row, ascending."""
    last = len(masses) - 1
    if not votes:
        return list(range(last + 1))
    forced = sorted({0, last})
    order = forced + sorted(set(range(last + 1)) - set(forced), key=lambda n: (-masses[n], n))
    worth = masses if config.density is None else [1.0] * (last + 1)
    share = config.threshold if config.density is None else config.density
    chosen, held = set(forced), 0.0
    for n in order:
        if held < share * sum(worth):
            chosen.add(n)
        held += worth[n]
    return sorted(chosen)


def bound_mass_error(q, k, config, scale):
    """How far float32 masses may be from exact ones, as a share of a row's mass: (2 e^d - 2) + sums, see below.

    A strided score is a sum of s * D products, so its error is at most s * D units of rounding times the sum of the
    products' sizes. A softmax whose scores are off by d has probabilities off by a factor of at most e^(2 d); adding
    them up and taking logarithms costs a rounding for every strided key.
    """
    unit = torch.finfo(torch.float32).eps
    largest = (
        q.double().abs().sum(-1).max() * k.double().abs().max()
        + q.double().abs().max() * k.double().abs().sum(-1).max()
    )
    score_error = (
        config.stride
        * q.shape[-1]
        * unit
        * min(float(largest), float(q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max()))
        * scale
    )
    return math.expm1(2 * score_error) + unit * (k.shape[2] / config.stride + 64)


def assert_chosen(chosen, mass, config, tolerance):
    """A choice is right if its mass suffices, none of it can be spared and none of the rest is heavier.

    Args:
        chosen: (..., M, N) bool, the query blocks are the last M of N.
        mass: (..., M, N) float64, rows that vote.
        tolerance: what masses may be wrong by, as a share of the row's mass.

    Returns:
        Share of the blocks that are kept.
    """
    num_rows, num_blocks = mass.shape[-2:]
    blocks = torch.arange(num_blocks, device=mass.device)
    last = blocks[num_blocks - num_rows :, None]
    causal, forced = blocks <= last, (blocks == 0) | (blocks == last)
    assert not (chosen & ~causal).any() and (chosen | ~forced).all()
    total = mass.sum(-1)
    slack = 2 * tolerance * total
    free = chosen & ~forced
    kept = (mass * chosen).sum(-1)
    lightest = mass.masked_fill(~free, math.inf).amin(-1)
    heaviest = mass.masked_fill(chosen | ~causal, -math.inf).amax(-1)
    assert (heaviest <= lightest + slack).all(), "a heavier block was left out"
    if config.density is not None:
        count = (config.density * causal.sum(-1)).ceil().clamp(min=forced[:, :].logical_and(causal).sum(-1))
        assert torch.equal(chosen.sum(-1), count.long().expand(chosen.shape[:-1]))
    else:
        assert (kept >= config.threshold * total - slack).all(), "too little mass"
        spare = (kept - lightest).masked_fill(~free.any(-1), -math.inf)
        assert (spare < config.threshold * total + slack).all(), "a block too many"
    return float(chosen.sum() / causal.expand_as(chosen).sum())
