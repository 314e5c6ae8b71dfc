"""`elastic-attn eval` from the command line, on the tiny model."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from elastic_attention.evaluation import suite_run
from elastic_attention.models import pretrained

RULER = (
    "--suite",
    "ruler",
    "--tasks",
    "niah_single_1,qa_1",
    "--lengths",
    "1700",
    "--samples",
    "2",
    "--dtype",
    "float32",
)


@pytest.fixture
def evaluate(call, tiny):
    return lambda *arguments: call("eval", *tiny, *arguments)


def test_ruler(evaluate, tmp_path):
    code, out, err = evaluate(*RULER, "--json", "record.json")
    assert code == 0, err
    assert "niah_single_1" in out and "qa_1*" in out and "* qa_1: held-out country facts for SQuAD" in out
    assert "12 answers: " in out and "0 samples could not be asked" in out
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["command"] == "eval" and record["n"] == 12 and record["data"]["suite"] == "ruler"
    assert [row["label"] for row in record["metrics"]["rows"]] == ["dense", "routed", "routed-full"]
    assert record["config"]["plan"]["tasks"] == ["niah_single_1", "qa_1"]
    assert record["config"]["routing"]["sha256"] and str(tmp_path.parent) not in json.dumps(record)
    # Again: nothing is asked, and the record is the same.
    assert evaluate(*RULER, "--json", "again.json")[0] == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert [again[key] for key in ("metrics", "config", "seconds", "n")] == [
        record[key] for key in ("metrics", "config", "seconds", "n")
    ]


def test_parts_of_a_run(evaluate, tmp_path):
    code, out, _ = evaluate(*RULER, "--methods", "dense", "--shard", "1/2", "--json", "record.json")
    assert code == 0 and "Part 1 of 2 is done" in out and not (tmp_path / "record.json").exists()
    code, out, _ = evaluate(*RULER, "--methods", "dense", "--shard", "0/2", "--json", "record.json")
    assert code == 0 and json.loads((tmp_path / "record.json").read_text())["n"] == 4


def test_mixture_and_settings_of_a_suite(evaluate, tmp_path):
    code, _, err = evaluate(
        "--tasks", "needle,prose", "--lengths", "1800", "--samples", "1", "--option", "split=heldout_format",
        "--methods", "dense,all_sparse,random@0.5", "--dtype", "float32", "--json", "record.json",
    )  # fmt: skip
    assert code == 0, err
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["data"]["split"] == "heldout_format"
    assert [row["msr"] for row in record["metrics"]["rows"]][:2] == [0.0, 1.0]


def test_problems_from_a_file(evaluate, tmp_path):
    rows = [{"question": "What is 3 and 3?", "answer": "#### 6"}, {"question": "And?", "answer": "nothing"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("--suite", "gsm8k", "--data", tmp_path, "--option", "max_new_tokens=8", "--lengths", "400")
    code, out, err = evaluate(*arguments, "--methods", "dense,routed", "--dtype", "float32", "--json", "record.json")
    assert code == 0, err
    assert "2 answers: 2 cut at their longest" in out and "1 samples could not be asked" in out
    assert "gsm8k 400 #1: test.jsonl, line 2: 'answer' ends in no '#### NUMBER'" in out
    data = json.loads((tmp_path / "record.json").read_text())["data"]
    assert (data["rule"], data["shots"], data["max_new_tokens"]) == ("marked", 0, 8) and data["files"]["test.jsonl"]


def test_a_run_goes_on_past_a_faulty_question(evaluate, tmp_path):
    rows = [{"question": "Who?", "answer": answer, "context": [["T", ["a b c."]]]} for answer in (5, "", "she")]
    (tmp_path / "hotpotqa.json").write_text(json.dumps(rows))
    arguments = ("--suite", "ruler", "--tasks", "qa_2", "--data", tmp_path, "--lengths", "600", "--methods", "dense")
    code, out, err = evaluate(*arguments)
    assert code == 0, err
    assert "1 answers: " in out and "2 samples could not be asked" in out
    assert "qa_2 600 #0: hotpotqa.json, record 1: 'answer' is int; repair or remove it." in out
    assert "qa_2 600 #1: hotpotqa.json, record 2: the answer '' holds no letter or digit" in out


def test_nothing_could_be_asked(evaluate):
    code, out, _ = evaluate(*RULER[:4], "--lengths", "300", "--samples", "1", "--methods", "dense")
    assert code == 1 and "2 samples could not be asked" in out
    assert "--lengths 300 is too short for niah_single_1; ask for " in out
    assert "mean" not in out, "a table without a row says nothing"


def test_a_model_without_chat_template(evaluate, monkeypatch):
    monkeypatch.setattr(suite_run, "has_chat_template", lambda tokenizer: False)
    assert "no chat template" in evaluate(*RULER, "--methods", "dense")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--suite", "rulers"), ("rulers", "longbench")),
        (("--tasks", "niah_9"), ("niah_9", "needle")),
        (("--lengths", "1024,4096,9999"), ("4,096, 9,999", "2,048")),
        (("--lengths", "many"), ("many", "whole numbers")),
        (("--lengths", "0"), ("--lengths 0", "positive")),
        (("--lengths", "1024,1024"), ("1,024, 1,024", "each once")),
        (
            ("--tasks", "needle,prose", "--samples", "1", "--lengths", "128,1024"),
            ("--lengths 128: too short", "512 or more for needle, prose; or leave these tasks out"),
        ),
        (
            ("--suite", "almanac", "--tasks", "bridge,overviews,classes", "--samples", "1", "--lengths", "128,530"),
            ("--lengths 128, 530", "528 or more for classes; 544 or more for bridge; 1,024 or more for overviews"),
        ),
        (("--methods", "dense,magic@x"), ("magic@x", "routed/full")),
        (("--methods", "dense,dense"), ("each once",)),
        (("--option", "prefix"), ("KEY=VALUE",)),
        (("--option", "prefix=user"), ("prefix", "it has split")),
        (("--option", "split=7"), ("split='7'", "heldout")),
        (("--suite", "ruler", "--option", "corpora=2024"), ("2024", "corpora")),
        (("--suite", "gsm8k", "--data", ".", "--option", "shots=x"), ("shots='x'", "number")),
        (("--suite", "gsm8k", "--data", ".", "--option", f"shots={'9' * 5000}"), ("must be a number",)),
        ((*RULER, "--data", "."), (". holds none of", "squad.json", "--data")),
        (("--suite", "ruler", "--data", "nowhere"), ("nowhere", "squad.json")),
        (("--suite", "longbench", "--data", "nowhere"), ("nowhere",)),
        (("--suite", "gsm8k"), ("test.jsonl", "openai/grade-school-math", "####")),
        (("--suite", "aime24", "--data", "nowhere"), ("aime24.jsonl", "problem")),
        (("--shard", "2/2"), ("2/2",)),
    ],
)
def test_bad_input_is_named(evaluate, arguments, words):
    code, _, err = evaluate(*arguments)
    assert code == 2 and all(word in err for word in words), err
    assert len(err.strip().splitlines()) == 1


def test_an_adapter_that_was_trained_again_is_another_run(evaluate, tmp_path, tiny):
    routers = tmp_path / "again"
    shutil.copytree(tiny[tiny.index("--routers") + 1], routers)
    arguments = (*RULER, "--methods", f"fa_ssa={routers}", "--json", "record.json")
    assert evaluate(*arguments)[0] == 0
    plan = json.loads((tmp_path / "record.json").read_text())["config"]["plan"]
    assert plan["methods"][0]["folder"] == f"{tmp_path.name}/again", "no whole path in a record"
    file = routers / "elastic_routers.safetensors"
    tensors = load_file(file)
    save_file({name: values * 2 for name, values in tensors.items()}, file, metadata={"format": "pt"})
    code, _, err = evaluate(*arguments)
    assert code == 2 and "other adapters" in err


def test_a_model_that_was_trained_further_is_another_run(call, tmp_path, tiny):
    model = tmp_path / "model"
    shutil.copytree(tiny[1], model)
    arguments = ("eval", "--model", model, *tiny[2:], *RULER, "--methods", "dense")
    assert call(*arguments)[0] == 0
    file = model / "model.safetensors"
    save_file({name: values * 1.01 for name, values in load_file(file).items()}, file, metadata={"format": "pt"})
    code, _, err = call(*arguments)
    assert code == 2 and "other weights" in err


def test_routers_that_ship_are_known_by_checksum(call, tmp_path, tiny, monkeypatch):
    """Without --routers, too: another release with other routers in it is another run."""
    shipped = tmp_path / "shipped"
    shutil.copytree(tiny[tiny.index("--routers") + 1], shipped / "tiny")
    monkeypatch.setattr(pretrained, "_FOLDER", shipped)
    arguments = ("eval", "--model", tiny[1], "--device", "cpu", *RULER, "--methods", "routed", "--json", "record.json")
    assert call(*arguments)[0] == 0
    routing = json.loads((tmp_path / "record.json").read_text())["config"]["routing"]
    assert routing["routers"] is None and len(routing["sha256"]) == 64
    file = shipped / "tiny" / "elastic_routers.safetensors"
    save_file({name: values * 2 for name, values in load_file(file).items()}, file, metadata={"format": "pt"})
    code, _, err = call(*arguments)
    assert code == 2 and "other routing" in err


def test_methods_without_routers_need_none(call, tiny):
    arguments = ("eval", "--model", tiny[1], "--device", "cpu", *RULER)
    assert call(*arguments, "--methods", "dense,all_sparse")[0] == 0
    code, _, err = call(*arguments, "--methods", "routed", "--output", "other")
    assert code == 2 and "No routers ship" in err


def test_few_samples_have_a_dash_for_an_interval(evaluate):
    code, out, err = evaluate(*RULER, "--methods", "dense,routed")
    assert code == 0, err
    lines = [line.replace("│", " ").split() for line in out.splitlines()]
    assert ["95%", "–", "–"] in lines and not any("?–?" in line for line in lines)


def test_a_folder_of_another_method_leaves_the_output_free(evaluate, tmp_path, tiny):
    routers = tiny[tiny.index("--routers") + 1]
    code, _, err = evaluate(*RULER, "--methods", f"dense,static={routers}", "--output", "out")
    assert code == 2 and "is no mask of 'static'" in err and not (tmp_path / "out").exists()


def test_another_run_in_the_folder(evaluate):
    assert evaluate(*RULER, "--methods", "dense")[0] == 0
    code, _, err = evaluate(*RULER, "--methods", "dense", "--seed", "2")
    assert code == 2 and "another run" in err


@pytest.mark.parametrize("text", ["{bad", "[]", "\udcff"])
def test_a_folder_whose_run_cannot_be_read(evaluate, tmp_path, text):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/run.json").write_bytes(text.encode(errors="surrogateescape"))
    code, _, err = evaluate(*RULER, "--methods", "dense", "--output", "other")
    assert code == 2 and "run.json is no file of an evaluation" in err
