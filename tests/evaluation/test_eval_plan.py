"""What a plan takes and what it refuses."""

import dataclasses

import pytest
from word_runs import METHODS, PLAN

from elastic_attention import ElasticAttentionError
from elastic_attention.evaluation.plan import Shard, check_lengths, parse_method


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
