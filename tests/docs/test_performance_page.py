"""The page of speeds agrees with the records, and its commands exist."""

import re
from pathlib import Path

import pytest

from elastic_attention.viz import update_tables
from elastic_attention.viz.tables import TABLES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_tables_are_up_to_date():
    names = re.findall(r"<!-- table:([\w-]+) -->", TEXT)
    assert len(names) >= 8 and set(names) <= set(TABLES)
    missing = sorted({TABLES[n].record for n in names if not (ROOT / "results" / TABLES[n].record).is_file()})
    if missing:
        pytest.skip(f"results/ lacks {', '.join(missing)}")
    assert update_tables(PAGE, ROOT / "results", check=True) == []


def test_scripts_exist():
    scripts = re.findall(r"benchmarks/\w+\.py", TEXT)
    assert scripts and all((ROOT / script).is_file() for script in scripts)
