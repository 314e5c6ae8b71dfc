"""Official checkpoints become adapters: the same routes as the released forward, and every fault is named."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from elastic_attention import AdapterError, StreamingConfig, attach
from elastic_attention.config import BaseModel, TriangleConfig, XAttentionConfig
from elastic_attention.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_adapter, read_static_routes
from elastic_attention.models.convert import convert_checkpoint
from elastic_attention.models.families import find_attention_modules, keys_before_rope, queries_before_rope
from elastic_attention.models.tensor_folder import TensorFolder
from released_models import (
    KV_HEADS,
    LAYERS,
    ROUTER,
    backbone_tensors,
    extra_tensors,
    released_is_full,
    router_tensors,
    write_release,
)
from tiny_models import make_model, text

LENGTH = 300  # longer than sink and window below
SMALL = dict(sink_size=128, local_window_size=128)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "adapter"


@torch.no_grad()
def read_states(model, ids, project):
    """Keys or queries before RoPE of every layer, all heads full."""
    seen = {}

    def note(module, args, kwargs):
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        seen[module.layer_idx] = project(module, hidden)

    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in find_attention_modules(model).values()]
    model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


# The same routes --------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("num_logits", [2, 1])
@pytest.mark.parametrize(("method", "family"), [("elastic", "qwen3"), ("elastic", "llama"), ("flux", "qwen3")])
def test_routes_are_those_of_the_released_forward(tmp_path, out, method, family, num_logits):
    options = dict(use_softmax=num_logits == 2, **SMALL)
    folder = write_release(tmp_path / "src", method, family=family, num_logits=num_logits, **options)
    facts = convert_checkpoint(folder, out)
    assert facts["kind"] == method and facts["granularity"] == {"elastic": "head", "flux": "layer"}[method]
    config, routers = load_adapter(out)
    model, ids = make_model(family), text(LENGTH, rows=12)
    states = read_states(model, ids, queries_before_rope if method == "flux" else keys_before_rope)
    pool = 150 if method == "flux" else 100
    assert config.router.pooled_tokens == pool
    tensors, all_routes = router_tensors(method, num_logits), []
    for layer in range(LAYERS):
        is_full = released_is_full(tensors, layer, states[layer], pool, method)
        pooled = torch.cat([states[layer][:, :pool], states[layer][:, -pool:]], 1).mean(1)
        assert torch.equal(routers[layer](pooled, layer=layer), ~is_full)
        all_routes.append(~is_full)
    assert 0.05 < torch.stack(all_routes).float().mean() < 0.95
    handle = attach(model, out)
    model(ids, use_cache=False)  # routes of the first layer do not depend on other layers' routes
    found = handle.report()["routes"][:, 0]
    assert torch.equal(found, all_routes[0].expand_as(found))


@torch.no_grad()
def test_short_prompts_count_their_overlap_twice_as_released(tmp_path, out):
    """150 tokens at each end of 260: 40 tokens count twice."""
    model = make_model("qwen3")
    convert_checkpoint(write_release(tmp_path / "src", "flux", **SMALL), out)
    ids = text(260, rows=12)
    states = read_states(model, ids, queries_before_rope)
    wanted = ~released_is_full(router_tensors("flux"), 0, states[0], 150, "flux")
    handle = attach(model, out)
    assert handle.config.router.count_overlap_twice
    pooled = []
    with handle.routed_by(lambda index, x: pooled.append(x) or torch.zeros(12, 2).bool(), is_sampling=False):
        model(ids, use_cache=False)
    wanted_pool = torch.cat([states[0][:, :150], states[0][:, -150:]], 1).mean((1, 2))
    torch.testing.assert_close(pooled[0][:, 0], wanted_pool, rtol=1e-4, atol=1e-5)
    model(ids, use_cache=False)
    assert torch.equal(handle.report()["routes"][:, 0, :1], wanted)


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_the_backbone_of_a_release_loads_as_a_stock_model(tmp_path, out, family):
    """What the notes advise where q, k and v were trained."""
    folder = write_release(tmp_path / "src", "flux", family=family, **SMALL)
    convert_checkpoint(folder, out)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    assert torch.equal(model(text(LENGTH), use_cache=False).logits, make_model(family)(text(LENGTH)).logits)
    handle = attach(model, out)
    model(text(LENGTH), use_cache=False)
    assert handle.report()["routed"] == [True]


def test_weights_keep_their_precision_and_rows_are_swapped(tmp_path, out):
    convert_checkpoint(write_release(tmp_path / "src"), out)
    ours, theirs = load_file(out / WEIGHTS_FILE), router_tensors("elastic")
    assert {t.dtype for t in ours.values()} == {torch.bfloat16} and len(ours) == 30
    last = ROUTER.format(1, "cls_router_head_agnostic", 4, "weight")
    assert torch.equal(ours["layers.1.router_mlp.4.weight"], theirs[last].flip(0))
    first = ROUTER.format(2, "cls_feat_extractor", 0, "bias")
    assert torch.equal(ours["layers.2.task_mlp.0.bias"], theirs[first])
    assert sorted(os.listdir(out)) == [CONFIG_FILE, WEIGHTS_FILE]


def test_one_logit_becomes_two_rows_and_says_so(tmp_path, out):
    facts = convert_checkpoint(write_release(tmp_path / "src", num_logits=1, use_softmax=False), out)
    theirs = router_tensors("elastic", 1)[ROUTER.format(0, "cls_router_head_agnostic", 4, "weight")]
    assert torch.equal(load_file(out / WEIGHTS_FILE)["layers.0.router_mlp.4.weight"], torch.cat([theirs, 0 * theirs]))
    notes = " ".join(facts["notes"])
    assert "[z, 0]" in notes and "normalises" in notes
    assert load_adapter(out)[0].training["converted"]["notes"] == facts["notes"]
    flux = convert_checkpoint(write_release(tmp_path / "f", "flux", num_logits=1, use_softmax=None), tmp_path / "g")
    assert "[z, 0]" in " ".join(flux["notes"]) and "normalises" not in " ".join(flux["notes"])


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_do_not_matter(tmp_path, out, shards):
    convert_checkpoint(write_release(tmp_path / "src", shards=shards), out)
    convert_checkpoint(write_release(tmp_path / "one", shards=1), tmp_path / "other")
    assert (out / WEIGHTS_FILE).read_bytes() == (tmp_path / "other" / WEIGHTS_FILE).read_bytes()


def test_only_router_tensors_are_read(tmp_path, out, monkeypatch):
    read, original = [], TensorFolder.read

    def note(self, name):
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(TensorFolder, "read", note)
    convert_checkpoint(write_release(tmp_path / "src"), out)
    assert len(read) == 10 * LAYERS and all("cls_" in name for name in read)


# Patterns and configuration ---------------------------------------------------------------------------------------

XA = XAttentionConfig(block_size=128, stride=16, threshold=0.9)


@pytest.mark.parametrize(
    ("changes", "sparse", "full"),
    [
        ({}, StreamingConfig(num_sink_tokens=128, local_window=2048, block_size=128), "full"),
        (dict(sink_size=64, local_window_size=1000), StreamingConfig(local_window=1024), "full"),
        (dict(toggle_type="xattn"), XA, "full"),
        (
            dict(toggle_type="xattn", xattn_threshold=0.8, xattn_stride=8),
            XAttentionConfig(stride=8, threshold=0.8),
            "full",
        ),
        (dict(retrieval_mode="xattn"), StreamingConfig(), XA),
        (dict(toggle_type="triangle"), TriangleConfig(), "full"),
        (dict(toggle_type="triangle", triangle_n_last=64), TriangleConfig(num_last_queries=64), "full"),
        (dict(pooling_mode=None, use_softmax=None), StreamingConfig(), "full"),
    ],
)
def test_patterns_come_from_the_config(tmp_path, out, changes, sparse, full):
    convert_checkpoint(write_release(tmp_path / "src", **changes), out)
    config, _ = load_adapter(out)
    assert (config.sparse_pattern, config.full_pattern) == (sparse, full)
    shape = dict(model_type="qwen3", num_layers=3, num_q_heads=6, num_kv_heads=2, head_dim=16)
    assert config.base_model == BaseModel(name=None, revision=None, **shape) and config.routed_layers == (0, 1, 2)


def test_head_dim_may_follow_from_the_hidden_size(tmp_path, out):
    tensors = {n: t for n, t in (router_tensors("elastic") | extra_tensors()).items()}
    convert_checkpoint(write_release(tmp_path / "src", tensors=tensors, head_dim=None, hidden_size=96), out)
    assert load_adapter(out)[0].base_model.head_dim == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(toggle_type="topk"), "toggle_type='topk' is not supported.*'streaming', 'xattn' and 'triangle'"),
        (dict(toggle_type="none"), "toggle_type='none'"),
        (dict(toggle_type=None), "toggle_type=None"),
        (dict(retrieval_mode="triangle"), "retrieval_mode='triangle'.*'full' and 'xattn'"),
        (dict(retrieval_mode="xattn", toggle_type="xattn"), "'xattn' needs 'streaming'"),
        (dict(pooling_mode="first_token"), "pooling_mode='first_token'.*'ctx_q'"),
        (dict(use_softmax=False), "use_softmax=False in config.json, but the router has 2 logits"),
        (dict(use_softmax="yes"), "use_softmax must be true or false, got 'yes'"),
        (dict(sink_size="128"), "sink_size must be a positive integer, got '128'"),
        (dict(local_window_size=None), "local_window_size must be a positive integer, got None"),
        (dict(num_hidden_layers=0), "num_hidden_layers must be a positive integer, got 0"),
        (dict(num_hidden_layers=4), r"disagree about the layers \[3\]"),
        (dict(num_hidden_layers=2), r"disagree about the layers \[2\]"),
        (dict(head_dim=8), "cls_feat_extractor.0.weight has the shape .64, 16., expected .64, 8.|ends in 16 features"),
        (dict(pool_size=-1), "pool_size must be a positive integer"),
        (dict(block_size=64), "block_size=64 is not supported"),
        (dict(xattn_norm=2), "xattn_norm=2"),
        (dict(xattn_stride=12, toggle_type="xattn"), "config.json: stride must be a power of two.*got 12"),
        (dict(xattn_threshold=1.5), "xattn_threshold must be a ratio"),
        (dict(architectures=["MambaForCausalLM"]), "MambaForCausalLM.*PawQwen3ForCausalLM"),
        (dict(architectures=["Qwen3ForCausalLM"]), "A stock model has no routers.*MoBA"),
        (dict(model_type="llama"), "model_type='llama'"),
        (dict(architectures=[]), r"architectures=\[\]"),
        (dict(architectures=[[]]), r"architectures=\[\[\]\]"),
        (dict(architectures={"a": 1}), "architectures="),
        (
            dict(architectures=["infllmv2_Qwen3ForCausalLM"], model_type="infllmv2_qwen3"),
            "InfLLM-V2 checkpoint: a base model plus a pattern.*not supported yet",
        ),
        (dict(architectures=["Qwen3ForCausalLM"], moba_topk=8), "MoBA checkpoint.*not supported yet"),
        (dict(architectures=["Qwen3ForCausalLM"], attn_implementation="moba"), "MoBA checkpoint"),
    ],
)
def test_what_is_unknown_is_refused_by_name(tmp_path, out, changes, message):
    folder = write_release(tmp_path / "src", **changes)
    with pytest.raises(AdapterError, match=message):
        convert_checkpoint(folder, out)
    assert not out.exists()


# Damaged checkpoints ----------------------------------------------------------------------------------------------

WEIGHT = ROUTER.format(1, "cls_router_head_agnostic", 2, "weight")
FIRST = ROUTER.format(0, "cls_feat_extractor", 0, "weight")
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"


def edit_index(change):
    def damage(folder):
        data = json.loads((folder / INDEX).read_text())
        change(data)
        (folder / INDEX).write_text(json.dumps(data))

    return damage


def with_tensor(name, value):
    """The release with one tensor changed, or left out if the value is None."""

    def damage(folder):
        tensors = backbone_tensors() | router_tensors("elastic") | extra_tensors() | {name: value}
        write_release(folder, tensors={n: t for n, t in tensors.items() if t is not None})

    return damage


def cut(name, keep):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[: int(keep * 1000)])


def map_to(shard):
    return edit_index(lambda data: data["weight_map"].update({WEIGHT: shard}))


def replace_by_pickle(folder):
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


DAMAGE = {
    "shard missing": (lambda f: (f / SHARD).unlink(), f"{SHARD} is missing"),
    "shard truncated": (cut(SHARD, 1.0), f"{SHARD} is damaged or truncated"),
    "shard empty": (cut(SHARD, 0), f"{SHARD} is damaged or truncated"),
    "shard a pickle": (lambda f: (f / SHARD).write_bytes(pickle.dumps({})), f"{SHARD} is damaged"),
    "only a pickle": (replace_by_pickle, "pytorch_model.bin, which is a pickle and is never loaded"),
    "no weights": (lambda f: [p.unlink() for p in f.glob("*.safetensors*")], "has neither"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config truncated": (cut("config.json", 0.1), "config.json is no valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object, got list"),
    "config too deep": (lambda f: (f / "config.json").write_text("[" * 100_000), "no valid JSON"),
    "index truncated": (cut(INDEX, 0.1), "index.json is no valid JSON"),
    "index empty": (edit_index(lambda d: d.update(weight_map={})), "has no weight_map"),
    "index of another form": (edit_index(lambda d: d.update(weight_map=[1])), "has no weight_map"),
    "entry missing": (edit_index(lambda d: d["weight_map"].pop(WEIGHT)), "does not list"),
    "entry of nothing": (edit_index(lambda d: d["weight_map"].update({"more": SHARD})), f"{SHARD} misses .'more'."),
    "entry in another shard": (map_to("model-00009-of-00003.safetensors"), "does not list|is missing"),
    "path upwards": (map_to("../secret.safetensors"), r"'../secret.safetensors', which is no safetensors file beside"),
    "path from the root": (map_to("/etc/passwd"), "'/etc/passwd', which is no safetensors file"),
    "not safetensors": (map_to("model.bin"), "'model.bin', which is no safetensors file"),
    "no name": (map_to(7), "7, which is no safetensors file"),
    "wrong shape": (with_tensor(WEIGHT, torch.zeros(16, 63)), r"has the shape \(16, 63\), expected \(16, 64\)"),
    "wrong rank": (with_tensor(FIRST, torch.zeros(64)), "must be matrices"),
    "no rows": (with_tensor(FIRST, torch.zeros(0, 16)), "must be matrices"),
    "three logits": (
        with_tensor(ROUTER.format(0, "cls_router_head_agnostic", 4, "weight"), torch.zeros(3, 16)),
        "has 3 logits; known are 2 and 1",
    ),
    "odd width": (
        with_tensor(ROUTER.format(0, "cls_feat_extractor", 2, "weight"), torch.zeros(24, 64)),
        "ends in 24 features for heads of 16",
    ),
    "NaN": (with_tensor(WEIGHT, torch.full((16, 64), torch.nan)), f"{WEIGHT} holds NaN"),
    "infinity": (with_tensor(WEIGHT, torch.full((16, 64), torch.inf)), f"{WEIGHT} holds NaN, infinities"),
    "integers": (with_tensor(WEIGHT, torch.zeros(16, 64, dtype=torch.int8)), "no floats .torch.int8"),
    "tensor missing": (with_tensor(WEIGHT, None), r"router of layer 1 lacks \['router_mlp.2.weight'\]"),
    "tensor too many": (
        with_tensor(ROUTER.format(1, "cls_feat_extractor", 4, "weight"), torch.zeros(2)),
        r"in excess \['task_mlp.4.weight'\]",
    ),
    "unknown tensor": (with_tensor("model.layers.0.self_attn.g_proj.weight", torch.zeros(2)), "g_proj.*refused"),
    "unknown beside the routers": (
        with_tensor("model.layers.0.self_attn.mask_allocator.gate.weight", torch.zeros(2)),
        "mask_allocator.gate.weight.*refused",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_and_nothing_is_written(tmp_path, out, case):
    damage, message = DAMAGE[case]
    folder = write_release(tmp_path / "src")
    damage(folder)
    with pytest.raises(AdapterError, match=message):
        convert_checkpoint(folder, out)
    assert not out.exists()


def test_a_full_disk_leaves_the_old_adapter(tmp_path, out, monkeypatch):
    convert_checkpoint(write_release(tmp_path / "src"), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def no_space(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        convert_checkpoint(write_release(tmp_path / "other", "flux"), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_source_that_is_not_there(tmp_path, out):
    with pytest.raises(AdapterError, match="There is no model folder"):
        convert_checkpoint(tmp_path / "absent", out)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(AdapterError, match="neither a folder nor a .tsv or .safetensors"):
        convert_checkpoint(tmp_path / "notes.txt", out)
    with pytest.raises(AdapterError, match="is a file; name a folder"):
        convert_checkpoint(write_release(tmp_path / "src"), tmp_path / "notes.txt")


def test_a_hub_id_fetches_safetensors_alone(tmp_path, out, monkeypatch):
    import huggingface_hub

    folder, asked = write_release(tmp_path / "hub"), {}

    def answer(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    assert convert_checkpoint("someone/model", out)["source"] == "someone/model"
    assert asked["repo_id"] == "someone/model"
    assert set(asked["allow_patterns"]) == {
        "config.json",
        "*.safetensors",
        "*.safetensors.index.json",
        "full_attention_heads.tsv",
    }


# The base model ---------------------------------------------------------------------------------------------------


def write_base(folder, tensors=None):
    folder.mkdir()
    save_file(tensors or backbone_tensors(), folder / "model.safetensors")
    return folder


def test_equal_projections_are_told(tmp_path, out):
    facts = convert_checkpoint(write_release(tmp_path / "src"), out, base=write_base(tmp_path / "Qwen3-Tiny"))
    assert facts["projections"] == {"compared": 9, "different": 0, "largest": 0.0, "examples": []}
    assert "can be attached to it" in " ".join(facts["notes"]) and facts["base_model"]["name"] == "Qwen3-Tiny"
    assert load_adapter(out)[0].base_model.name == "Qwen3-Tiny"


def test_trained_projections_are_told(tmp_path, out):
    tensors = backbone_tensors() | router_tensors("flux") | extra_tensors()
    name = "model.layers.1.self_attn.v_proj.weight"
    tensors[name] = tensors[name] + 0.25
    tensors["model.layers.1.mlp.up_proj.weight"] += 1.0  # only q, k and v are looked at
    folder = write_release(tmp_path / "src", "flux", tensors=tensors)
    facts = convert_checkpoint(folder, out, base=write_base(tmp_path / "base"))
    assert facts["projections"]["different"] == 1 and facts["projections"]["examples"] == [name]
    assert facts["projections"]["largest"] == pytest.approx(0.25, abs=1e-3)
    assert "load the backbone from this checkpoint" in " ".join(facts["notes"])


def test_rounding_to_a_lower_precision_is_no_difference(tmp_path, out):
    half = {name: tensor.bfloat16() for name, tensor in backbone_tensors().items()}
    folder = write_release(tmp_path / "src", tensors=half | router_tensors("elastic"))
    assert convert_checkpoint(folder, out, base=write_base(tmp_path / "base"))["projections"]["different"] == 0


def test_without_a_base_it_says_so(tmp_path, out):
    notes = " ".join(convert_checkpoint(write_release(tmp_path / "src", "flux"), out)["notes"])
    assert "were not compared" in notes and "public script trains them" in notes


def test_another_base_is_refused(tmp_path, out):
    folder = write_release(tmp_path / "src")
    less = {n: t for n, t in backbone_tensors().items() if "layers.2" not in n}
    with pytest.raises(AdapterError, match="is not the base of .*only one of them has"):
        convert_checkpoint(folder, out, base=write_base(tmp_path / "short", less))
    wide = {n: torch.zeros(len(t), 2) if "proj" in n else t for n, t in backbone_tensors().items()}
    with pytest.raises(AdapterError, match="is not the base of .* there, "):
        convert_checkpoint(folder, out, base=write_base(tmp_path / "wide", wide))
    with pytest.raises(AdapterError, match="There is no model folder"):
        convert_checkpoint(folder, out, base=tmp_path / "absent")
    assert not out.exists()


# Static masks -----------------------------------------------------------------------------------------------------

ROWS = [[1.0, 0.02], [0.49, 0.51], [0.0, 0.9]]


def write_table(folder, rows=ROWS, **config):
    folder.mkdir(exist_ok=True)
    path = folder / "full_attention_heads.tsv"
    path.write_text("".join("\t".join(f"{x:.18e}" for x in row) + "\n" for row in rows))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("as_folder", [True, False])
def test_duo_attention_table_becomes_static_routes(tmp_path, out, as_folder):
    path = write_table(tmp_path / "duo", sink_size=128, recent_size=256, deploy_sink_size=None)
    facts = convert_checkpoint(path.parent if as_folder else path, out)
    assert facts["kind"] == "duo_attention" and facts["msr"] == pytest.approx(0.5)
    assert facts["sparse_pattern"] == {"num_sink_tokens": 128, "local_window": 256, "block_size": 128}
    mask = read_static_routes(out)
    assert mask.tolist() == [[False, True], [True, False], [True, False]]
    model = make_model("qwen3")
    handle = attach(model, convert_adapter(tmp_path))
    handle.set_routes(mask)
    with torch.no_grad():
        model(text(LENGTH), use_cache=False)
    assert torch.equal(handle.report()["routes"][0], mask)


def convert_adapter(tmp_path):
    convert_checkpoint(write_release(tmp_path / "elastic", **SMALL), tmp_path / "routers")
    return tmp_path / "routers"


@pytest.mark.parametrize(("msr", "sparse"), [(0.0, 0), (1 / 3, 2), (2 / 3, 4), (1.0, 6)])
def test_a_share_keeps_the_fullest_heads(tmp_path, out, msr, sparse):
    convert_checkpoint(write_table(tmp_path / "duo"), out, msr=msr)
    mask, scores = read_static_routes(out), torch.tensor(ROWS)
    assert mask.sum() == sparse
    if 0 < sparse < 6:
        assert scores[mask].max() < scores[~mask].min()


def test_prulong_checkpoint_becomes_static_routes(tmp_path, out):
    tensors = backbone_tensors("llama")
    alphas = torch.tensor([[4.0, -3.0], [0.5, -0.1], [-9.0, 2.0]])
    for i in range(LAYERS):
        tensors[f"model.layers.{i}.self_attn.attn_mask_log_alphas"] = alphas[i].bfloat16()
    options = dict(family="llama", tensors=tensors, enable_ada_sparsity=None, retrieval_mode=None, use_softmax=None)
    facts = convert_checkpoint(write_release(tmp_path / "src", **options), out)
    assert facts["kind"] == "prulong" and facts["sparse_pattern"]["local_window"] == 2048
    assert torch.equal(read_static_routes(out), alphas < 0)
    convert_checkpoint(write_release(tmp_path / "src2", suggested_sparsity=2 / 3, **options), out)
    assert read_static_routes(out).tolist() == [[False, True], [True, True], [True, False]]
    convert_checkpoint(write_release(tmp_path / "src3", suggested_sparsity=2 / 3, **options), out, msr=1 / 6)
    assert read_static_routes(out).sum() == 1


def test_switched_off_routers_leave_the_static_mask(tmp_path, out):
    facts = convert_checkpoint(write_release(tmp_path / "src", enable_ada_sparsity=False), out)
    assert facts["kind"] == "prulong" and not read_static_routes(out).any()  # log alpha 4.5 everywhere


def test_a_file_of_log_alphas(tmp_path, out):
    alphas = torch.randn(4, 3)
    save_file({"log_alpha": alphas}, tmp_path / "masks.safetensors")
    convert_checkpoint(tmp_path / "masks.safetensors", out)
    assert torch.equal(read_static_routes(out), alphas < 0)
    names = {f"model.layers.{i}.self_attn.attn_mask_log_alphas": alphas[i].clone() for i in range(4)}
    save_file(names, tmp_path / "layers.safetensors")
    convert_checkpoint(tmp_path / "layers.safetensors", tmp_path / "other")
    assert torch.equal(read_static_routes(tmp_path / "other"), alphas < 0)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_text("1.0\tx\n"), "line 1: could not convert"),
        (lambda p: p.write_text("1.0\t0.5\n1.0\n"), "line 2: 2 finite numbers are expected"),
        (lambda p: p.write_text("1.0\tnan\n"), "line 1: 2 finite numbers"),
        (lambda p: p.write_text("1.0\tinf\n"), "line 1: 2 finite numbers"),
        (lambda p: p.write_text("\n\n"), "is empty"),
        (lambda p: p.write_bytes(b"\xff\xfe\x00"), "cannot be read as a table"),
    ],
)
def test_damaged_tables(tmp_path, out, write, message):
    path = tmp_path / "full_attention_heads.tsv"
    write(path)
    with pytest.raises(AdapterError, match=message):
        convert_checkpoint(path, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"log_alpha": torch.full((2, 2), torch.nan)}, "finite float tensor"),
        ({"log_alpha": torch.zeros(4)}, "finite float tensor"),
        ({"log_alpha": torch.zeros(2, 2, dtype=torch.int64)}, "finite float tensor"),
        ({"weights": torch.zeros(2, 2)}, "holds no log alphas"),
        ({f"model.layers.{i}.self_attn.attn_mask_log_alphas": torch.zeros(2) for i in (0, 2)}, r"layers \[1\]"),
        ({f"model.layers.{i}.self_attn.attn_mask_log_alphas": torch.zeros(2 + i) for i in (0, 1)}, "has the shape"),
    ],
)
def test_damaged_log_alphas(tmp_path, out, tensors, message):
    save_file(tensors, tmp_path / "masks.safetensors")
    with pytest.raises(AdapterError, match=message):
        convert_checkpoint(tmp_path / "masks.safetensors", out)
    assert not out.exists()


def test_options_that_do_not_fit(tmp_path, out):
    table, folder = write_table(tmp_path / "duo", sink_size=128, recent_size=-1), write_release(tmp_path / "src")
    for source, options, message in (
        (folder, dict(msr=0.5), "msr=0.5 is for static masks"),
        (table, dict(msr=1.5), "msr=1.5 must be a ratio"),
        (table, dict(base=tmp_path), "without projections"),
        (table, {}, "recent_size must be a positive integer, got -1"),
    ):
        with pytest.raises(AdapterError, match=message):
            convert_checkpoint(source, out, **options)
    tensors = backbone_tensors() | {
        f"model.layers.{i}.self_attn.attn_mask_log_alphas": torch.zeros(5) for i in range(3)
    }
    with pytest.raises(AdapterError, match=r"log alphas are \(3, 5\).*\(3, 2\)"):
        convert_checkpoint(write_release(tmp_path / "p", tensors=tensors, enable_ada_sparsity=None), out)
    with pytest.raises(AdapterError, match="neither routers nor log alphas"):
        convert_checkpoint(write_release(tmp_path / "q", tensors=backbone_tensors()), out)
    assert not out.exists() and KV_HEADS == 2
