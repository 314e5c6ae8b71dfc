"""What RULER asks, word for word as its authors publish it; the strings decide scores, so a test guards them all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """The wording of a group of tasks.

    Attributes:
        text: the question with the haystack in it.
        answer_prefix: how the answer begins; behind the chat markers where the model has them.
        max_new_tokens: the longest answer.
        is_part_enough: any one reference makes an answer right; otherwise the share of references counts.
    """

    text: str
    answer_prefix: str
    max_new_tokens: int
    is_part_enough: bool = False


NEEDLE = "One of the special magic {kind} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DOCUMENT = "Document {number}:\n{text}"
NIAH = Template(
    text=(
        "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will quiz you "
        "about the {kind} afterwards.\n{context}\nWhat are all the special magic {kind} for {query} mentioned in the "
        "provided text?"
    ),
    answer_prefix=" The special magic {kind} for {query} mentioned in the provided text are",
    max_new_tokens=128,
)
NIAH_SINGLE = Template(
    text=(
        "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will quiz you "
        "about the {kind} afterwards.\n{context}\nWhat is the special magic {kind} for {query} mentioned in the "
        "provided text?"
    ),
    answer_prefix=" The special magic {kind} for {query} mentioned in the provided text is",
    max_new_tokens=128,
)
VARIABLES = Template(
    text=(
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
        "Question: Find all variables that are assigned the value {query} in the text above."
    ),
    answer_prefix=(
        " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned "
        "the value {query}, they are: "
    ),
    max_new_tokens=30,
)
COMMON_WORDS = Template(
    text=(
        "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones "
        "that appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?"
    ),
    answer_prefix=" Answer: The top 10 words that appear most often in the list are:",
    max_new_tokens=120,
)
FREQUENT_WORDS = Template(
    text=(
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
        "appeared coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
        "What are the three most frequently appeared words in the above coded text?"
    ),
    answer_prefix=" Answer: According to the coded text above, the three most frequently appeared words are:",
    max_new_tokens=50,
)
QUESTION = Template(
    text=(
        "Answer the question based on the given documents. Only give me the answer and do not output any other "
        "words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question based on the given "
        "documents. Only give me the answer and do not output any other words.\n\nQuestion: {query}"
    ),
    answer_prefix=" Answer:",
    max_new_tokens=32,
    is_part_enough=True,
)
