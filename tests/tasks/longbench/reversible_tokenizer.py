"""A tokenizer of words, signs and blanks whose ids can be turned back, with a special token in front."""

import re

BOS = 0


class ReversibleTokenizer:
    """Every word, with the space before it, sign and run of blanks is a token."""

    def __init__(self, chat_template="yes"):
        self.chat_template = chat_template
        self.pieces = ["<s>"]
        self.ids = {}

    def __call__(self, text, *, add_special_tokens):
        if isinstance(text, list):
            return {"input_ids": [self(part, add_special_tokens=add_special_tokens)["input_ids"] for part in text]}
        found = re.findall(r" ?\w+| ?[^\w\s]|\s", text)
        for piece in found:
            if piece not in self.ids:
                self.ids[piece] = len(self.pieces)
                self.pieces.append(piece)
        return {"input_ids": [BOS] * add_special_tokens + [self.ids[piece] for piece in found]}

    def decode(self, ids, *, skip_special_tokens):
        return "".join(self.pieces[i] for i in ids if not (skip_special_tokens and i == BOS))

    def apply_chat_template(self, messages, *, add_generation_prompt, tokenize):
        assert add_generation_prompt is True and tokenize is False and self.chat_template
        return "".join(f"<{m['role']}>\n{m['content']}\n" for m in messages) + "<assistant>\n"
