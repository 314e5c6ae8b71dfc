"""What the plugin costs: rounds that engines share, and how their times become one ratio."""

import random

import pytest
from serving_overhead import EXTRAS, STOCK, Cell, Generation, measure_cell, summarize

CELL = Cell(tokens=3, requests=2, new_tokens=4)


class FakeEngine:
    """The first token of a prompt is the answer; `wrong` adds one."""

    def __init__(self, seconds, wrong=0):
        self.seconds, self.wrong, self.asked = seconds, wrong, []

    def send(self, question):
        self.asked.append(question)

    def recv(self):
        prompts, new = self.asked[-1]
        return (self.seconds, 2 * self.seconds), [[prompt[0] + self.wrong] * new for prompt in prompts]


def test_a_cell_is_read():
    assert Cell.read("3x2x4") == CELL


def test_every_way_gets_the_same_new_prompts():
    engines = {way: FakeEngine(1.0) for way in EXTRAS}
    found = measure_cell(engines, CELL, random.Random(0), 1000, rounds=3)
    assert [len(taken) for taken in found.seconds.values()] == [3] * len(EXTRAS) and found.differing == 0
    asked = engines[STOCK].asked
    assert all(engine.asked == asked for engine in engines.values())
    assert len({str(prompts) for prompts, _ in asked}) == 4 and len(asked[0][0]) == 2 and len(asked[0][0][0]) == 3
    engines["off"].wrong = 1
    assert measure_cell(engines, CELL, random.Random(0), 1000, rounds=1).differing == 4  # two rounds of two requests
    engines["off"].wrong, engines["default"].wrong = 0, 1  # other blocks may round otherwise
    assert measure_cell(engines, CELL, random.Random(0), 1000, rounds=1).differing == 0


def test_ratios_are_of_the_same_round():
    def make(factor, *stock):
        seconds = {way: [(s * (factor if way == "off" else 1), 1.0) for s in stock] for way in EXTRAS}
        return Generation(seconds=seconds, differing=1)

    rows = {row["way"]: row for row in summarize(CELL, [make(1.1, 1.0, 50.0, 3.0), make(1.3, 7.0, 2.0, 90.0)])}
    off = rows["off"]
    assert off["seconds_ratio"] == pytest.approx(1.2) and off["processor_seconds_ratio"] == 1
    assert (off["seconds_ratio_low"], off["seconds_ratio_high"]) == (pytest.approx(1.1), pytest.approx(1.3))
    assert (off["generations"], off["rounds"], off["differing"]) == (2, 6, 2)
    assert rows[STOCK]["seconds_ratio"] == 1 and rows[STOCK]["seconds"] == 5.0
