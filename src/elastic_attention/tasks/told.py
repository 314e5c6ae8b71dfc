"""Pairs of kinds on the same texts: `told_*` ask for a fact in the middle, `skimmed_*` for gist or ending.

Both hide facts and ask in the same ways, so only the question tells them apart. One way is left to facts: a question in
front of the text, where routers that read few tokens see the chat's marks alone. What they cannot see needs all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from elastic_attention.errors import DataError
from elastic_attention.tasks.bodies import GISTS, HAYSTACKS, JOINTS
from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.passages import Passage
from elastic_attention.tasks.relations import TRAINED, UNTRAINED, Fact, draw_facts
from elastic_attention.tasks.sample import Sample, encode

MAX_FACTS, MAX_DRAWS = 3, 20
LAST_WORDS, MAX_LAST_TOKENS, CONTINUED_WORDS = 5, 16, 8
# How often: a plain text that begins the answer, "Q: ... A:", a question behind the text in a chat, and one before it.
WAYS = {"plain": 2, "answer": 1, "chat": 6, "first": 1}
SKIMMED_WAYS = {way: weight for way, weight in WAYS.items() if way != "first"}
# A third of the texts begin at once.
INTROS = (
    "",
    "",
    "Here is a text.",
    "Read the text and answer the question below it.",
    "Answer from this text alone.",
    "Below are my notes.",
    "The following material is all there is.",
)
FRAMES = (
    "{question}",
    "According to the text: {question}",
    "Question: {question}",
    "Please tell me: {question}",
    "{question} Stay with the text.",
    "{question}\nAnswer in one sentence.",
    "I have forgotten something: {question}",
    "Look it up above, please. {question}",
    "{question} I need it for a letter.",
    "Here is my question.\n\n{question}",
    "Thanks for reading. Now: {question}",
    "One thing is left to ask. {question}",
)
CLOSINGS = (
    "",
    "Answer the question above.",
    "That was the text. Your answer?",
    "Now answer.",
    "What do you say to that?",
)
ANSWERS = ("\n\nQ: {question}\nA:", "\n\nQuestion: {question}\nAnswer:", "\n\n{question}\n>")
ENDS = (
    ("The text ends with the words", "With which words does the text end?"),
    ("The last words of the text are", "What are the last words of the text?"),
    ("At the very end one reads", "What does one read at the very end?"),
)
FORMS = (
    ("The text above is", "Is the text {gists}?"),
    ("Taken as a whole, this is", "Taken as a whole, what is this: {gists}?"),
    ("The sort of text is", "Of these sorts of text, {gists}, which one is it?"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What stands around a text: before it, behind it, and what the model's turn begins with."""

    before: str
    behind: str
    prefix: str
    is_chat: bool


def make_told(draw: Draw, kind: str, category: str, haystack: str) -> Sample:
    """A fact in the middle of a haystack, perhaps among facts of other relations, is asked for."""
    return make_hidden(draw, kind, category, HAYSTACKS[haystack], JOINTS.get(haystack, "\n"), TRAINED)


def make_hidden(
    draw: Draw,
    kind: str,
    category: str,
    make_body: Callable[[Draw, int], Passage],
    joint: str,
    relations: tuple[Fact, ...],
    is_brief: bool = False,
) -> Sample:
    """`make_told` in any body; `joint` stands in front of a fact in it, and a brief answer is no whole sentence.

    Raises DataError when the body always holds the answer elsewhere as well.
    """
    for _ in range(MAX_DRAWS):
        facts = hide_facts(draw, relations)
        asked = facts[0]
        asking = draw_asking(draw, asked)
        passage = draw_body(draw, asking, make_body, joint, facts)
        if passage.text.count(asked.answer) == 1:
            return answer_by(kind, category, asking, passage.text, asked, is_brief=is_brief)
    raise DataError(f"the texts of {kind!r} hold {MAX_DRAWS} drawn answers already; use other texts.")


def make_skimmed(draw: Draw, kind: str, category: str, haystack: str) -> Sample:
    """The same haystacks with the same facts; asked is how the text ends, of what sort it is, or how it goes on."""
    facts, is_gist = hide_facts(draw, TRAINED), haystack in GISTS and draw.rng.random() < 0.5
    beginning, question = draw.wording(*FORMS) if is_gist else draw.wording(*ENDS)
    gists = list(GISTS.values())
    draw.rng.shuffle(gists)
    question = question.format(gists=", ".join(gists[:-1]) + f" or {gists[-1]}")
    asking = draw_asking(draw, Fact(beginning=beginning, question=question, answer=""), SKIMMED_WAYS)
    text = draw_body(draw, asking, HAYSTACKS[haystack], JOINTS.get(haystack, "\n"), facts).text.rstrip()
    if asking.prefix.endswith(beginning) and draw.rng.random() < 0.5:
        head, *words = text.rsplit(" ", CONTINUED_WORDS)
        plain = Asking(before="", behind="", prefix="", is_chat=False)
        return answer_by(kind, category, plain, head, Fact(beginning="", question="", answer=" ".join(words)))
    answer = GISTS[haystack] if is_gist else name_end(draw, text)
    asked = Fact(beginning=beginning, question=question, answer=answer, ending="." if is_gist else "")
    return answer_by(kind, category, asking, text, asked)


def hide_facts(draw: Draw, relations: tuple[Fact, ...]) -> list[Fact]:
    """The facts that a body hides; training never sees the relations of "heldout_format"."""
    if relations is TRAINED and draw.split == "heldout_format":
        relations = UNTRAINED
    return draw_facts(relations, draw, draw.rng.randint(1, MAX_FACTS))


def draw_asking(draw: Draw, asked: Fact, ways: dict[str, int] = WAYS) -> Asking:
    """One of the ways, in one of its wordings."""
    way = draw.rng.choices(list(ways), list(ways.values()))[0]
    if way == "plain":
        return Asking(before="", behind="", prefix=f"\n\n{asked.beginning}", is_chat=False)
    if way == "answer":
        return Asking(
            before="", behind="", prefix=draw.wording(*ANSWERS).format(question=asked.question), is_chat=False
        )
    question = draw.wording(*FRAMES).format(question=asked.question)
    if way == "first":
        return Asking(before=question, behind=draw.wording(*CLOSINGS), prefix="", is_chat=True)
    return Asking(before=draw.wording(*INTROS), behind=question, prefix="", is_chat=True)


def draw_body(
    draw: Draw, asking: Asking, make_body: Callable[[Draw, int], Passage], joint: str, facts: list[Fact]
) -> Passage:
    """A text that fills the prompt, with the facts in its middle."""
    hidden = [joint + fact.sentence for fact in facts]
    room = draw.room(asking.before, asking.behind, asking.prefix, *hidden, is_chat=asking.is_chat)
    passage = make_body(draw, room)
    passage.scatter(hidden, draw.rng)
    return passage


def answer_by(kind: str, category: str, asking: Asking, text: str, asked: Fact, *, is_brief: bool = False) -> Sample:
    """The sample. Plain texts go on with the answer; a chat says the whole sentence, unless it is to be brief.

    Small models begin a sentence, too: at a bare answer all of the loss would be that of its first token.
    """
    in_chat = asked.answer if is_brief else asked.sentence
    return Sample(
        kind=kind,
        category=category,
        context=f"{asking.before}\n\n{text}" if asking.before else text,
        question=asking.behind,
        answer=in_chat if asking.is_chat else f" {asked.answer}",
        answer_prefix=asking.prefix,
        is_chat=asking.is_chat,
    )


def name_end(draw: Draw, text: str) -> str:
    """The last words of the last line, as many as are short."""
    words = text[-400:].splitlines()[-1].split()[-LAST_WORDS:]
    while len(words) > 1 and len(encode(" ".join(words), draw.tokenizer)) > MAX_LAST_TOKENS:
        del words[0]
    return " ".join(words)
