"""Questions over a text file: reading it, and making a prompt that fits the model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..errors import ElasticAttentionError
from .session import Session


def read_document(path: str | Path) -> str:
    """The text of a UTF-8 file; "-" is what stdin holds.

    Raises:
        ElasticAttentionError: there is no such file, it is empty, or it is no text; the message says which.
    """
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ElasticAttentionError(f"Cannot read {path}: {error.strerror or error}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise ElasticAttentionError(
            f"{path} is not UTF-8 text (byte {error.start}). Convert it to a text file first."
        ) from error
    if "\0" in text:
        raise ElasticAttentionError(f"{path} holds zero bytes, so it is no text file. Convert it to a text file first.")
    if not text.strip():
        raise ElasticAttentionError(f"{path} is empty. Name a file with text to read.")
    return text


def check_question(question: str) -> None:
    """Refuse an empty question.

    Raises:
        ElasticAttentionError: it has no words.
    """
    if not question.strip():
        raise ElasticAttentionError("The question is empty. Ask something with --question.")


def encode_question(tokenizer: Any, document: str, question: str) -> list[int]:
    """Token ids of a document and a question: a chat turn where the tokenizer has a template, else plain text.

    Without a question the document alone is the prompt, as plain text.
    """
    if not question.strip():
        return list(tokenizer(document)["input_ids"])
    text = f"{document.strip()}\n\n{question.strip()}"
    if not getattr(tokenizer, "chat_template", None):
        return list(tokenizer(f"{text}\n")["input_ids"])
    messages = [{"role": "user", "content": text}]
    opened = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(opened, add_special_tokens=False)["input_ids"])


def check_length(session: Session, num_tokens: int, max_new_tokens: int) -> None:
    """Refuse a prompt that does not fit.

    Raises:
        ElasticAttentionError: no token at all, or prompt and answer exceed the model's context; names both figures.
    """
    if num_tokens < 1:
        raise ElasticAttentionError("The prompt has no tokens. Give a file with text.")
    if num_tokens + max_new_tokens > session.context:
        raise ElasticAttentionError(
            f"The prompt has {num_tokens:,} tokens, and with {max_new_tokens:,} new ones it is longer than the "
            f"{session.context:,} tokens that {session.name} can read. Shorten the file or take another model."
        )
