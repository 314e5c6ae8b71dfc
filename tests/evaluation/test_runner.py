import dataclasses
import json

import pytest
import torch
from word_suite import TokenTokenizer, WordSuite

from elastic_attention import ElasticAttentionError, attach
from elastic_attention.evaluation import runner
from elastic_attention.evaluation.answer_log import read_lines
from elastic_attention.evaluation.asking import ask_samples, cut_at_stop
from elastic_attention.evaluation.plan import EvalPlan, Shard, check_lengths, list_batches, parse_method
from elastic_attention.evaluation.readers import open_reader, read_routes, write_routes
from elastic_attention.evaluation.suite_summary import summarize_run
from tiny_models import elastic_config, make_model

METHODS = tuple(map(parse_method, ("dense", "routed", "routed/full", "random@0.5")))
PLAN = EvalPlan(tasks=WordSuite.tasks, lengths=(80, 120), samples=None, methods=METHODS, batch_tokens=360)
TOKENIZER = TokenTokenizer()


class Killed(Exception):
    """The process is killed."""


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A tiny model and a folder with routers for it."""
    model = make_model()
    torch.manual_seed(1)
    handle = attach(model, elastic_config(model))
    folder = tmp_path_factory.mktemp("routers")
    handle.save_pretrained(folder)
    handle.detach()
    return model, str(folder)


def run(subject, output, *, plan=PLAN, suite=None, **options):
    model, routers = subject
    return runner.run_plan(
        plan, suite or WordSuite(), model, TOKENIZER, output, identity={"model": "tiny"}, routers=routers, **options
    )


def without_seconds(lines):
    return [dataclasses.replace(line, seconds=0, prefill_seconds=0) for line in lines]


@pytest.fixture(scope="module")
def whole(subject, tmp_path_factory):
    return run(subject, tmp_path_factory.mktemp("whole"))


def test_every_method_answers_every_sample(whole):
    assert len({line.key for line in whole}) == len(whole) == len(METHODS) * 2 * 3 * 5
    prompts = {line.key[1:]: line.prompt_sha256 for line in whole}
    assert all(prompts[line.key[1:]] == line.prompt_sha256 for line in whole)
    assert len(set(prompts.values())) == 2 * (3 * 5 - 1) + 1
    by = {
        label: [x for x in whole if x.method == label and not x.skipped] for label in ("dense", "routed", "routed-full")
    }
    assert {x.msr for x in by["dense"]} == {0.0} and all(x.kv_bytes == x.kv_bytes_dense for x in by["dense"])
    assert [x.msr for x in by["routed"]] == [x.msr for x in by["routed-full"]] and any(x.msr for x in by["routed"])
    sparse, full = by["routed"], by["routed-full"]
    assert [x.esr_prefill for x in sparse] == [x.esr_prefill for x in full]
    assert all(not x.esr_decode for x in full) and any(x.esr_decode for x in sparse)
    assert all(x.kv_bytes == x.kv_bytes_dense for x in full) and any(x.kv_bytes < x.kv_bytes_dense for x in sparse)
    spoken = [[x.kv_bytes_dense for x in by[label] if x.task == "plain"] for label in ("dense", "routed")]
    assert spoken[0] == spoken[1]
    assert {x.answer for x in sparse} != {x.answer for x in full}


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_a_killed_run_goes_on_and_asks_nothing_twice(subject, whole, tmp_path, monkeypatch, steps):
    asked, original = [], runner.ask_samples
    monkeypatch.setattr(
        runner,
        "ask_samples",
        lambda reader, tokenizer, samples: (
            asked.extend(s.prompt for s in samples) or original(reader, tokenizer, samples)
        ),
    )

    def kill(label, left=[steps]):  # noqa: B006 - counts the calls
        left[0] -= 1
        if not left[0]:
            raise Killed

    with pytest.raises(Killed):
        run(subject, tmp_path, advance=kill)
    (path,) = tmp_path.glob("answers-*.jsonl")
    path.write_text(path.read_text() + '{"method": "routed", "ta')  # killed in the middle of a line
    assert without_seconds(run(subject, tmp_path)) == without_seconds(whole)
    assert len(asked) == sum(not line.skipped for line in whole)
    suite = WordSuite()
    assert without_seconds(run(subject, tmp_path, suite=suite)) == without_seconds(whole)
    assert suite.built == [] and len(asked) == sum(not line.skipped for line in whole)


def test_shards_make_one_run(subject, whole, tmp_path):
    shards = [Shard(index=i, count=3) for i in range(3)]
    assert run(subject, tmp_path, shard=shards[1]) is None
    assert run(subject, tmp_path, shard=shards[0]) is None
    assert without_seconds(run(subject, tmp_path, shard=shards[2])) == without_seconds(whole)
    parts = [read_lines(path) for path in tmp_path.glob("answers-*.jsonl")]
    assert len(parts) == 3 and sum(map(len, parts)) == len(whole)


def test_samples_made_by_other_processes_are_the_same(subject, whole, tmp_path):
    assert without_seconds(run(subject, tmp_path, workers=2)) == without_seconds(whole)


def test_a_folder_belongs_to_one_run(subject, tmp_path):
    run(subject, tmp_path, plan=dataclasses.replace(PLAN, samples=1, tasks=("plain",)))
    with pytest.raises(ElasticAttentionError, match=r"another run \(other plan\)"):
        run(subject, tmp_path)
    with pytest.raises(ElasticAttentionError, match=r"suite_data"):
        run(subject, tmp_path, plan=dataclasses.replace(PLAN, samples=1, tasks=("plain",)), suite=WordSuite("salt"))


def test_a_line_of_another_version_is_named(subject, tmp_path):
    plan = dataclasses.replace(PLAN, samples=1, tasks=("plain",))
    run(subject, tmp_path, plan=plan)
    (path,) = tmp_path.glob("answers-*.jsonl")
    for line in ('{"odd": 1}', "no JSON", "[]"):
        path.write_text(f"{line}\n")
        with pytest.raises(ElasticAttentionError, match=r"answers-0-of-1.jsonl, line 1"):
            run(subject, tmp_path, plan=plan)


def test_the_model_is_itself_again(subject, whole):
    assert subject[0].config._attn_implementation == "sdpa" and "generate" not in vars(subject[0])


def test_a_batch_answers_like_its_rows(subject, whole, tmp_path):
    one_by_one = run(subject, tmp_path, plan=dataclasses.replace(PLAN, batch_tokens=1))
    assert [(x.answer, x.score, x.msr) for x in one_by_one] == [(x.answer, x.score, x.msr) for x in whole]


def test_dense_is_the_base_model(subject, whole):
    model, _ = subject
    lines = [line for line in whole if line.method == "dense" and line.task == "plain"]
    samples = {
        (s.length, s.index): s
        for length in PLAN.lengths
        for s in WordSuite().build("plain", range(5), length=length, seed=1, tokenizer=None)
    }
    for line in lines:
        ids = torch.tensor([samples[line.length, line.index].prompt_ids])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert TOKENIZER.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == line.answer


def test_given_answers_score_as_greedy_decoding_would(subject):
    """Fed with its own greedy answer, the model says it at every place."""
    model, routers = subject
    (sample,) = WordSuite().build("plain", [0], length=120, seed=1, tokenizer=None)
    for method in METHODS[:3]:
        with open_reader(method, model, routers=routers) as reader:
            (spoken,) = ask_samples(reader, TOKENIZER, [sample])
            target = dataclasses.replace(sample, target_ids=spoken.answer.token_ids)
            other = dataclasses.replace(target, index=1, prompt_ids=sample.prompt_ids[9:], target_ids=(5, 6, 7))
            followed = ask_samples(reader, TOKENIZER, [target, other])
        assert followed[0].answer.token_ids == spoken.answer.token_ids
        assert followed[0].books["msr"] == spoken.books["msr"]
        assert followed[0].books["esr_prefill"] == spoken.books["esr_prefill"]


def test_answers_without_end_and_empty_ones_are_counted(subject, tmp_path, monkeypatch):
    model, _ = subject
    plan = dataclasses.replace(PLAN, tasks=("plain", "broken"), lengths=(80,), methods=METHODS[:1])
    lines = run(subject, tmp_path / "endless", plan=plan)
    counts = summarize_run(plan, WordSuite(), lines)["counts"]
    assert counts == {"asked": 9, "skipped": 1, "cut": 9, "empty": 0}
    monkeypatch.setattr(model.generation_config, "eos_token_id", list(range(97)))
    ended = run(subject, tmp_path / "ended", plan=plan)
    assert {x.new_tokens for x in ended if not x.skipped} == {1} and not any(x.is_cut for x in ended)
    monkeypatch.setattr(TOKENIZER, "decode", lambda ids, **_: " \n", raising=False)
    silent = run(subject, tmp_path / "silent", plan=plan)
    counts = summarize_run(plan, WordSuite(), silent)["counts"]
    assert counts == {"asked": 9, "skipped": 1, "cut": 0, "empty": 9}


def test_an_answer_that_said_its_stop_text_is_not_cut(subject):
    model, routers = subject
    (sample,) = WordSuite().build("plain", [0], length=120, seed=1, tokenizer=None)
    with open_reader(parse_method("dense"), model, routers=routers) as reader:
        (endless,) = ask_samples(reader, TOKENIZER, [sample])
        (stopped,) = ask_samples(reader, TOKENIZER, [dataclasses.replace(sample, stop=(" ",))])
    assert endless.is_cut and not stopped.is_cut
    assert stopped.answer.text == endless.answer.text.split(" ")[0]


def test_nothing_is_generated_behind_a_stop_text(subject, monkeypatch):
    """Rows of a batch stop each for itself; the batch is as long as its longest row, for every method."""
    model, routers = subject
    first, second = WordSuite().build("plain", [0, 1], length=120, seed=1, tokenizer=None)
    with open_reader(parse_method("dense"), model, routers=routers) as reader:
        endless = ask_samples(reader, TOKENIZER, [first, second])
    said = [str(reply.answer.token_ids[2]) for reply in endless]
    stopping = [dataclasses.replace(first, stop=(said[0],)), second]
    for method in METHODS[:2]:
        with open_reader(method, model, routers=routers) as reader:
            replies = ask_samples(reader, TOKENIZER, stopping)
            alone = ask_samples(reader, TOKENIZER, stopping[:1])[0]
        if method.label == "dense":
            assert [len(reply.answer.token_ids) for reply in replies] == [3, 6]
            assert replies[0].answer.token_ids == endless[0].answer.token_ids[:3] == alone.answer.token_ids
            assert replies[0].answer.text == endless[0].answer.text.split(said[0])[0] and not replies[0].is_cut
            per_token = replies[0].books["kv_bytes"] / (len(first.prompt_ids) + 5)
            assert alone.books["kv_bytes"] == per_token * (len(first.prompt_ids) + 2)
            dense = [reply.books["kv_bytes_dense"] for reply in replies]
        assert [reply.books["kv_bytes_dense"] for reply in replies] == dense, "methods count the same columns"
    opening = str(endless[0].answer.token_ids[0])
    with open_reader(METHODS[0], model, routers=routers) as reader:
        (silent,) = ask_samples(reader, TOKENIZER, [dataclasses.replace(first, stop=(opening,))])
        (reply,) = ask_samples(reader, TOKENIZER, [dataclasses.replace(first, stop=(opening,), min_new_tokens=1)])
    assert silent.answer.text == "" and len(silent.answer.token_ids) == 1 and not silent.is_cut
    assert reply.answer.text and str(reply.answer.token_ids[0]) != opening, "an answer begins with no stop text"


def test_samples_past_the_limit_of_the_model_are_named(subject, tmp_path):
    plan = dataclasses.replace(PLAN, tasks=("plain",), lengths=(120,), methods=METHODS[:1])
    (shortest, *others) = sorted(
        len(s.prompt_ids) for s in WordSuite().build("plain", range(5), length=120, seed=1, tokenizer=None)
    )
    lines = run(subject, tmp_path, plan=plan, context=shortest + 6)
    assert sum(not line.skipped for line in lines) == 1 + others.count(shortest)
    assert f"the model takes {shortest + 6}; ask for a smaller length" in next(x.skipped for x in lines if x.skipped)
    assert summarize_run(plan, WordSuite(), lines)["counts"]["skipped"] == 4 - others.count(shortest)


def test_half_a_batch_is_asked_again_and_stands_once(subject, whole, tmp_path):
    plan = dataclasses.replace(PLAN, tasks=("plain",), lengths=(120,), methods=METHODS[:1])
    run(subject, tmp_path, plan=plan)
    (path,) = tmp_path.glob("answers-*.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
    lines = run(subject, tmp_path, plan=plan)
    run(subject, tmp_path, plan=plan)
    assert len(read_lines(path)) == len(lines) == 5


def test_summary(whole):
    metrics = summarize_run(PLAN, WordSuite(), whole)
    json.dumps(metrics)
    assert [row["label"] for row in metrics["rows"]] == ["dense", "routed", "routed-full", "random@0.500"]
    dense, routed = metrics["rows"][:2]
    own = [x for x in whole if x.method == "routed" and x.task != "broken"]
    cells = {(x.task, x.length) for x in own}
    mean = sum(sum(x.score for x in own if (x.task, x.length) == c) / 5 for c in cells) / len(cells)
    assert routed["score"] == pytest.approx(mean) and routed["score_low"] <= mean <= routed["score_high"]
    assert routed["weighted_score"] == pytest.approx(sum(x.score for x in own) / len(own))
    assert dense["relative_score"] == dense["relative_low"] == 1.0
    assert routed["relative_score"] == pytest.approx(routed["score"] / dense["score"])
    assert len(metrics["by_length"]) == 4 * 2 and len(metrics["by_task"]) == 4 * 2 * 3
    marked = {(row["task"], row["substitute"]) for row in metrics["by_task"]}
    assert marked == {("plain", None), ("targets", None), ("broken", WordSuite.substitutes["broken"])}
    assert {(row["group"], row["value"]) for row in metrics["by_group"]} == {
        ("category", "spoken"), ("category", "given"), ("parity", "even"), ("parity", "odd")
    }  # fmt: skip
    good = [c for c in cells if sum(x.score for x in whole if x.method == "dense" and (x.task, x.length) == c) >= 2.5]
    assert sorted((m["task"], m["length"]) for m in metrics["mastered"]) == sorted(good) and 0 < len(good) < len(cells)
    kept = sum(sum(x.score for x in own if (x.task, x.length) == c) / 5 for c in good) / len(good)
    assert metrics["mastered_rows"][1]["score"] == pytest.approx(kept)
    assert set(metrics["head_maps"]) == set(WordSuite.tasks)
    shares = torch.tensor(metrics["head_maps"]["targets"])
    assert shares.shape == (3, 2)
    assert shares.mean().item() == pytest.approx(sum(x.msr for x in own if x.task == "targets") / 10)
    assert metrics["skipped"] == [
        {"task": "broken", "length": n, "index": 3, "reason": "line 4 of words.jsonl has no answer"} for n in (80, 120)
    ]
    alone = summarize_run(dataclasses.replace(PLAN, methods=METHODS[1:2]), WordSuite(), own)
    assert alone["rows"][0]["relative_score"] is None


def test_batches_do_not_depend_on_what_was_asked():
    batches = list(list_batches(PLAN, WordSuite()))
    assert [len(b.indexes) for b in batches if b.length == 80] == [4, 1] * 3
    assert [len(b.indexes) for b in batches if b.length == 120] == [3, 2] * 3


def test_routes_are_those_of_the_method_for_one_batch(subject):
    (sample,) = WordSuite().build("plain", [0], length=120, seed=1, tokenizer=None)
    with open_reader(parse_method("random@1.0"), subject[0], routers=subject[1]) as reader:
        (reply,) = ask_samples(reader, TOKENIZER, [sample])
        assert reply.books["msr"] == 1.0
        with reader.reading([0]):
            assert reader.handle.has_given_routes
        assert not reader.handle.has_given_routes
    with pytest.raises(RuntimeError, match="boom"), open_reader(parse_method("dense"), subject[0], routers=subject[1]):
        raise RuntimeError("boom")
    assert subject[0].config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("text", "label", "decode"),
    [
        ("dense", "dense", "sparse"),
        ("routed/full", "routed-full", "full"),
        ("random@0.7", "random@0.700", "sparse"),
        ("static=/a/b.c/full", "static-full", "full"),
        ("static=/my runs/b", "static", "sparse"),
    ],
)
def test_words_for_methods(text, label, decode):
    method = parse_method(text)
    assert (method.label, method.decode) == (label, decode)
    assert method.folder == (text.partition("=")[2].removesuffix("/full") or None)


@pytest.mark.parametrize("text", ["", "routed@2", "routed@1.2.3", "routed/half", "a b", "static="])
def test_words_that_are_no_methods(text):
    with pytest.raises(ElasticAttentionError, match="routed/full"):
        parse_method(text)


def test_methods_are_checked_before_anything_runs():
    for text, words in (
        ("magic", "magic.*routed"),
        ("static", "static=FOLDER"),
        ("random", "random@0.7"),
        ("nsa", "left out"),
        ("dense=/a", "reads no folder.*static=/a"),
        ("moba@0.5", "no share of sparse heads.*random@0.5"),
    ):
        with pytest.raises(ElasticAttentionError, match=words):
            parse_method(text)
    assert parse_method("moba").decode == "full" and parse_method("moba").label == "moba"


def test_bad_plans_are_named():
    with pytest.raises(ElasticAttentionError, match=r"2,048, 4,096.*1,024"):
        check_lengths((512, 2048, 4096), 1024, "tiny")
    for lengths in ((512, 512), (0,), (512, -1)):
        with pytest.raises(ElasticAttentionError, match="positive numbers of tokens, each once"):
            check_lengths(lengths, 1024, "tiny")
    with pytest.raises(ElasticAttentionError, match="each once"):
        dataclasses.replace(PLAN, methods=METHODS + METHODS[:1])
    for text in ("3/3", "1", "a/b", "/2", "²/4"):
        with pytest.raises(ElasticAttentionError, match=r"shard"):
            Shard.parse(text)


def test_routes_as_text():
    routes = torch.tensor([[True, False], [True, True], [False, False]])
    text = write_routes(routes, (0, 2))
    assert text == "10 -- 00" and read_routes(text) == [[1, 0], [None, None], [0, 0]]


def test_stops():
    assert cut_at_stop("\na\nb", ("\n",)) == ""
    assert cut_at_stop("\na\nb", ("\n",), 1) == "\na"
    assert cut_at_stop("one END two", ("STOP", "END")) == "one "
    assert cut_at_stop("one", ("END",)) == "one"
