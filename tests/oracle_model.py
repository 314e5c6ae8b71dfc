"""A transformers model whose attention is the slow oracle: what routed generation should say, without our library."""

import torch
import transformers

from elastic_attention import StreamingConfig
from oracles import visible_mask


def _attend(module, query, key, value, attention_mask, scaling=None, oracle=None, **kwargs):
    """One sequence a row, no padding, no cache: (B, H, T, D) -> (B, T, H, D)."""
    routes, config, prompt_length = oracle
    length, group = query.shape[2], query.shape[1] // key.shape[1]
    causal = torch.ones(length, length).tril().bool()
    sparse = visible_mask_of(config, length).clone()
    if prompt_length is not None:
        sparse[prompt_length:] = causal[prompt_length:]
    visible = torch.where(routes[:, module.layer_idx, :, None, None], sparse, causal).repeat_interleave(group, 1)
    keys, values = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = (query @ keys.transpose(-1, -2) * scaling).masked_fill(~visible, float("-inf"))
    return (scores.softmax(-1) @ values).transpose(1, 2), None


_MASKS = {}


def visible_mask_of(config: StreamingConfig, length):
    """The block rule as a mask, drawn once for the longest length asked for."""
    known = _MASKS.get(config)
    if known is None or len(known) < length:
        known = _MASKS[config] = visible_mask(config, max(length, 300))
    return known[:length, :length]


transformers.AttentionInterface.register("oracle", _attend)
transformers.AttentionMaskInterface.register("oracle", lambda *args, **kwargs: None)


class OracleModel:
    """Wraps a plain model; routes are (L, G) or (B, L, G) bool, True = sparse."""

    def __init__(self, model, config):
        model.set_attn_implementation("oracle")
        self.model, self.config = model, config.sparse_pattern

    @torch.no_grad()
    def logits(self, ids, routes, *, prompt_length=None):
        """(B, T, V). Rows from `prompt_length` on read all keys (decode="full"); None: the rule holds for every row."""
        routes = routes.expand(len(ids), -1, -1) if routes.ndim == 2 else routes
        return self.model(ids, use_cache=False, oracle=(routes, self.config, prompt_length)).logits

    def greedy(self, ids, routes, num_new, *, prompt_length=None):
        """(B, T + num_new) ids, each token from a pass over everything before it."""
        for _ in range(num_new):
            ids = torch.cat([ids, self.logits(ids, routes, prompt_length=prompt_length)[:, -1:].argmax(-1)], 1)
        return ids
