"""Metrics of the Chinese tasks; words are what the package jieba finds."""

from __future__ import annotations

import logging
import string
from functools import lru_cache
from types import ModuleType

from elastic_attention.errors import DataError
from elastic_attention.tasks.longbench.rouge import score_rouge_l
from elastic_attention.tasks.longbench.words import score_word_f1

_FULL_WIDTH = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、"
_SIGNS = "〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
_PUNCTUATION = str.maketrans("", "", string.punctuation + _FULL_WIDTH + _SIGNS)


def score_chinese_f1(prediction: str, answer: str) -> float:
    """F1 of the words of both texts, in lower case, without punctuation.

    Raises:
        DataError: jieba is missing.
    """
    return score_word_f1(_normalise(prediction), _normalise(answer))


def score_chinese_rouge_l(prediction: str, answer: str) -> float:
    """`score_rouge_l` of words.

    Raises:
        DataError: jieba is missing.
    """
    return score_rouge_l(" ".join(_cut_words(prediction)), " ".join(_cut_words(answer)))


@lru_cache(maxsize=1)
def load_jieba() -> ModuleType:
    """The package jieba, told to keep quiet.

    Raises:
        DataError: it is missing; names the remedy.
    """
    try:
        import jieba
    except ImportError as error:
        raise DataError("Chinese tasks need the package jieba: pip install 'elastic-attention[eval]'.") from error
    jieba.setLogLevel(logging.WARNING)
    return jieba


def _cut_words(text: str) -> list[str]:
    return list(load_jieba().cut(text, cut_all=False))


def _normalise(text: str) -> list[str]:
    words = ("".join(word.lower().translate(_PUNCTUATION).split()) for word in _cut_words(text))
    return [word for word in words if word]
