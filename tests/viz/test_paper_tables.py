"""Tables of the papers' claims."""

from elastic_attention.viz.paper_tables import render_checks, render_verdicts


def make_check(claim, *, holds, refuted=False, value=0.5, low=0.4, high=0.6, at_least=None, at_most=None, counts=True):
    found = {"value": value, "low": low, "high": high, "at_least": at_least, "at_most": at_most}
    return {"claim": claim, "check": f"{claim} is so", "counts": counts, "holds": holds, "refuted": refuted} | found


ROWS = [
    {"claim": "width", "title": "Width matters little", "paper": "Tab. 3", "verdict": "partly", "n": 1200}
    | {"steps": 60, "lengths": [2048, 4096, 8000]},
    {"claim": "decode", "title": "Decode is sparse", "paper": "none", "verdict": "open", "n": 0},
]
CHECKS = [
    make_check("width", holds=True, at_least=-0.03, at_most=0.03),
    make_check("width", holds=False, refuted=True, at_least=1e-9),
    make_check("width", holds=False, refuted=True, at_most=-1e-9, counts=False),
    make_check("width", holds=False, value=None, low=None, high=None, at_least=0.98),
]
RECORD = {"metrics": {"rows": ROWS, "checks": CHECKS}}


def list_cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_a_row_a_claim():
    width, decode = list_cells(render_verdicts(RECORD))
    assert width == ["Width matters little", "Tab. 3", "width", "partly", "1 of 3", "60", "2,048 to 8,000", "1,200"]
    assert decode[3:] == ["open", "–", "–", "–", "–"]


def test_a_row_a_check():
    within, above, below, missing = list_cells(render_checks(RECORD))
    assert within[2:] == ["0.500 \\[0.400, 0.600\\]", "-0.03 to 0.03", "yes"]
    assert above[3:] == ["above 0", "no"]
    assert below[3:] == ["below 0", "no, beside"]
    assert missing[2:] == ["–", "≥ 0.98", "undecided"]
