"""The tables of every page are those that the records make."""

import re
from pathlib import Path

import pytest

from elastic_attention.viz import update_tables

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKED = [page for page in PAGES if re.search("^<!-- table:", page.read_text(), re.MULTILINE)]


@pytest.mark.parametrize("page", MARKED, ids=lambda page: page.stem)
def test_tables_are_those_of_the_records(page):
    assert update_tables(page, ROOT / "results", check=True) == []
