"""Recipes of one model side by side: what is compared, and the command on a tiny model."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import recipe_quality
import torch
from filelock import FileLock
from tiny_study import SETTINGS, KindSuite

from elastic_attention.evaluation.answer_log import Line
from elastic_attention.evaluation.methods import Method
from elastic_attention.evaluation.plan import EvalPlan
from elastic_attention.models.checkpoint import read_static_adapter, save_static_routes
from elastic_attention.records import read_record
from elastic_attention.training.recipe import load_recipe
from made_rows import make_rows, make_tokenizer, write_rows
from tiny_models import make_model

HEAD = """model = "models/tiny"
steps = 2
validate_every = 0
precision = "float32"
[data.packs]
files = ["train.jsonl"]
heldout_files = ["train.jsonl"]
tokens = 410
per_step = 1
"""
MASK = 'extends = "head.toml"\n[routes]\nsource = "static"\n[pattern]\nkind = "triangle"\n'
SAME_PAIR = 'extends = "head.toml"\n[routes]\nsource = "alpha"\n'


class MixtureSuite(KindSuite):
    """With the categories of the mixture."""

    kinds = {"plain": "multi_qa", "targets": "code"}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    make_model(vocab_size=600, max_position_embeddings=4096).save_pretrained(tmp_path / "models" / "tiny")
    make_tokenizer().save_pretrained(tmp_path / "models" / "tiny")
    write_rows(tmp_path / "train.jsonl", make_rows(24))
    (tmp_path / "head.toml").write_text(HEAD + SETTINGS)
    (tmp_path / "mask.toml").write_text(MASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELASTIC_ATTENTION_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(recipe_quality, "open_suite", lambda name, **_: MixtureSuite())
    return ["head.toml", "mask.toml", "--json", "record.json", "--lengths", "80", "--samples", "2", "--device", "cpu"]


def test_the_command_trains_asks_and_compares_once(tiny, tmp_path, monkeypatch):
    tiny += ["--methods", "all_sparse"]
    recipe_quality.main(tiny)
    metrics = read_record("record.json")["metrics"]
    assert [row["label"] for row in metrics["rows"]] == ["dense", "all_sparse", "routed-head", "static-mask"]
    assert [(c["task"], c["length"], c["n"]) for c in metrics["cells"]] == [("plain", 80, 2), ("targets", 80, 2)] * 4
    assert {cell["msr"] for cell in metrics["cells"] if cell["label"] == "all_sparse"} == {1.0}
    head, mask = metrics["trainings"]
    assert (head["pair"], mask["pair"], mask["source"], head["steps"]) == ("FA-SSA", "FA-TA", "static", 2)
    assert set(head["categories"]) == {"single_qa", "few_shot", "code"}
    assert head["furthest_outside"] == max(found["outside"] for found in head["categories"].values())
    (tmp_path / "record.json").unlink()
    for name in ("train", "run_plan"):
        monkeypatch.setattr(recipe_quality, name, lambda *_, **__: pytest.fail("done again"))
    recipe_quality.main(tiny)
    assert read_record("record.json")["metrics"] == metrics


def test_a_mask_is_as_sparse_as_the_router_beside_it(tiny, tmp_path, monkeypatch):
    """It comes first and waits; whatever its recipe aims at, it is cut where the router was."""
    (tmp_path / "mask.toml").write_text(SAME_PAIR)
    monkeypatch.setattr(recipe_quality, "find_mastered", lambda dense: {("plain", 80), ("targets", 80)})
    recipe_quality.main([tiny[1], tiny[0], *tiny[2:]])
    record = read_record("record.json")
    router, mask = record["metrics"]["rows"][2], record["metrics"]["rows"][1]
    assert mask["label"] == f"static@{router['msr_all']:.3f}-mask" == record["metrics"]["trainings"][0]["label"]
    heads = 4  # of the tiny model, in all layers
    assert mask["msr_all"] == pytest.approx(router["msr_all"], abs=0.5 / heads)
    assert str(tmp_path) not in str(record)


@pytest.mark.parametrize(("name", "sparse"), [("logits", [False, True]), ("log_alpha", [True, False])])
def test_a_mask_is_cut_by_its_own_numbers(name, sparse, tmp_path):
    save_static_routes(tmp_path / "in", torch.zeros(1, 2).bool(), {name: torch.tensor([[0.1, 0.9]])}, {"kind": "x"})
    mask, facts = read_static_adapter(recipe_quality.cut_mask(tmp_path / "in", tmp_path / "out", 0.51))
    assert mask.tolist() == [sparse] and facts == {"kind": "x", "cut_at": 0.51}


def test_a_category_without_interval_is_not_outside(tiny, tmp_path, monkeypatch):
    run = recipe_quality.Run(path=tmp_path / "head.toml", recipe=load_recipe("head.toml"), folder=tmp_path)
    metrics = {"steps": 1, "tokens": 1, "seconds": 1.0}
    held = {"code": {"msr": 0.5, "outside": 0.2}, "other": {"msr": 0.1}}
    record = {"metrics": metrics | {"validation": {"categories": held}}, "bytes": 1, "package": {"commit": "abc"}}
    monkeypatch.setattr(recipe_quality, "read_record", lambda path: record)
    assert (run.describe("x")["furthest_outside"], run.describe("x")["commit"]) == (0.2, "abc")


def test_what_another_process_is_at_is_left_to_it(tiny, tmp_path, monkeypatch):
    """It holds the first recipe, so the second one comes first; then it is done, and the answers are asked."""
    order = []

    def train(path, *, output, **_):
        order.append(path.stem)
        run(path, output=output, device="cpu", json=output / "train.json")
        other.release()

    run, other = recipe_quality.train, FileLock(tmp_path / "runs" / ".head.lock")
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(recipe_quality, "train", train)
    with other:
        recipe_quality.main(tiny)
    assert order == ["mask", "head"] and read_record("record.json")["config"]["is_complete"]


def test_a_mask_is_cut_by_the_process_that_asks_it_and_never_again(tiny, monkeypatch):
    """Written anew it would be missing for a moment, while another process reads it."""
    cuts, cut = [], recipe_quality.cut_mask
    monkeypatch.setattr(recipe_quality, "find_mastered", lambda dense: {("plain", 80), ("targets", 80)})
    monkeypatch.setattr(
        recipe_quality, "cut_mask", lambda source, folder, msr: (cuts.append(msr), cut(source, folder, msr))[1]
    )
    Path("mask.toml").write_text(SAME_PAIR)
    recipe_quality.main(tiny)
    recipe_quality.main(tiny)
    assert len(cuts) == 1


def test_recipes_of_two_models_are_refused(tiny, tmp_path, capsys):
    (tmp_path / "mask.toml").write_text('extends = "head.toml"\nmodel = "models/other"\n')
    with pytest.raises(SystemExit):
        recipe_quality.main(tiny)
    assert "2 models, models/other, models/tiny" in capsys.readouterr().err


def test_only_what_dense_masters_counts():
    def make(shares, msr):
        return [
            Line(method="m", task=task, length=9, index=i, category=task, score=float(i < 10 * share), msr=msr)
            for task, share in shares.items()
            for i in range(10)
        ]

    answers = {
        "dense": make({"multi_qa": 1.0, "code": 1.0, "few_shot": 0.4}, 0.0),
        "router": make({"multi_qa": 0.9, "code": 1.0, "few_shot": 0.0}, 0.7),
        "mask": make({"multi_qa": 0.5, "code": 1.0, "few_shot": 0.4}, 0.8),
    }
    found = recipe_quality.summarize(answers, ["mask"])
    assert {cell["task"] for cell in found["mastered"]} == {"multi_qa", "code"}
    router = found["rows"][1]
    assert (router["n"], router["msr_all"], router["relative_sensitive_value"]) == (20, pytest.approx(0.7), 0.9)
    assert router["relative_all_value"] == pytest.approx(0.95)
    gains = {(gain["router"], gain["mask"], gain["kinds"]): gain["value"] for gain in found["gains"]}
    assert gains["router", "mask", "sensitive"] == pytest.approx(0.4) and set(gain[0] for gain in gains) == {"router"}


@pytest.mark.parametrize("method", [Method(name="routed"), Method(name="static", folder="here"), Method(name="dense")])
def test_answers_belong_to_the_routers_that_gave_them(method, tmp_path, monkeypatch):
    """Those that ship count as well: new ones must not go on with the answers of the old ones."""
    asked = {}
    monkeypatch.setattr(recipe_quality, "run_plan", lambda *_, identity, **__: asked.update(identity))
    monkeypatch.setattr(recipe_quality, "digest_adapter", lambda folder, model: f"digest of {folder}")
    base = SimpleNamespace(model=None, tokenizer=None, describe=lambda: {"name": "tiny"})
    plan = EvalPlan(tasks=("plain",), lengths=(80,), samples=1, methods=(method,))
    recipe_quality.Questions(base=base, suite=MixtureSuite(), plan=plan, output=tmp_path, workers=0).ask(method)
    read = {} if method.name == "dense" else {"adapter": f"digest of {method.folder}"}
    assert asked == {"model": {"name": "tiny"}} | read
