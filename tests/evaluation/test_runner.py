"""The runner: everybody answers the same batches once, whatever kills or shares the run."""

import dataclasses

import pytest
from word_runs import METHODS, PLAN, make_samples, run, without_seconds
from word_suite import EndlessSuite, WordSuite

from elastic_attention import ElasticAttentionError, locks
from elastic_attention.evaluation import run_folder, runner
from elastic_attention.evaluation.answer_log import read_lines
from elastic_attention.evaluation.plan import Shard, list_batches
from elastic_attention.evaluation.runner import collect_lines
from elastic_attention.evaluation.suite_summary import summarize_run


class Killed(Exception):
    """The process is killed."""


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


def test_methods_that_were_asked_different_prompts_are_never_paired(whole):
    batches = list(list_batches(PLAN, WordSuite()))
    done = {line.key: line for line in whole}
    assert collect_lines(PLAN, batches, done) == list(whole)
    other = next(line for line in whole if line.method == "routed" and not line.skipped)
    done[other.key] = dataclasses.replace(other, prompt_sha256="0" * 16)
    with pytest.raises(ElasticAttentionError, match=f"sample {other.index}: .* was asked another prompt than"):
        collect_lines(PLAN, batches, done)


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
    left = path.read_bytes()
    assert runner.find_lines(PLAN, WordSuite(), tmp_path) is None and path.read_bytes() == left  # readers only read
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


def test_answers_of_nobody_are_refused(subject, tmp_path):
    plan = dataclasses.replace(PLAN, samples=1, tasks=("plain",))
    run(subject, tmp_path, plan=plan)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ElasticAttentionError, match="holds answers, but no run.json"):
        run(subject, tmp_path, plan=plan)
    for path in tmp_path.glob("answers-*"):
        path.write_text("")
    assert run(subject, tmp_path, plan=plan)


def test_a_folder_belongs_to_one_run(subject, tmp_path):
    plan = dataclasses.replace(PLAN, samples=2, tasks=("plain",))
    run(subject, tmp_path, plan=plan)
    for other, words in (
        (dataclasses.replace(plan, samples=3), r"another run \(other plan.samples: 2 there, 3 now\); choose"),
        (dataclasses.replace(plan, samples=None), r"samples: 2 there, none now\)"),
        (
            dataclasses.replace(plan, lengths=(80,), seed=2),
            r"plan.lengths: \[80, 120\] there, \[80\] now; plan.seed: 1 ",
        ),
        (
            dataclasses.replace(plan, methods=METHODS[:1]),
            r"routed sparse, routed full, random sparse 0.5\] there, \[dense",
        ),
    ):
        with pytest.raises(ElasticAttentionError, match=words):
            run(subject, tmp_path, plan=other)
    with pytest.raises(ElasticAttentionError, match=r"\(other suite_data.salt: empty there, salt now\)"):
        run(subject, tmp_path, plan=plan, suite=WordSuite("salt"))


def test_a_part_is_filled_by_one_process(subject, whole, tmp_path, monkeypatch):
    """Another run of the same part is refused while the first is at work, and nothing of the first is lost."""
    monkeypatch.setattr(locks, "_LOCK_SECONDS", 0.05)
    refused = []

    def start_another(label):
        if len(refused) < 2:
            with pytest.raises(ElasticAttentionError, match="Another process is answering part 0 of 1.*--shard 0/2"):
                run((None, None), tmp_path)
            refused.append(label)

    assert without_seconds(run(subject, tmp_path, advance=start_another)) == without_seconds(whole)
    assert len(refused) == 2 and len(read_lines(tmp_path / "answers-0-of-1.jsonl")) == len(whole)
    with run_folder.hold_part(tmp_path, Shard(index=1, count=2)), run_folder.hold_part(tmp_path, Shard(count=2)):
        pass  # other parts are other processes' work


@pytest.mark.parametrize("place", ["a_file", "a_file/below"])
def test_an_output_that_is_a_file_is_named(subject, tmp_path, place):
    (tmp_path / "a_file").write_text("mine")
    with pytest.raises(ElasticAttentionError, match="a_file.*a file in the way. Name another folder as --output"):
        run(subject, tmp_path / place)


def test_a_plan_without_end_asks_nothing(subject, tmp_path):
    suite = EndlessSuite()
    with pytest.raises(ElasticAttentionError, match="--samples 99,999,999,999"):
        run(subject, tmp_path / "out", plan=dataclasses.replace(PLAN, samples=99_999_999_999), suite=suite)
    assert suite.built == [] and not (tmp_path / "out").exists()


def test_half_a_batch_is_asked_again_and_stands_once(subject, whole, tmp_path):
    plan = dataclasses.replace(PLAN, tasks=("plain",), lengths=(120,), methods=METHODS[:1])
    run(subject, tmp_path, plan=plan)
    (path,) = tmp_path.glob("answers-*.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
    lines = run(subject, tmp_path, plan=plan)
    run(subject, tmp_path, plan=plan)
    assert len(read_lines(path)) == len(lines) == 5


def test_the_model_is_itself_again(subject, whole):
    assert subject[0].config._attn_implementation == "sdpa" and "generate" not in vars(subject[0])


def test_a_batch_answers_like_its_rows(subject, whole, tmp_path):
    one_by_one = run(subject, tmp_path, plan=dataclasses.replace(PLAN, batch_tokens=1))
    assert [(x.answer, x.score, x.msr) for x in one_by_one] == [(x.answer, x.score, x.msr) for x in whole]


def test_batches_do_not_depend_on_what_was_asked():
    batches = list(list_batches(PLAN, WordSuite()))
    assert [len(b.indexes) for b in batches if b.length == 80] == [2, 3] * 3
    assert [len(b.indexes) for b in batches if b.length == 120] == [2, 3] * 3


def test_samples_past_the_limit_of_the_model_are_named(subject, tmp_path):
    plan = dataclasses.replace(PLAN, tasks=("plain",), lengths=(120,), methods=METHODS[:1])
    (shortest, *others) = sorted(len(s.prompt_ids) for s in make_samples(range(5)))
    lines = run(subject, tmp_path, plan=plan, context=shortest + 6)
    assert sum(not line.skipped for line in lines) == 1 + others.count(shortest)
    assert f"the model takes {shortest + 6}; ask for a smaller length" in next(x.skipped for x in lines if x.skipped)
    assert summarize_run(plan, WordSuite(), lines)["counts"]["skipped"] == 4 - others.count(shortest)
