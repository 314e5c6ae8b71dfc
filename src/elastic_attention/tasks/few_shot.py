"""Few-shot classes: many labelled examples, then one more word to label."""

from __future__ import annotations

from elastic_attention.tasks.drawing import Draw, take_split
from elastic_attention.tasks.sample import Sample, encode
from elastic_attention.tasks.vocabulary import CLASSES

NUM_LABELS = 4
REGIONS = ("Africa", "Asia", "Europe", "Oceania", "South America", "North America")
WORDINGS = (("{word}: {label}", "{word}:"), ("Word: {word}\nLabel: {label}", "Word: {word}\nLabel:"))


def make_classes(draw: Draw, kind: str, category: str) -> Sample:
    """Everyday words and their class, over and over."""
    labels = draw.rng.sample(sorted(CLASSES), NUM_LABELS)
    return label_words(
        draw,
        kind,
        category,
        [(w, label) for label in labels for w in take_split(CLASSES[label], draw.is_heldout)],
    )


def make_regions(draw: Draw, kind: str, category: str) -> Sample:
    """Countries and their continent, over and over."""
    pairs = [(c.name, c.facts["region"]) for c in draw.countries("region") if c.facts["region"] in REGIONS]
    return label_words(draw, kind, category, draw.rng.sample(pairs, min(len(pairs), 24)))


def label_words(draw: Draw, kind: str, category: str, pairs: list[tuple[str, str]]) -> Sample:
    """Shuffled rounds of all pairs until the prompt is full, then one of the words again without its label."""
    example, query = draw.wording(*WORDINGS)
    word, label = draw.rng.choice(pairs)
    lines = {pair: "\n" + example.format(word=pair[0], label=pair[1]) for pair in pairs}
    counts = {pair: len(encode(line, draw.tokenizer)) for pair, line in lines.items()}
    ending = "\n" + query.format(word=word)
    left, chosen = draw.room(ending, is_chat=False), []
    while left >= max(counts.values()):
        draw.rng.shuffle(pairs)
        for pair in pairs:
            if counts[pair] <= left:
                chosen.append(lines[pair])
                left -= counts[pair]
    return Sample(
        kind=kind,
        category=category,
        context="".join(chosen).lstrip(),
        question="",
        answer=f" {label}",
        answer_prefix=ending,
        is_chat=False,
    )
