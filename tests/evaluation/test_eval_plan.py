"""What a plan takes and what it refuses."""

import dataclasses
import itertools

import pytest
from word_runs import METHODS, PLAN
from word_suite import EndlessSuite, WordSuite

from elastic_attention import ElasticAttentionError
from elastic_attention.evaluation import plan
from elastic_attention.evaluation.plan import (
    Shard,
    check_lengths,
    count_batches,
    count_steps,
    list_batches,
    parse_method,
)


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


@pytest.mark.parametrize("text", ["", "routed@x", "routed/half", "a b", "static="])
def test_words_that_are_no_methods(text):
    with pytest.raises(ElasticAttentionError, match="routed/full"):
        parse_method(text)


@pytest.mark.parametrize("share", ["1.5", "2", "1.2.3", "."])
def test_a_share_is_from_0_to_1(share):
    with pytest.raises(ElasticAttentionError, match=rf"from 0 to 1, not {share}; write random@0.7"):
        parse_method(f"random@{share}")


@pytest.mark.parametrize("text", ["dense/full", "moba/full", "fa_xa=runs/xa/full"])
def test_nobody_is_asked_twice_who_reads_all_keys_anyway(text):
    with pytest.raises(ElasticAttentionError, match=f"{text}.*reads all keys while decoding anyway; leave /full out"):
        parse_method(text)


def test_a_folder_may_be_named_full(tmp_path, monkeypatch):
    """Where /full may be a folder or a way of decoding, nobody guesses; the message says how to write either."""
    (tmp_path / "runs/full").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ElasticAttentionError, match="folder runs/full. Write routed=runs/full/ .* routed=runs//full "):
        parse_method("routed=runs/full")
    for text, folder, decode in (
        ("routed=runs/full/", "runs/full", "sparse"),
        ("routed=runs//full", "runs", "full"),
        ("routed=runs/full/full", "runs/full", "full"),
        ("routed=else/full", "else", "full"),
        ("routed=runs/", "runs", "sparse"),
        ("static=/", "/", "sparse"),
    ):
        method = parse_method(text)
        assert (method.folder, method.decode, method.note) == (folder, decode, "full" * (decode == "full"))


def test_batches_are_counted_without_listing_them(monkeypatch):
    for batch_tokens, samples in itertools.product((0, 1, 100, 360, 1 << 20), (1, 2, 3, 7, 300)):
        one = dataclasses.replace(PLAN, batch_tokens=batch_tokens, samples=samples)
        batches = list(list_batches(one, EndlessSuite()))
        assert sum(len(batch.indexes) for batch in batches) == 6 * samples
        assert count_batches(one, EndlessSuite()) == len(batches)
        for shard in (Shard(index=i, count=n) for n in (1, 2, 5, 2000) for i in {0, n // 2, n - 1}):
            held = sum(shard.holds(number) for number in range(len(batches)))
            assert count_steps(one, EndlessSuite(), shard) == len(METHODS) * held
    monkeypatch.setattr(plan, "Batch", None)  # a batch that is made cannot be
    assert count_steps(dataclasses.replace(PLAN, samples=160_000, batch_tokens=1), EndlessSuite(), Shard()) == 3_840_000


def test_plans_without_end_are_refused_at_once():
    huge = dataclasses.replace(PLAN, samples=99_999_999_999)
    for ask in (count_batches, lambda *a: next(list_batches(*a)), lambda *a: count_steps(*a, Shard())):
        with pytest.raises(
            ElasticAttentionError, match="--samples 99,999,999,999 of .* 599,999,999,994 prompts; .* 1,000,000 at most"
        ):
            ask(huge, EndlessSuite())
    assert count_batches(huge, WordSuite()) == count_batches(PLAN, WordSuite()), "a suite has no more than it has"


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
