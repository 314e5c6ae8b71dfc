"""Text that comes in pieces is the text that comes at once."""

import random

import pytest
from served_tokenizer import make_byte_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from elastic_attention.serving.server.text import TextStream


def stream(text, stops=()):
    tokenizer = make_byte_tokenizer()
    made, pieces = TextStream(tokenizer, stops), []
    for token in tokenizer(text).input_ids:
        pieces.append(made.add(token))
        if made.is_stopped:
            break
    return [*pieces, made.finish()]


def test_characters_of_several_bytes_come_whole():
    text = "naïve – 東京 🙂 end"
    pieces = stream(text)
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)


def test_stops_are_cut_wherever_they_stand():
    chooser = random.Random(3)
    for _ in range(60):
        text = "".join(chooser.choice("ab") for _ in range(14))
        stops = ["".join(chooser.choice("ab") for _ in range(chooser.randint(1, 4))) for _ in range(2)]
        # The stop that is complete first ends the answer.
        ends = [min((text.find(s) for s in stops if s in text[:n]), default=None) for n in range(1, len(text) + 1)]
        cut = next((end for end in ends if end is not None), len(text))
        assert "".join(stream(text, stops)) == text[:cut], (text, stops)


def make_piece_tokenizer():
    """Pieces as in Llama 2: a word brings its space, the first one of a text loses it, and bytes stand for the rest."""
    words = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁boat", "a", "ing", "é", "."]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>")


@pytest.mark.parametrize("make", [make_byte_tokenizer, make_piece_tokenizer])
def test_a_long_answer_is_decoded_in_windows_and_says_the_same(make, monkeypatch):
    tokenizer, chooser, decode, decoded = make(), random.Random(5), make().decode, []
    tokens = []
    while len(tokens) < 600:
        if chooser.random() < 0.2:
            text = chooser.choice(["🙂", "東", "ü"]).encode()
            tokens += text if make is make_byte_tokenizer else [2 + byte for byte in text]
        elif make is make_byte_tokenizer:
            tokens += [chooser.randrange(32, 127)]
        else:
            tokens += [chooser.randrange(258, len(tokenizer))] * chooser.choice([1, 1, 1, 20]) + [1] * 2

    def note(tokens, **options):
        decoded.append(len(tokens))
        return decode(tokens, **options)

    monkeypatch.setattr(tokenizer, "decode", note)
    made = TextStream(tokenizer, ["never"])
    pieces = [made.add(token) for token in tokens]
    assert "".join([*pieces, made.finish()]) == decode(tokens, skip_special_tokens=True)
    assert sum(decoded) < 80 * len(tokens)  # not as the square of them
