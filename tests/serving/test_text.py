"""Text that comes in pieces is the text that comes at once."""

import random

from served_tokenizer import make_byte_tokenizer

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
