"""The command that studies claims of the papers, on a tiny model."""

import argparse
import dataclasses

import paper_lab
import paper_pictures
import paper_study
import pattern_exchange
import pytest
import torch
from made_answers import make_answers
from paper_claims import CLAIMS, Claim, Entry, Training
from paper_recipes import Scale
from paper_sharing import Busy
from tiny_study import SETTINGS, KindSuite

from elastic_attention.errors import RecipeError
from elastic_attention.evaluation.session import Base
from elastic_attention.models.checkpoint import load_adapter, read_static_adapter
from elastic_attention.records import build_record, read_record, write_record
from made_rows import make_rows, make_tokenizer, write_rows
from tiny_models import make_model


class MixtureSuite(KindSuite):
    """Under the name and with the categories of the mixture."""

    name, kinds = "mixture", {"plain": "sensitive", "targets": "robust"}


TINY = Scale(
    name="tiny",
    recipe="tiny.toml",
    lengths={"mixture": (80,)},
    samples={"mixture": 3},
    short=200,
    steps=2,
    step_tokens=410,
    training_rate=1,
    reading_rate=1,
)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Arguments of the command; the model, its recipe and its suite are tiny."""
    rows = write_rows(tmp_path / "train.jsonl", make_rows(24))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.toml").write_text(
        f"""model = "tiny"
steps = 9
validate_every = 0
precision = "float32"
[data.packs]
files = ["{rows}"]
tokens = 410
cache = "{tmp_path / "cache"}"
over_long = "skip"
"""
        + SETTINGS
    )
    model = make_model(vocab_size=600, max_position_embeddings=4096)
    cpu, tokenizer = torch.device("cpu"), make_tokenizer()
    base = Base(name="tiny", model=model, tokenizer=tokenizer, device=cpu, dtype=model.dtype, context=4096)
    monkeypatch.setattr(paper_study, "ROOT", tmp_path)
    monkeypatch.setattr(paper_study, "open_base", lambda *_, **__: base)
    monkeypatch.setattr(paper_study, "find_scale", lambda model: TINY)
    monkeypatch.setattr(paper_lab, "open_suite", lambda name, **_: MixtureSuite())
    return ["--output", str(tmp_path / "paper"), "--corpora", ""]


def test_command_stops_in_time_goes_on_and_shares(tiny, tmp_path, monkeypatch):
    path = tmp_path / "paper_tiny_xa_ssa.json"
    claim = Claim(
        title="t", paper="p", rule="r", judge=CLAIMS["xa_ssa"].judge,
        entries=(
            Entry(name="dense", method="dense"),
            Entry(name="fa_ssa", training=Training()),
            Entry(name="xa_ssa", method="static", training=Training(source="static", target="fa_ssa")),
        ),
    )  # fmt: skip
    monkeypatch.setitem(CLAIMS, "xa_ssa", claim)
    arguments = ["xa_ssa", *tiny, "--results", str(tmp_path)]
    assert paper_study.main([*arguments, "--max-minutes", "0"]) == 1
    assert not path.exists()
    assert paper_study.main(arguments) == 0
    first = read_record(path)["metrics"]
    assert first["verdict"] in ("reproduced", "partly", "not", "open")
    assert [row["entry"] for row in first["trainings"]] == ["fa_ssa", "xa_ssa"]
    assert {row["entry"] for row in first["rows"] if row["kinds"] == "all"} == {"dense", "fa_ssa", "xa_ssa"}

    summary = read_record(tmp_path / "paper_tiny.json")["metrics"]
    assert {row["claim"] for row in summary["rows"] if row["n"]} == {"xa_ssa"}
    assert len(summary["rows"]) == len(CLAIMS) and len(summary["checks"]) == len(first["checks"])

    def refuse(*_, **__):
        raise AssertionError("done again")

    for name in ("train", "run_plan"):
        monkeypatch.setattr(paper_lab, name, refuse)
    assert paper_study.main([*arguments, "--max-minutes", "0"]) == 0
    assert read_record(path)["metrics"]["checks"] == first["checks"]
    # Another claim finds the adapter and the answers of this one.
    shared = dataclasses.replace(claim, entries=claim.entries[:2], judge=lambda found: [])
    monkeypatch.setitem(CLAIMS, "width", shared)
    assert paper_study.main(["width", *tiny]) == 0
    # No place of this computer is part of what is kept, so all of it may go on elsewhere.
    kept = [path, *(tmp_path / "paper" / "answers").rglob("*.json*")]
    assert not any(str(tmp_path) in file.read_text() for file in kept)


def test_masks_are_trained_once_and_cut(tiny, tmp_path):
    recipe = tmp_path / "recipes" / "mask.toml"
    recipe.write_text('extends = "tiny.toml"\nroutes.source = "static"\noptimizer.learning_rate = 0.25\n')
    lab = paper_lab.Lab(
        base=paper_study.open_base(), scale=dataclasses.replace(TINY, masks={"static": recipe.name}),
        recipes=recipe.parent, output=tmp_path / "paper", corpora=None, deadline=float("inf"),
    )  # fmt: skip
    assert lab.build_recipe(Training(source="static"), 0).optimizer.learning_rate == 0.25
    entries = [
        Entry(name=f"at_{msr}", method="static", training=Training(source="static", target=msr)) for msr in (0.3, 0.8)
    ]
    masks = [read_static_adapter(lab.train(entry, 0))[0] for entry in entries]
    assert [round(mask.double().mean().item(), 1) for mask in masks] == [0.3, 0.8]
    assert bool((masks[1] | ~masks[0]).all())  # heads that are sparse at .3 are so at .8
    assert len({row["folder"] for row in lab.trainings}) == 1
    # Other records are another training, even under the same name.
    folder = lab.find_folder(Training(), lab.build_recipe(Training(), 0))
    write_rows(tmp_path / "train.jsonl", make_rows(25))
    assert lab.find_folder(Training(), lab.build_recipe(Training(), 0)) != folder


def test_processes_leave_each_other_their_work(tiny, tmp_path, monkeypatch, capsys):
    asked, seen = paper_lab.Lab._run, []

    def run(lab, entry, *arguments):
        # While this process asks dense, another one takes the rest of the claim, and leaves dense.
        if not seen:
            seen.append(entry.name)
            with pytest.raises(Busy):
                paper_study.study(paper_lab.Lab(**settings), "xa_ssa", None)
            seen.append("other")
        return asked(lab, entry, *arguments)

    monkeypatch.setattr(paper_lab.Lab, "_run", run)
    settings = dict(
        base=paper_study.open_base(), scale=TINY, recipes=tmp_path / "recipes", output=tmp_path / "paper",
        corpora=None, deadline=float("inf"),
    )  # fmt: skip
    lab = paper_lab.Lab(**settings)
    assert "xa_ssa" in paper_study.study_all(lab, ["xa_ssa"], tmp_path)
    assert seen == ["dense", "other"]
    assert len(list((tmp_path / "paper" / "trained").glob("*/result.json"))) == 2
    # Who waits asks again and again, and says once what is there.
    capsys.readouterr()
    paper_study.study(lab, "xa_ssa", None)
    assert "of its seeds" not in capsys.readouterr().out


def test_a_full_gpu_is_tried_again(tiny, tmp_path, monkeypatch, capsys):
    """Out of memory, and as the trainer says it; then there is some. At last it is said what to do."""
    trained, refusals = paper_lab.train, [torch.OutOfMemoryError("full"), RecipeError("no room"), RecipeError("odd")]
    refusals[1].__cause__ = torch.OutOfMemoryError("full")

    def train(*arguments, **options):
        if refusals:
            raise refusals.pop(0)
        return trained(*arguments, **options)

    monkeypatch.setattr(paper_lab, "train", train)
    monkeypatch.setattr(paper_study.time, "sleep", lambda seconds: None)
    assert paper_study.main(["task_similarity", *tiny]) == 1
    assert capsys.readouterr().out.startswith("task_similarity stays open: odd")
    assert paper_study.main(["task_similarity", *tiny]) == 0
    monkeypatch.setattr(paper_lab, "PATIENCE", 2)
    refusals += [torch.OutOfMemoryError("full")] * 2
    assert paper_study.main(["task_similarity", *tiny, "--steps", "1"]) == 1
    assert "stays open: full Lower --batch-tokens" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["map_overlap", "task_similarity", "probe"])
def test_figures_of_a_tiny_model(name, tiny, tmp_path):
    path = tmp_path / f"paper_tiny_{name}.json"
    assert paper_study.main([name, *tiny, "--results", str(tmp_path)]) == 0
    metrics = read_record(path)["metrics"]
    assert metrics["checks"] and metrics["figures"]
    if name == "probe":
        assert "probe" in {row["entry"] for row in metrics["rows"]}
    assert paper_study.main([name, *tiny, "--results", str(tmp_path)]) == 0
    assert read_record(path)["metrics"]["figures"] == metrics["figures"]


def test_routers_are_asked_with_a_triangle(tiny, tmp_path):
    assert paper_study.main(["exchange", *tiny, "--results", str(tmp_path)]) == 0
    rows = read_record(tmp_path / "paper_tiny_exchange.json")["metrics"]["rows"]
    assert {row["entry"] for row in rows} >= {"fa_ssa", "fa_ta"}
    (adapter,) = (tmp_path / "paper" / "trained").glob("*-triangle/adapter")
    trained = adapter.parent.with_name(adapter.parent.name.removesuffix("-triangle")) / "adapter"
    (asked, routers), (config, before) = load_adapter(adapter), load_adapter(trained)
    assert asked.sparse_pattern.streaming == config.sparse_pattern and asked.sparse_pattern.kind == "triangle"
    assert all(torch.equal(a, b) for a, b in zip(routers.parameters(), before.parameters(), strict=True))
    pattern_exchange.main([str(trained), str(tmp_path / "copy")])
    assert load_adapter(tmp_path / "copy")[0] == asked
    with pytest.raises(ValueError, match="only a streaming pattern becomes a triangle"):
        pattern_exchange.exchange_pattern(adapter, tmp_path / "other")


def test_all_trainings_make_recipes(tiny, tmp_path):
    lab = paper_lab.Lab(
        base=paper_study.open_base(), scale=TINY, recipes=tmp_path / "recipes", output=tmp_path, corpora=None,
        deadline=float("inf"),
    )  # fmt: skip
    wanted = {entry.training for claim in CLAIMS.values() for entry in claim.entries if entry.training}
    for training in wanted:
        if training.source != "retrieval_heads":
            target = 0.7 if isinstance(training.target, str) else training.target
            assert lab.build_recipe(dataclasses.replace(training, target=target), 0).steps == 2


def test_temperatures_are_compared_with_all_of_the_noise(tiny, tmp_path):
    with (tmp_path / "recipes" / "tiny.toml").open("a", encoding="utf-8") as stream:
        stream.write("[temperature]\nnoise_end = 0.1\n")
    lab = paper_lab.Lab(
        base=None, scale=TINY, recipes=tmp_path / "recipes", output=tmp_path, corpora=None, deadline=0.0
    )  # fmt: skip
    plain = lab.build_recipe(Training(), 0).temperature
    compared = [lab.build_recipe(e.training, 0).temperature for e in CLAIMS["temperature"].entries if e.training]
    assert plain.noise_end == 0.1 and all(one.noise_end == 1.0 for one in compared)
    assert [one.end for one in compared] == [0.4, 1.5, 1.0]


def test_pictures_of_what_there_is(tmp_path):
    entries = {
        "static_msr": {f"heads_{t}": t for t in (0.1, 0.5)},
        "quality_esr": {"routed_0.5": 0.5, "static_0.5": 0.5},
        "target_sweep": {f"target_{t}": t for t in (0.4, 0.7)},
    }
    check = {"check": "above", "value": 0.2, "low": 0.1, "high": 0.3, "at_least": 0.0, "at_most": None}
    summary = {"rows": [], "checks": [check | {"claim": "width", "holds": True, "refuted": False, "counts": True}]}

    def save(name, metrics):
        record = build_record(
            "c", config={}, model="m", data={}, device="cpu", seed=0, n=1, metrics=metrics, seconds=1.0, bytes=None
        )
        write_record(tmp_path / f"paper_smollm2{name}.json", record)

    save("", summary)
    for claim, msr in entries.items():
        answers = {"dense": make_answers(0.9)} | {name: make_answers(0.8, msr=(t, t), n=20) for name, t in msr.items()}
        rows = [row | {"esr_prefill": row["msr"] / 2} for row in paper_study.make_rows(answers)]
        save(f"_{claim}", {"rows": rows})
    assert paper_pictures.main(["--results", str(tmp_path), "--figures", str(tmp_path)]) == 0
    drawn = (tmp_path / "paper_smollm2.svg").read_text()
    assert all(title in drawn for title in ("Static sparsity", "Quality against sparsity", "Target sweep"))
    assert (tmp_path / "paper_smollm2_checks.svg").exists()


def test_list_and_options(capsys):
    assert paper_study.main(["--list"]) == 0
    assert all(name in capsys.readouterr().out for name in ("methods",))
    with pytest.raises(SystemExit):
        paper_study.parse_options([])
    assert isinstance(paper_study.parse_options(["decode"]), argparse.Namespace)
    assert paper_study.parse_options(["training_free", "--without"]).without == []
