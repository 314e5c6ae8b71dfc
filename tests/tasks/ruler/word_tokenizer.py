"""A tokenizer of words and signs with a mark in front, with or without a chat template."""

import re


class WordTokenizer:
    """Ids are never looked at, so a token is its place."""

    def __init__(self, *, has_chat=True):
        self.chat_template = "chat" if has_chat else None

    def __call__(self, text, *, add_special_tokens):
        count = len(re.findall(r"\d{1,3}| ?[A-Za-z]+|[^\sA-Za-z\d]|\s+", text))
        return {"input_ids": list(range(count + add_special_tokens))}

    def apply_chat_template(self, messages, *, add_generation_prompt, tokenize):
        assert add_generation_prompt and not tokenize and self.chat_template
        return f"<s><user>\n{messages[0]['content']}</user>\n<assistant>\n"
