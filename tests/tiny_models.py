"""Tiny random models of every family, made from their configurations: no download, a fraction of a second each."""

import functools

import torch
import transformers

from elastic_attention import ElasticConfig, attach

VOCAB, LAYERS, SINK, WINDOW, BLOCK, POOLED = 97, 3, 16, 32, 16, 10
NEEDED = SINK + WINDOW  # a prompt must be longer to be routed
GREEDY = dict(do_sample=False, max_new_tokens=40)

_SHAPE = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=LAYERS,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    initializer_range=0.2,
)
_MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, mlp_only_layers=[], norm_topk_prob=True)
_MIXED = dict(layer_types=["full_attention", "sliding_attention", "full_attention"], sliding_window=24)

# name -> (prefix of the transformers classes, settings beyond the common shape)
FAMILIES = {
    "llama": ("Llama", dict(head_dim=16)),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", dict(head_dim=16)),
    "mistral": ("Mistral", dict(head_dim=16, sliding_window=None)),
    "phi3": ("Phi3", dict(sliding_window=None)),
    "gemma3_text": ("Gemma3", dict(head_dim=16, query_pre_attn_scalar=16, **_MIXED)),
    "olmo2": ("Olmo2", {}),
    "granite": ("Granite", dict(attention_multiplier=0.2, embedding_multiplier=2.0)),
    "smollm3": ("SmolLM3", dict(no_rope_layers=[1, 0, 1])),
    "qwen3_moe": ("Qwen3Moe", dict(head_dim=16, **_MOE)),
    "qwen2_moe": ("Qwen2Moe", dict(shared_expert_intermediate_size=32, **_MOE)),
    "glm4": ("Glm4", dict(head_dim=16, partial_rotary_factor=0.5)),
    "cohere2": ("Cohere2", _MIXED),
    "ernie4_5": ("Ernie4_5", dict(head_dim=16)),
    "olmo3": ("Olmo3", _MIXED),
    "starcoder2": ("Starcoder2", dict(sliding_window=None)),
    "stablelm": ("StableLm", {}),
    "arcee": ("Arcee", dict(head_dim=16)),
    "seed_oss": ("SeedOss", dict(head_dim=16)),
    "exaone4": ("Exaone4", dict(head_dim=16, **_MIXED)),
    "hunyuan": ("HunYuanDenseV1", dict(head_dim=16)),
    "ministral": ("Ministral", dict(head_dim=16, **_MIXED)),
    "mixtral": ("Mixtral", dict(head_dim=16, sliding_window=None, num_local_experts=4)),
}


def make_model(family="llama", **overrides):
    """A freshly built tiny causal language model in evaluation mode; equal calls give equal weights."""
    prefix, extra = FAMILIES[family]
    config_name = "Gemma3TextConfig" if prefix == "Gemma3" else f"{prefix}Config"
    config = getattr(transformers, config_name)(**(_SHAPE | extra | overrides), pad_token_id=0)
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    with torch.no_grad():  # norms start at one or zero, which would hide a norm that was left out
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter)) if "norm" in name else None
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def elastic_config(model, **overrides):
    """Small blocks, and router weights wide enough that untrained routers disagree with each other."""
    sizes = dict(num_sink_tokens=SINK, local_window=WINDOW, block_size=BLOCK, pooled_tokens=POOLED, init_std=0.5)
    return ElasticConfig.for_model(model, **(sizes | overrides))


def attach_tiny(model, *, config=None, **options):
    """Attach untrained routers, always the same ones."""
    torch.manual_seed(1)
    return attach(model, config or elastic_config(model), **options)


def generate(model, ids, **options):
    """`model.generate`, greedy and 40 tokens unless told otherwise."""
    return model.generate(ids, **(GREEDY | options))


@functools.cache
def text(length, *, rows=1, seed=7):
    """(rows, length) token ids without the padding id 0. `text(n)` is a prefix of `text(m)` for n < m."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB, (length, rows), generator=generator).T.contiguous()


def random_routes(model, *, batch=None, seed=3):
    """(L, G) or (B, L, G) given routes with both kinds of heads; layers that are not routed stay False."""
    config = elastic_config(model)
    base = config.base_model
    shape = (base.num_layers, base.num_kv_heads) if batch is None else (batch, base.num_layers, base.num_kv_heads)
    routes = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    is_routed = torch.zeros(base.num_layers, 1, dtype=torch.bool)
    is_routed[list(config.routed_layers)] = True
    return routes & is_routed


def left_padded(rows, width=None):
    """Ids, mask and positions of a batch of (1, n) prompts with padding in front."""
    width = width or max(row.shape[1] for row in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - row.shape[1] :] = row[0]
        mask[i, width - row.shape[1] :] = 1
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)
