"""The byte tokenizer of a server: its template names who speaks, and refuses an answer without a question."""

import byte_tokenizer

NAME = "tiny"
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' and loop.first %}{{ raise_exception('who asks?') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
)


def make_byte_tokenizer():
    """A tokenizer of 257 tokens with this template."""
    return byte_tokenizer.make_byte_tokenizer(TEMPLATE)
