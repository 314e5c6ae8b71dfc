"""F1 of two bags of words."""

from collections import Counter
from collections.abc import Sequence


def score_word_f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words, each counted as often as it stands in both texts."""
    num_same = sum((Counter(prediction) & Counter(answer)).values())
    if num_same == 0:
        return 0.0
    precision, recall = num_same / len(prediction), num_same / len(answer)
    return (2 * precision * recall) / (precision + recall)
