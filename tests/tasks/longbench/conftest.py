"""The random cases lie beside the command that ran the official scorers on them."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))


@pytest.fixture(scope="session")
def golden():
    """What the official scorers said; see benchmarks/longbench_golden.py."""
    return json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))
