"""MoBA and InfLLM-V2 as their papers say it, one query after the other. Nothing here imports the code it judges."""

import torch


def choose_by_moba(config, q, k, head, t):
    """Blocks of one query: its own, and the best of those before it by q . mean(K)."""
    size, own = config.block_size, t // config.block_size
    keys = k[head * len(k) // len(q)].double()
    gates = {i: float(q[head, t].double() @ keys[i * size : (i + 1) * size].mean(0)) for i in range(own)}
    return {own, *sorted(gates, key=gates.get, reverse=True)[: config.num_blocks - 1]}


def choose_by_infllm(config, q, k, head, t):
    """Blocks of one query: sink, window, and the best of the others by the mass on overlapping pooled keys."""
    size, group = config.block_size, len(q) // len(k)
    kv, own = head // group, t // size
    windows = range(0, t + 1 - config.pooled_tokens + 1, config.pooling_stride)
    pooled = torch.stack([k[kv, s : s + config.pooled_tokens].double().mean(0) for s in windows])
    mass = sum(
        (q[h, t].double() @ pooled.T / q.shape[2] ** 0.5).softmax(0) for h in range(kv * group, (kv + 1) * group)
    )
    local = set(range(max(0, own - config.local_window // size + 1), own + 1))
    scores = {}
    for block in sorted(set(range(own + 1)) - local):
        first, last = block * size, (block + 1) * size
        # All pooled keys that start inside of the block, and the one that starts a stride before it.
        inside = [i for i, s in enumerate(windows) if first - config.pooling_stride <= s < last]
        scores[block] = float("inf") if block < config.num_sink_blocks else max(float(mass[i]) for i in inside)
    return local | set(sorted(scores, key=scores.get, reverse=True)[: config.num_blocks])


NAIVE = {"moba": choose_by_moba, "infllm": choose_by_infllm}


def read_keys(config, q, k, head, t):
    """Keys of one query as a set."""
    blocks = NAIVE[config.kind](config, q, k, head, t)
    return {j for block in blocks for j in range(block * config.block_size, (block + 1) * config.block_size) if j <= t}
