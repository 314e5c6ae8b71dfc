"""Random answers and references for RULER's two scores, and what the official scorer says about them.

    python tests/tasks/ruler/golden_scores.py FOLDER_OF_RULER

runs the official functions of a checkout (scripts/eval) and writes golden_scores.json: strings are made again from the
seed, so the file holds scores only, as the number of tenths of thousandths.
"""

import ast
import hashlib
import json
import random
import re
import sys
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden_scores.json")
CASES, SEED = 10_000, 20240
PIECES = (
    "12",
    "a",
    "A",
    "Ä",
    "ß",
    "x-y",
    "the",
    " ",
    "\n",
    "\t",
    "\x00",
    "\x1f",
    "\x7f",
    "İ",
    "é",
    ".",
    ", ",
    "9713521",
)


def make_cases():
    """(answer, references) pairs; references often stand in the answer, in another case or cut by a control sign."""
    rng = random.Random(SEED)
    for _ in range(CASES):
        references = ["".join(rng.choices(PIECES, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 7))]
        parts = rng.choices(PIECES, k=rng.randint(0, 8))
        for reference in references:
            if rng.random() < 0.5:
                form = rng.choice((str, str.upper, str.lower, str.title))(reference)
                parts.insert(rng.randint(0, len(parts)), form)
        yield "".join(parts), references


def digest_cases():
    """A checksum of the strings, so that a changed generator is not taken for a changed score."""
    return hashlib.sha256(json.dumps(list(make_cases())).encode()).hexdigest()


def load_official(folder):
    """The official scorers (answer, references) -> score in percent, without the imports around them."""
    scripts = Path(folder) / "scripts" / "eval"
    names = {"postprocess_pred", "string_match_part", "string_match_all"}
    space = {"re": re}
    for path in (scripts / "evaluate.py", scripts / "synthetic" / "constants.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name in names:
                exec(compile(ast.Module([node], []), str(path), "exec"), space)
    clean = space["postprocess_pred"]
    return {
        name: lambda answer, references, score=space[f"string_match_{name}"]: score([clean(answer, {})], [references])
        for name in ("all", "part")
    }


if __name__ == "__main__":
    scorers = load_official(sys.argv[1])
    scores = {name: [round(100 * score(*case)) for case in make_cases()] for name, score in scorers.items()}
    GOLDEN.write_text(json.dumps({"cases": digest_cases(), **scores}, separators=(",", ":")) + "\n")
