import dataclasses
import logging
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elastic_attention import DataError, RecipeError
from elastic_attention.training.data.encoding import Encoder
from elastic_attention.training.data.record import check_record
from elastic_attention.training.data.steps import PackedSteps, open_corpus, read_heldout, stream_steps
from elastic_attention.training.recipe import DataConfig, PackConfig
from made_rows import make_corpus, make_row, make_rows, make_tokenizer, write_rows

ROWS = make_rows(40)
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)


def make_config(folder, rows=ROWS, *, workers=0, loss_on="response", **packs):
    path = write_rows(folder / "rows.jsonl", rows)
    defaults = {"files": (str(path),), "cache": str(folder / "cache"), "tokens": 600, "per_step": 4, "lookahead": 5}
    return DataConfig(workers=workers, loss_on=loss_on, packs=PackConfig(**(defaults | packs)))


def make_steps(folder, *, seed=0, steps=9, rank=0, world_size=1, categories=None, **settings):
    config = make_config(folder, **settings)
    return PackedSteps(
        config, make_tokenizer(), seed=seed, steps=steps, rank=rank, world_size=world_size, categories=categories
    )


def fields_of(batch):
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def same(one, other):
    return [list(map(fields_of, step)) for step in one] == [list(map(fields_of, step)) for step in other]


def test_an_epoch_holds_every_token_once(tmp_path):
    data, encoder = make_steps(tmp_path, steps=100), Encoder(make_tokenizer())
    packs = len(data.plan.epoch(0)[1]) - 1
    stream = [data.corpus.sample(int(i), 1.0) for p in range(packs) for i in data.plan.pack(p)]
    wanted = [encoder.encode(check_record(row, "f:1"), "f:1").tokens.tolist() for row in ROWS]
    assert sorted((s.sample_id, s.tokens.tolist()) for s in stream) == list(enumerate(wanted))


def test_steps_are_consecutive_stretches_of_the_packs(tmp_path):
    data = make_steps(tmp_path)
    for step in range(len(data)):
        wanted = [data.plan.pack(4 * step + i).tolist() for i in range(4)]
        assert sorted(pack.tolist() for pack in data.packs_of_step(step)) == sorted(wanted)
        assert sorted(b.sample_ids.tolist() for b in data[step]) == sorted(wanted)


@SHARED
@given(start=st.integers(0, 25), seed=st.integers(0, 3))
def test_resume_at_any_step_equals_the_uninterrupted_stream(tmp_path, start, seed):
    whole = list(stream_steps(make_steps(tmp_path, seed=seed, steps=28), 0))
    assert same(stream_steps(make_steps(tmp_path, seed=seed, steps=28), start), whole[start:])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(tmp_path, workers):
    once = list(stream_steps(make_steps(tmp_path), 0))
    assert same(stream_steps(make_steps(tmp_path, workers=workers), 0), once)
    assert same(stream_steps(make_steps(tmp_path, workers=workers), 4), once[4:])


def test_packs_of_workers_hold_no_files_open(tmp_path):
    pack = make_steps(tmp_path)[0][0]
    sent = ForkingPickler.dumps(pack)
    assert pack.input_ids.numpy().tobytes() in bytes(sent)  # not a handle of shared memory, of which there are few
    assert fields_of(pickle.loads(sent)) == fields_of(pack)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_one_global_batch(tmp_path, world_size):
    alone = make_steps(tmp_path)
    ranks = [make_steps(tmp_path, rank=r, world_size=world_size) for r in range(world_size)]
    for step in range(len(alone)):
        parts = [[fields_of(b) for b in data[step]] for data in ranks]
        assert {len(part) for part in parts} == {4 // world_size}
        turns = [batch for turn in zip(*parts, strict=True) for batch in turn]
        assert turns == [fields_of(b) for b in alone[step]]  # weights included: they are of the global batch


def test_weights_are_of_the_whole_step(tmp_path):
    data = make_steps(tmp_path)
    for step in range(3):
        batches = data[step]
        categories = [c for b in batches for c in b.categories]
        weights = torch.cat([b.weights for b in batches])
        expected = [1 / (len(set(categories)) * categories.count(c)) for c in categories]
        torch.testing.assert_close(weights, torch.tensor(expected))


def test_ranks_must_divide_the_packs(tmp_path):
    with pytest.raises(RecipeError, match="per_step=4 does not divide by 3 ranks; use 6"):
        make_steps(tmp_path, world_size=3)


def test_packs_of_like_cost_run_together(tmp_path):
    data = make_steps(tmp_path)
    for step in range(5):
        costs = [int((data.corpus.lengths[pack] ** 2).sum()) for pack in data.packs_of_step(step)]
        assert costs == sorted(costs, reverse=True)


def test_two_files_are_one_corpus(tmp_path):
    first, second = write_rows(tmp_path / "a.jsonl", ROWS[:15]), write_rows(tmp_path / "b.jsonl", ROWS[15:])
    both = make_steps(tmp_path, files=(str(first), str(second)))
    assert same(stream_steps(both, 0), stream_steps(make_steps(tmp_path), 0))


def test_over_long_samples_are_reported(tmp_path, caplog):
    rows = [*ROWS, make_row(90, words=400), make_row(91, words=500, category="single_qa")]
    with pytest.raises(DataError, match=r"rows\.jsonl:41 and 1 more: \d+ tokens do not fit a pack of 600"):
        make_corpus(tmp_path, rows, capacity=600)
    with caplog.at_level(logging.WARNING):
        corpus = make_corpus(tmp_path, rows, capacity=600, over_long="skip")
    assert "2 of 42 samples are longer than a pack and left out (1 code, 1 single_qa)." in caplog.text
    assert corpus.fitting.kept.tolist() == list(range(40))
    report = corpus.report()
    assert report["over_long"] == {"code": 1, "single_qa": 1} and report["over_long_policy"] == "skip"
    assert sum(row["samples"] for row in report["categories"].values()) == 40
    assert sum(row["tokens"] for row in report["categories"].values()) == corpus.lengths[:40].sum()


def test_truncated_samples_keep_everything_but_the_middle(tmp_path):
    row = make_row(1, words=400)
    corpus = make_corpus(tmp_path, [row], capacity=300, over_long="truncate_middle")
    sample, tokenizer = corpus.sample(0, 1.0), make_tokenizer()
    assert len(sample.tokens) == corpus.lengths[0] == 300
    text = {name: tokenizer.decode(sample.tokens[slice(*getattr(sample, name))]) for name in
            ("context", "question", "response")}  # fmt: skip
    assert text["question"] == row["question"] and text["response"] == row["answer"] + "<|end|>"
    head, tail = row["context"][:200], row["context"][-200:]
    assert text["context"].startswith(head) and text["context"].endswith(tail)
    assert text["context"] != row["context"]


def test_unknown_category_is_named(tmp_path):
    make_steps(tmp_path, categories=["code", "single_qa", "few_shot", "more"])
    with pytest.raises(DataError, match=r"rows\.jsonl:3: category 'few_shot' has no interval; add one"):
        make_steps(tmp_path, categories=["code", "single_qa"])


def test_generated_samples_are_a_source_like_any_other(tmp_path):
    config = DataConfig(
        kinds=("needle", "classes"), lengths=(600, 900),
        packs=PackConfig(samples=6, tokens=2000, per_step=2, cache=str(tmp_path)),
    )  # fmt: skip
    data = PackedSteps(config, make_tokenizer(), seed=0, steps=3)
    assert len(data.corpus) == 6 and data.corpus.category_names == ["robust", "sensitive"]
    assert all(500 < n <= 910 for n in data.corpus.lengths)
    assert {task for step in range(3) for batch in data[step] for task in batch.tasks} == {"needle", "classes"}
    heldout = open_corpus(config, make_tokenizer(), seed=0, split="heldout")
    assert heldout.sample(0, 1.0).tokens.tolist() != data.corpus.sample(0, 1.0).tokens.tolist()
    with pytest.raises(RecipeError, match="riddles"):
        PackedSteps(dataclasses.replace(config, kinds=("riddles",)), make_tokenizer(), seed=0, steps=1)


def test_heldout_samples_come_once(tmp_path):
    path = write_rows(tmp_path / "heldout.jsonl", ROWS[:9])
    config = make_config(tmp_path, heldout_files=(str(path),))
    batches = list(read_heldout(config, make_tokenizer(), seed=0))
    assert sorted(i for b in batches for i in b.sample_ids.tolist()) == list(range(9))
    assert sum(b.weights.sum().item() for b in batches) == pytest.approx(1.0)
    with pytest.raises(RecipeError, match="heldout_files is empty"):
        list(read_heldout(make_config(tmp_path), make_tokenizer(), seed=0))


@pytest.mark.parametrize("per_task", [1, 2, 50])
def test_heldout_samples_may_be_limited_by_task(tmp_path, per_task):
    rows = [make_row(i, category="code", metadata={"task": "ab"[i % 3 == 0]}) for i in range(9)]
    config = make_config(tmp_path, heldout_files=(str(write_rows(tmp_path / "heldout.jsonl", rows)),))
    batches = list(read_heldout(config, make_tokenizer(), seed=0, per_task=per_task))
    found = sorted(i for b in batches for i in b.sample_ids.tolist())
    assert found == sorted([i for i in range(9) if i % 3][:per_task] + [0, 3, 6][:per_task])


def test_identity_is_of_the_samples_not_of_their_place(tmp_path):
    one = make_steps(tmp_path).corpus
    (tmp_path / "elsewhere").mkdir()
    assert make_steps(tmp_path / "elsewhere").corpus.identity == one.identity
    assert make_steps(tmp_path, rows=ROWS[:39]).corpus.identity != one.identity
    rows = [*ROWS, make_row(90, words=400)]
    cut, left_out = (make_steps(tmp_path, rows=rows, over_long=p).corpus for p in ("truncate_middle", "skip"))
    assert cut.identity != left_out.identity
