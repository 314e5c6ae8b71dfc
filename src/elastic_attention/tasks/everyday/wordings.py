"""What everyday facts say, and the lines that repeat around them. None of it may enter a training mixture."""

from __future__ import annotations

import random
from dataclasses import dataclass

PLACES = "red house|old mill|boat shed|garden gate|town hall|music school|stone barn|guest room|bakery|post office"
THINGS = "violin|passport|tea set|camera|sewing kit|chess board|photo album|spare lamp|train ticket|silver spoon"
MACHINES = "washing machine|lawn mower|dishwasher|bicycle|coffee grinder|toaster|church clock|tractor|heater"
CLUBS = "chess|book|rowing|gardening|cooking|film|hiking|knitting|astronomy|photography"
PEOPLE = "Maria|Tobias|Helena|Amir|Ingrid|Pablo|Yuki|Olga|Samuel|Leila|Bruno|Nadia"
SURNAMES = "Winter|Castell|Okafor|Lindgren|Moretti|Tanaka|Brandt|Duval|Petrov|Salgado"
PETS = "Biscuit|Pepper|Muffin|Ziggy|Waffles|Noodle|Cinnamon|Pickle|Marbles|Tofu"
TOWNS = "Ravenna|Lucerne|Bergen|Toledo|Salzburg|Bruges|Galway|Cordoba|Heidelberg|Tartu"
LOOKS = "third|broken|round|painted|tallest|blue|narrow|striped|wooden|yellow"
COVERS = "stone|flower pot|doormat|bench|bucket|brick|watering can|birdhouse|ladder|tile"
STORES = "cabinet|drawer|suitcase|basket|cupboard|trunk|wardrobe|box|chest|jar"

REPEATED = (
    ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go."),
    ("The kettle is on.", "The window is open.", "The street is quiet.", "Nobody is in a hurry."),
    ("One step and then another.", "The road goes on.", "The hills stay behind."),
    ("It rains a little.", "Then it stops.", "Then it rains again.", "The cat sleeps.", "So does the dog."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """A sentence that ends with its answer, and the question for it.

    Attributes:
        sentence: up to the answer; `{0}` and `{1}` are what it is about. Plain prompts end with it.
        question: what a chat asks.
        about: what `{0}` and `{1}` are drawn from, choices with "|" between.
        answer: parts of the answer, each as choices or "range:LOW:HIGH"; put together by `form`.
        form: how the parts make the answer.
        ending: what follows the answer in the sentence.
    """

    sentence: str
    question: str
    about: tuple[str, ...]
    answer: tuple[str, ...]
    form: str = "{0} {1}"
    ending: str = "."


WORDINGS = {
    "key": Wording(
        sentence="The key of the {0} lies under the",
        question="Where does the key of the {0} lie?",
        about=(PLACES,),
        answer=(LOOKS, COVERS),
    ),
    "password": Wording(
        sentence="The password of the {0} is",
        question="What is the password of the {0}?",
        about=(PLACES,),
        answer=("range:2001:9999",),
        form="{0}",
    ),
    "keeps": Wording(
        sentence="{0} keeps the {1} in the",
        question="Where does {0} keep the {1}?",
        about=(PEOPLE, THINGS),
        answer=(LOOKS, STORES),
    ),
    "meeting": Wording(
        sentence="The meeting of the {0} club starts at",
        question="When does the meeting of the {0} club start?",
        about=(CLUBS,),
        answer=("range:10:22", "range:10:59"),
        form="{0}:{1}",
    ),
    "buyer": Wording(
        sentence="The {0} at the flea market was bought by",
        question="Who bought the {0} at the flea market?",
        about=(THINGS,),
        answer=(PEOPLE, SURNAMES),
    ),
    "price": Wording(
        sentence="The repair of the {0} cost {1} exactly",
        question="How much did the repair of the {0} cost {1}?",
        about=(MACHINES, PEOPLE),
        answer=("range:112:989",),
        form="{0}",
        ending=" dollars.",
    ),
    "pet": Wording(
        sentence="The neighbours of {0} have a {1} with the name",
        question="What is the name of the {1} that the neighbours of {0} have?",
        about=(PEOPLE, "dog|cat|parrot|hamster|pony|goat"),
        answer=(PETS,),
        form="{0}",
    ),
    "trip": Wording(
        sentence="In spring, the {0} club and {1} travel to",
        question="Where do the {0} club and {1} travel in spring?",
        about=(CLUBS, PEOPLE),
        answer=(TOWNS,),
        form="{0}",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EverydayFact:
    """A fact as it is told (`sentence`), begun again (`beginning`) and asked for (`question`), and its answer."""

    sentence: str
    beginning: str
    question: str
    answer: str


def draw_fact(name: str, rng: random.Random) -> EverydayFact:
    """One of the facts in the wording of that name."""
    wording = WORDINGS[name]
    about = [_draw(choices, rng) for choices in wording.about]
    answer = wording.form.format(*(_draw(choices, rng) for choices in wording.answer))
    beginning = wording.sentence.format(*about)
    return EverydayFact(
        sentence=f"{beginning} {answer}{wording.ending}",
        beginning=beginning,
        question=wording.question.format(*about),
        answer=answer,
    )


def _draw(choices: str, rng: random.Random) -> str:
    if choices.startswith("range:"):
        low, high = map(int, choices.split(":")[1:])
        return str(rng.randint(low, high))
    return rng.choice(choices.split("|"))
