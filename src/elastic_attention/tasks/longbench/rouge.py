"""ROUGE-L of summaries, to the last bit that of the package `rouge` 1.0.1, which LongBench scores with.

Sentences end at full stops. Every sentence of the reference is aligned with every one of the prediction (longest
common subsequence); words that any alignment holds count once, over the different words of each text.
"""

from __future__ import annotations

from collections.abc import Sequence


def score_rouge_l(prediction: str, answer: str) -> float:
    """F1 of ROUGE-L in [0, 1]; 0 when either text holds nothing but full stops.

    The package overflows the interpreter's stack, and LongBench then scores 0, where two sentences have about a
    thousand words together. Here such pairs have their true score.
    """
    predicted, wanted = _split_sentences(prediction), _split_sentences(answer)
    if not predicted or not wanted:
        return 0.0
    aligned: set[str] = set()
    for reference in wanted:
        for sentence in predicted:
            aligned |= _align_words(reference, sentence)
    recall = len(aligned) / len({word for sentence in wanted for word in sentence})
    precision = len(aligned) / len({word for sentence in predicted for word in sentence})
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _split_sentences(text: str) -> list[list[str]]:
    """Words of each sentence; a sentence of blanks has one empty word."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _align_words(reference: Sequence[str], sentence: Sequence[str]) -> set[str]:
    """Words of one longest common subsequence; of several, the one that walks back along the sentence first."""
    lengths = [[0] * (len(sentence) + 1)]
    for word in reference:
        above, row = lengths[-1], [0]
        for j, other in enumerate(sentence):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        lengths.append(row)
    words, i, j = set(), len(reference), len(sentence)
    while i and j:
        if reference[i - 1] == sentence[j - 1]:
            i, j = i - 1, j - 1
            words.add(reference[i])
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
