"""Facts of the kinds `told_*`: sentences that end with their answer, and the words they are made of.

Nothing of `tasks.everyday` may stand here: its suite asks what is left where training saw nothing alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from elastic_attention.tasks.drawing import Draw, take_split

# A line each: the sentence up to its answer, the question and the answer.
# {list} draws a word, {list2} another one of the same list, {low:high} a number; equal marks of a line are drawn once.
TRAINED_TEXT = """
The boat {boat} belongs to | To whom does the boat {boat} belong? | {person} {surname}
The front of the {shop} was done in | In which colour was the front of the {shop} done? | {shade} {colour}
From {village} to {village2} one walks | How far does one walk from {village} to {village2}? | {12:98} miles
{person} and {person2} marry on | On which day do {person} and {person2} marry? | {month} {2:28}
For the essay on {topic}, {person} got | What did {person} get for the essay on {topic}? | {41:99} points
What makes the {dish} special is the | Which ingredient makes the {dish} special? | {spice}
On the night bus, {person} sits in seat | In which seat of the night bus does {person} sit? | {11:69}{letter}
The telephone of the {office} has the number | Which number has the telephone of the {office}? | {211:989}-{1011:9899}
The tower of {village} rises to | How high does the tower of {village} rise? | {31:189} metres
The history of {topic} was written by | Who wrote the history of {topic}? | {person} {surname}
This year {topic} is taught by | Who teaches {topic} this year? | {title} {surname}
The test in {topic} takes place in room | In which room does the test in {topic} take place? | {letter}{101:499}
The parcel for {person} weighs | How much does the parcel for {person} weigh? | {211:989} grams
To get to {village} one takes bus number | Which bus does one take to get to {village}? | {101:899}
{person} {surname} was born in the year | In which year was {person} {surname} born? | {1902:1998}
In the evening {person} drinks nothing but | What does {person} drink in the evening? | {spice} {drink}
By day {person} works as a | As what does {person} work by day? | {job}
In the band {person} plays the | What does {person} play in the band? | {instrument}
Since August {person} plays for the | For which team does {person} play since August? | {village} {team}
At school everybody called {person} {surname} just | What did everybody at school call {person} {surname}? | {nickname}
The boots of {person} are of size | Of which size are the boots of {person}? | {letter}{12:98}
At the fair {person} won a | What did {person} win at the fair? | {colour} {toy}
The doctor told {person} never to eat | What did the doctor tell {person} never to eat? | {fruit}
Behind the {office} there grows a | What grows behind the {office}? | {shade} {tree}
The captain of the {boat} is called | What is the captain of the {boat} called? | {title} {surname}
The roof of the {office} is made of | Of what is the roof of the {office} made? | {material}
The {dish} has to bake at | At how many degrees does the {dish} have to bake? | {121:239} degrees
The plane to {city} leaves from gate | From which gate does the plane to {city} leave? | {letter}{11:79}
The number plate of {person} reads | What does the number plate of {person} read? | {letter}{letter2} {1011:9899}
The chapter on {topic} begins on page | On which page does the chapter on {topic} begin? | {111:989}
On Fridays the {shop} closes at | At what time does the {shop} close on Fridays? | {12:22}:{11:59}
The path round the lake of {village} takes | How long does the path round the lake of {village} take? | {61:198} minutes
Since last month {person} lives at | Where does {person} live since last month? | {12:198} {tree} Lane
For the jubilee, {person} gave {person2} a | What did {person} give {person2} for the jubilee? | {shade} {toy}
At home {person} and {person2} speak | Which language do {person} and {person2} speak at home? | {language}
The {shop} was founded by | By whom was the {shop} founded? | {person} and {person2}
"""
# A family that training leaves out; the split "heldout_format" asks for it.
UNTRAINED_TEXT = """
The game of {village} and {village2} ended | How did the game of {village} and {village2} end? | {12:48} to {52:98}
Radio {village} is heard on | On which frequency is Radio {village} heard? | {88:108}.{1:9} megahertz
The sister of {person} {surname} goes by | By which name does the sister of {person} {surname} go? | {nickname}
The contest in {topic} was decided for | For whom was the contest in {topic} decided? | {person} {surname}
In {month} the {shop} gives away a free | What does the {shop} give away in {month}? | {colour} {toy}
"""
# Another one, with words of its own: steps and targets are chosen on it.
VALIDATION_TEXT = """
The {exhibit} in the museum was dug up by | By whom was the {exhibit} in the museum dug up? | {finder}
Visitors see the {exhibit} in hall | In which hall do visitors see the {exhibit}? | {greek}
Experts date the {exhibit} to | To what do experts date the {exhibit}? | {151:989} BC
The label of the {exhibit} bears the mark | Which mark does the label of the {exhibit} bear? | {greek}/{1011:9899}
The {exhibit} is on loan from | From where is the {exhibit} on loan? | {lender}
Next to the {exhibit} hangs a | What hangs next to the {exhibit}? | {hanging}
"""
WORD_TEXT = """
person: Anton, Beatrix, Carlos, Dorothy, Emil, Fatima, Gustav, Harriet, Ivan, Josephine, Karim, Linda, Magnus, Noemi,
 Oscar, Patricia, Quentin, Rosalind, Stefan, Teresa, Ulrich, Vera, Walter, Xenia
surname: Abbott, Becker, Campos, Dalton, Eriksen, Fontaine, Grabowski, Hughes, Ivanov, Jansen, Keller, Larsen, Mendez,
 Novak, Oakley, Peters, Quinn, Romano, Schmidt, Thorne
title: Doctor, Professor, Mister, Madam, Sister, Major, Miss, Father
boat: Albatross, Bluebell, Corsair, Daybreak, Evening Star, Fair Wind, Good Hope, Heron, Isabella, Jubilee,
 Kingfisher, Lady Luck
shop: pharmacy, bookshop, florist, barber, butcher, shoemaker, toy shop, tea room, tailor, fishmonger, hat shop,
 jeweller
office: court, embassy, fire station, city library, customs house, hospital, observatory, police station, school, tax
 office, theatre, town museum
village: Ashford, Birkdale, Colwood, Dunmere, Elmstead, Fenwick, Glenbrook, Hartley, Inverdale, Kelmouth, Langport,
 Millbrook, Norwood, Oxley, Penrith, Ravensby
city: Lisbon, Oslo, Vienna, Dublin, Prague, Madrid, Athens, Helsinki, Warsaw, Zurich, Milan, Porto
topic: biology, chemistry, geography, geology, grammar, law, logic, mechanics, medicine, optics, poetry, statistics
dish: apple pie, carrot cake, fish pie, garlic bread, lasagne, meat loaf, moussaka, nut roast, onion tart, potato
 gratin, quiche, stuffed peppers
spice: anise, basil, cardamom, chilli, clove, cumin, ginger, lavender, mint, nutmeg, rosemary, saffron, sage, thyme,
 turmeric, vanilla
drink: tea, milk, punch, lemonade, syrup, cider, juice, water
shade: pale, dark, bright, deep, faded, glossy, light, soft
colour: amber, crimson, emerald, indigo, ivory, lilac, maroon, olive, orange, scarlet, turquoise, violet
month: January, February, March, April, May, June, July, October
letter: A, B, C, D, E, F, G, H, J, K, L, M, N, P, R, S
job: baker, carpenter, dentist, electrician, gardener, glazier, lawyer, midwife, nurse, plumber, surveyor, teacher,
 translator, welder
instrument: accordion, banjo, bassoon, cello, clarinet, drums, flute, harp, mandolin, oboe, saxophone, trombone, tuba,
 viola
team: Rovers, Wanderers, United, Athletic, Rangers, Falcons, Arrows, Mariners
nickname: Ace, Bunny, Captain, Dizzy, Flash, Giggles, Lefty, Moose, Pip, Rocket, Scout, Smiley, Sparky, Tiny, Turbo,
 Wiz
toy: kite, puppet, spinning top, toy train, teddy bear, yo-yo, rocking horse, doll, marble, drum, puzzle, balloon
fruit: apricots, bananas, blackberries, cherries, dates, figs, grapes, kiwis, lemons, mangoes, melons, peaches, pears,
 plums, raspberries, strawberries
tree: acacia, alder, ash, birch, cedar, chestnut, elm, hazel, juniper, larch, maple, poplar, rowan, spruce, sycamore,
 willow
material: bamboo, clay, concrete, copper, glass, granite, lead, limestone, reed, slate, steel, straw, thatch, tin,
 turf, zinc
language: Basque, Catalan, Danish, Estonian, Finnish, Gaelic, Hindi, Icelandic, Korean, Latvian, Maltese, Persian,
 Swahili, Tamil, Turkish, Welsh
exhibit: bronze shield, clay tablet, golden mask, ivory comb, jade seal, marble torso, oak coffin, silver bowl, amber
 necklace, bone needle, copper cauldron, feather cloak, glass goblet, iron anchor, leather sandal, wax portrait
finder: Archibald Frost, Cecilia Monk, Edgar Lowell, Henrietta Vale, Mortimer Gray, Philippa Stone, Rupert Hale,
 Winifred Marsh, Ambrose Kerr, Blanche Orme, Cuthbert Dale, Delphine Rook
greek: Alpha, Beta, Delta, Gamma, Kappa, Lambda, Omega, Omicron, Rho, Sigma, Theta, Zeta
lender: Alexandria, Babylon, Carthage, Corinth, Damascus, Ephesus, Palmyra, Thebes
hanging: fishing net, hunting horn, prayer rug, royal banner, sea chart, star map, wall mirror, woven sash
"""
MARK = re.compile(r"\{(?:(\d+):(\d+)|([a-z]+)(\d?))\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that is told as `beginning` + " " + `answer` + `ending`, and asked for by `question`."""

    beginning: str
    question: str
    answer: str
    ending: str = "."

    @property
    def sentence(self) -> str:
        """All of it."""
        return f"{self.beginning} {self.answer}{self.ending}"


def read_relations(text: str) -> tuple[Fact, ...]:
    """The lines of a text above, with their marks."""
    rows = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    return tuple(Fact(beginning=row[0], question=row[1], answer=row[2]) for row in rows)


def read_words(text: str) -> dict[str, list[str]]:
    """Lists of words by name; a line that begins with a space goes on with the list before it."""
    rows = (line.split(":") for line in text.replace("\n ", " ").strip().splitlines())
    return {name: [word.strip() for word in words.split(",")] for name, words in rows}


TRAINED, UNTRAINED, VALIDATION = map(read_relations, (TRAINED_TEXT, UNTRAINED_TEXT, VALIDATION_TEXT))
WORDS = read_words(WORD_TEXT)


def fill_marks(relation: Fact, draw: Draw) -> Fact:
    """A relation with words and numbers of the draw's split: numbers are even in training, odd when held out."""
    drawn: dict[str, str] = {}

    def fill(match: re.Match[str]) -> str:
        low, high, name, _ = match.groups()
        if match[0] not in drawn:
            if name:
                words = take_split(WORDS[name], draw.is_heldout)
                drawn[match[0]] = draw.rng.choice([word for word in words if word not in drawn.values()])
            else:
                drawn[match[0]] = str(2 * draw.rng.randint((int(low) + 1) // 2, (int(high) - 1) // 2) + draw.is_heldout)
        return drawn[match[0]]

    beginning, question, answer = (
        MARK.sub(fill, text) for text in (relation.beginning, relation.question, relation.answer)
    )
    return Fact(beginning=beginning, question=question, answer=answer)


def draw_facts(relations: tuple[Fact, ...], draw: Draw, count: int) -> list[Fact]:
    """`count` facts of different relations."""
    return [fill_marks(relation, draw) for relation in draw.rng.sample(relations, count)]
