"""The ranking of retrieval heads, held against attention weights that transformers gives away."""

import pytest
import torch

from elastic_attention import ElasticAttentionError, StreamingConfig
from elastic_attention.evaluation import retrieval_heads
from elastic_attention.evaluation.methods import Method, attach_method
from elastic_attention.evaluation.retrieval_heads import (
    find_needle,
    measure_mass,
    rank_retrieval_heads,
    save_retrieval_mask,
)
from elastic_attention.models.checkpoint import read_static_routes
from elastic_attention.tasks import load_corpora
from hash_tokenizer import HashTokenizer
from tiny_models import make_model


class DigitTokenizer(HashTokenizer):
    """Characters to ids."""

    def _encode(self, text):
        return [2 + ord(c) % 95 for c in text]


class CountingTokenizer(DigitTokenizer):
    """Every text begins with its length, so that a number alone looks different from the same within a text."""

    def _encode(self, text):
        return [2 + len(text) % 95, *super()._encode(text)]


PATTERN = StreamingConfig(num_sink_tokens=16, local_window=32, block_size=16)


def test_mass_is_attention_on_the_needle(model):
    ids = torch.randint(2, 97, (1, 60))
    mass = measure_mass(model, ids[0].tolist(), 50, range(20, 25))
    model.set_attn_implementation("eager")
    weights = torch.stack(model(ids, output_attentions=True).attentions)[:, 0]  # (L, H, T, T)
    wanted = weights[:, :, 50:, 20:25].sum(-1).mean(-1).unflatten(1, (2, 3)).mean(2)
    torch.testing.assert_close(mass, wanted)
    assert mass.shape == (3, 2) and (mass > 0).all() and (mass < 1).all()


def test_layers_that_cannot_be_routed_have_none():
    mass = measure_mass(make_model("gemma3_text"), list(range(2, 62)), 50, range(20, 25))
    assert mass[0].all() and not mass[1].any() and mass[2].all()


class PlainTokenizer(DigitTokenizer):
    """A base model's; transformers raises ValueError for such a one."""

    chat_template = None

    def apply_chat_template(self, messages, **_):
        raise ValueError("tokenizer.chat_template is not set")


def test_a_model_without_a_chat_template_can_be_ranked(model, monkeypatch):
    monkeypatch.setattr(retrieval_heads, "measure_mass", lambda *_: torch.ones(3, 2))
    assert rank_retrieval_heads(model, PlainTokenizer(), load_corpora(), samples=1, length=512).sum() == 6


def test_heads_are_ranked_by_their_mean(model, monkeypatch):
    seen = []

    def measure(model, ids, first_row, needle):
        seen.append([ids[i] for i in needle])
        return torch.full((3, 2), float(len(seen)))

    monkeypatch.setattr(retrieval_heads, "measure_mass", measure)
    scores = rank_retrieval_heads(model, DigitTokenizer(), load_corpora(), samples=4, length=600)
    assert torch.equal(scores, torch.full((3, 2), 2.5)) and len(seen) == 4
    assert all(len(needle) == 8 for needle in seen)  # a space and seven digits


def test_a_tokenizer_that_cuts_numbers_differently_is_named(model):
    with pytest.raises(ElasticAttentionError, match="CountingTokenizer writes none of 2 needles"):
        rank_retrieval_heads(model, CountingTokenizer(), load_corpora(), samples=2, length=600)


def test_needles_are_found_where_they_stand():
    assert find_needle([1, 2, 3, 2, 3, 4], [2, 3, 4]) == 3
    assert find_needle([1, 2], [1, 2, 3]) is None


def test_the_best_heads_stay_full(model, tmp_path):
    scores = torch.tensor([[0.1, 0.9], [0.5, 0.2], [0.3, 0.4]])
    mask = save_retrieval_mask(tmp_path, model, scores, msr=0.5, pattern=PATTERN, facts={"samples": 1})
    assert mask.tolist() == [[True, False], [False, True], [True, False]]
    assert torch.equal(read_static_routes(tmp_path), mask)
    handle = attach_method(Method(name="retrieval_heads", folder=str(tmp_path)), model)
    assert handle.config.sparse_pattern == PATTERN
