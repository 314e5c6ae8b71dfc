"""MoBA and InfLLM-V2 checkpoints: a base model plus a pattern on all heads."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from byte_tokenizer import make_byte_tokenizer
from elastic_attention import AdapterError, attach
from elastic_attention.config import ElasticConfig
from elastic_attention.models.checkpoint import read_static_adapter
from elastic_attention.models.convert import convert_checkpoint
from elastic_attention.models.loading import load_model
from elastic_attention.patterns import InfllmConfig, MobaConfig
from released_models import router_tensors, write_release
from tiny_models import make_model, text

SPARSE = {
    "block_size": 16, "window_size": 32, "topk": 2, "init_blocks": 1, "kernel_size": 8, "kernel_stride": 4,
    "dense_len": 65, "use_nope": False,
}  # fmt: skip
INFLLM = InfllmConfig(
    block_size=16, local_window=32, num_blocks=2, num_sink_blocks=1, pooled_tokens=8, pooling_stride=4, dense_tokens=64
)
MOBA = MobaConfig(block_size=16, num_blocks=3)


def write_checkpoint(folder, family="qwen3", **changes):
    """A stock model, as the released training of MoBA saves it; a change to None removes a key."""
    make_model(family, vocab_size=300).save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def infllm(family="qwen3", **changes):
    architecture = f"infllmv2_{family.title()}ForCausalLM"
    return {"model_type": f"infllmv2_{family}", "architectures": [architecture], "sparse_config": SPARSE} | changes


def logits_under(folder, pattern, length=150):
    """What the backbone says when all heads read the pattern."""
    model, _ = load_model(str(folder), dtype="float32", device="cpu")
    handle = attach(model, ElasticConfig.for_model(model, sparse_pattern=pattern), decode="full")
    handle.set_routes("sparse")
    with torch.no_grad():
        return model(text(length), use_cache=False).logits


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("kind", ["moba", "infllm"])
def test_a_checkpoint_loads_as_a_base_and_a_pattern(tmp_path, out, kind, family):
    changes = {"moba_chunk_size": 16, "moba_topk": 3} if kind == "moba" else infllm(family)
    folder = write_checkpoint(tmp_path / "src", family, **changes)
    facts = convert_checkpoint(folder, out)
    assert (facts["kind"], facts["msr"], facts["base_model"]["model_type"]) == (kind, 1.0, family)
    model, tokenizer = load_model(str(folder), dtype="float32", device="cpu")
    stock = make_model(family, vocab_size=300)
    assert type(model) is type(stock) and tokenizer("a")["input_ids"]
    assert all(torch.equal(p, stock.state_dict()[name]) for name, p in model.state_dict().items())
    handle = attach(model, out)
    assert handle.config.sparse_pattern == {"moba": MOBA, "infllm": INFLLM}[kind]
    with torch.no_grad():
        found, dense = model(text(150), use_cache=False).logits, stock(text(150)).logits
    assert torch.equal(found, logits_under(folder, handle.config.sparse_pattern)) and not torch.equal(found, dense)
    handle.save_pretrained(tmp_path / "again")
    handle.detach()
    again = attach(model, tmp_path / "again")
    assert again.config.sparse_pattern == {"moba": MOBA, "infllm": INFLLM}[kind]
    one, two = (model.generate(text(80), max_new_tokens=3, do_sample=False) for _ in range(2))
    assert torch.equal(one, two)


def test_moba_may_be_said_and_has_the_sizes_of_its_release(tmp_path, out):
    facts = convert_checkpoint(write_checkpoint(tmp_path / "src"), out, pattern="moba")
    mask, saved = read_static_adapter(out)
    assert facts["sparse_pattern"] == saved["sparse_pattern"] == {"block_size": 1024, "num_blocks": 8, "kind": "moba"}
    assert mask.all() and mask.shape == (3, 2)


def test_the_sizes_of_infllm_have_their_defaults(tmp_path, out):
    folder = write_checkpoint(tmp_path / "src", **infllm(sparse_config=None))
    assert convert_checkpoint(folder, out)["sparse_pattern"]["dense_tokens"] == 8192


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (infllm(sparse_config=SPARSE | {"heads": 2}), {}, "sparse_config has to be a table of .*kernel_size"),
        (infllm(sparse_config=[1]), {}, "sparse_config has to be a table"),
        (infllm(sparse_config=SPARSE | {"use_nope": True}), {}, "use_nope=True is not supported"),
        (infllm(sparse_config=SPARSE | {"topk": "64"}), {}, "num_blocks must be int, got '64'"),
        (infllm(sparse_config=SPARSE | {"window_size": 40}), {}, "local_window=40"),
        (infllm(), {"pattern": "moba"}, "read the pattern 'infllm', not 'moba'"),
        (infllm(), {"msr": 0.5}, "trained into all of its heads; leave out msr"),
        ({"moba_topk": 0}, {}, "num_blocks must be at least 1"),
        ({}, {}, "A stock model has no routers to convert. MoBA checkpoints.*--pattern moba"),
        ({}, {"pattern": "magic"}, "pattern='magic' is unknown; use one of .'moba', 'infllm'."),
        ({"num_hidden_layers": None, "moba_topk": 8}, {}, "num_hidden_layers must be a positive integer"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, out, changes, options, message):
    with pytest.raises(AdapterError, match=message):
        convert_checkpoint(write_checkpoint(tmp_path / "src", **changes), out, **options)
    assert not out.exists()


def test_tensors_that_are_not_of_a_stock_model_are_refused(tmp_path, out):
    folder = write_checkpoint(tmp_path / "src", **infllm())
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.layers.0.self_attn.gate.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(AdapterError, match="gate.weight.*refused"):
        convert_checkpoint(folder, out)
    save_file(tensors | router_tensors("elastic"), folder / "model.safetensors")
    with pytest.raises(AdapterError, match="holds routers"):
        convert_checkpoint(folder, out)


def test_a_mask_takes_no_pattern(tmp_path, out):
    table = tmp_path / "heads.tsv"
    table.write_text("0.5\t0.5\n")
    with pytest.raises(AdapterError, match="leave out pattern='moba'"):
        convert_checkpoint(table, out, pattern="moba")
    with pytest.raises(AdapterError, match="holds routers"):
        convert_checkpoint(write_release(tmp_path / "src"), out, pattern="moba")
