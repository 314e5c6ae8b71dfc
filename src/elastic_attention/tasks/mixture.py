"""The project's own training mixture: records of the six kinds of long-context work, as JSON lines.

`python -m elastic_attention.tasks.mixture FOLDER --corpora FOLDER` writes train.jsonl, heldout.jsonl and a manifest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elastic_attention.errors import DataError, DownloadError
from elastic_attention.tasks.corpora import Corpora, corpora_digest, load_corpora
from elastic_attention.tasks.counting import NominalTokenizer
from elastic_attention.tasks.document_questions import make_bridge, make_collection, make_comparison, make_report_line
from elastic_attention.tasks.drawing import Draw
from elastic_attention.tasks.packages import sha256_of
from elastic_attention.tasks.registry import MIN_TOKENS, TRAINED_KINDS, make_sample
from elastic_attention.tasks.sample import Sample, encode_prompt, to_row
from elastic_attention.tasks.summaries import make_module_lines, make_overviews

MANIFEST = "mixture.json"
# Raise it when the same settings give other records, so that an older folder is not taken for a new one.
FORMAT = 3
Maker = Callable[[Draw, str, str], Sample]


def take(*kinds: str) -> dict[str, Maker]:
    """What makes samples of these kinds, by their names."""
    return {kind: TRAINED_KINDS[kind].make for kind in kinds}


# The six kinds of the papers' benchmarks are the categories; the tasks of one take turns.
MIXTURE: dict[str, dict[str, Maker]] = {
    "single_qa": {"report_line": make_report_line} | take("facts", "told_prose", "told_profile", "told_code"),
    "multi_qa": {"bridge": make_bridge, "comparison": make_comparison, "collection": make_collection},
    "summarization": {"overviews": make_overviews, "module_lines": make_module_lines}
    | take("subject", "skimmed_prose", "skimmed_profile", "skimmed_sentences"),
    "few_shot": take("classes", "regions", "most_frequent", "skimmed_table"),
    "synthetic": take("needle", "needles_2", "needles_4", "lookup", "constants", "copying")
    | take("told_repeated", "told_sentences", "told_table"),
    "code": take("code", "repeated_lines", "skimmed_code", "skimmed_repeated"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureConfig:
    """Settings of a mixture.

    Attributes:
        samples, heldout: records of each category in train.jsonl and heldout.jsonl.
        min_tokens, max_tokens: range of the prompts' lengths, in nominal tokens, evenly on a logarithmic scale. The
            default leaves room for the answer in a pack of 65,536.
        seed: of everything.
    """

    samples: int = 256
    heldout: int = 32
    min_tokens: int = 2048
    max_tokens: int = 61_440
    seed: int = 0

    def __post_init__(self) -> None:
        if not MIN_TOKENS <= self.min_tokens <= self.max_tokens:
            raise DataError(
                f"lengths of {self.min_tokens} to {self.max_tokens} tokens make no range; use {MIN_TOKENS} or more."
            )
        if self.samples < 1 or self.heldout < 0:
            raise DataError(f"samples={self.samples} and heldout={self.heldout} must be at least 1 and 0.")


def build_mixture(folder: str | Path, config: MixtureConfig, *, corpora: str | Path | None = None) -> dict[str, Any]:
    """Write a mixture, or check the one that is there; returns its manifest.

    The same settings and texts give the same bytes on any machine. The folder appears complete or not at all.
    Raises DataError when `folder` holds something else, is damaged or cannot be filled, and DownloadError as
    `load_corpora` does.
    """
    target = Path(folder)
    settings = {"format": FORMAT, "config": asdict(config), "corpora": corpora_digest(corpora)}
    if target.exists() and any(target.iterdir()):
        return check_mixture(target, settings)
    target.parent.mkdir(parents=True, exist_ok=True)
    texts = load_corpora(corpora)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.partial-", dir=target.parent) as scratch:
        output = Path(scratch) / "mixture"
        output.mkdir()
        files = {
            f"{split}.jsonl": write_split(output / f"{split}.jsonl", config, split, count, texts)
            for split, count in (("train", config.samples), ("heldout", config.heldout))
            if count
        }
        manifest = settings | {"files": files}
        with (output / MANIFEST).open("w", encoding="utf-8") as file:
            file.write(json.dumps(manifest, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            target.rmdir()
        os.replace(output, target)
    return manifest


def check_mixture(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a folder, if it was made with these settings and its files are whole; else DataError."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sums = {name: sha256_of(folder / Path(name).name) for name in manifest["files"]}
        wrong = [name for name, digest in sums.items() if digest != manifest["files"][name]["sha256"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} holds no whole mixture ({error!r}); name a new folder, or delete it.") from error
    if wrong:
        raise DataError(f"{folder}: {wrong} have changed since they were made; delete the folder and make it again.")
    if {key: manifest.get(key) for key in settings} != settings:
        raise DataError(f"{folder} holds a mixture of other settings or texts; name a new folder, or delete it.")
    return manifest


def write_split(path: Path, config: MixtureConfig, split: str, count: int, corpora: Corpora) -> dict[str, Any]:
    """Write the records of a split; returns the file's checksum, and its records and tokens by category and task."""
    from rich.progress import track

    checksum, tallies = hashlib.sha256(), defaultdict[str, dict[str, Any]](dict)
    rows = track(make_rows(config, split, count, corpora), f"making {path.name}", count * len(MIXTURE), transient=True)
    with path.open("wb") as file:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            checksum.update(line)
            file.write(line)
            tally = tallies[row["category"]].setdefault(row["metadata"]["task"], {"records": 0, "tokens": 0})
            tally["records"] += 1
            tally["tokens"] += row["metadata"]["length"]
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": checksum.hexdigest(), "bytes": path.stat().st_size, "categories": tallies}


def make_rows(config: MixtureConfig, split: str, count: int, corpora: Corpora) -> Iterator[dict[str, Any]]:
    """Records in the order of the file: categories in turn, all of one round of about the same length."""
    tokenizer = NominalTokenizer()
    low, high = math.log(config.min_tokens), math.log(config.max_tokens)
    for index in range(count):
        length = round(math.exp(random.Random(f"{config.seed}/{split}/{index}").uniform(low, high)))
        for category, tasks in MIXTURE.items():
            task = list(tasks)[index % len(tasks)]
            sample = make_sample(
                task,
                category,
                tasks[task],
                seed=config.seed,
                index=index,
                target_tokens=length,
                corpora=corpora,
                tokenizer=tokenizer,
                split=split,
            )
            row = to_row(sample)
            row["metadata"]["length"] = len(encode_prompt(sample, tokenizer))
            yield row


def main(arguments: list[str] | None = None) -> int:
    """Build a mixture from the command line; returns the exit status."""
    defaults = MixtureConfig()
    parser = argparse.ArgumentParser(prog="python -m elastic_attention.tasks.mixture", description=__doc__)
    parser.add_argument("folder", type=Path, help="new folder for the records")
    parser.add_argument("--corpora", type=Path, help="made by python -m elastic_attention.tasks.corpora; default: "
                        "the small texts in the package")  # fmt: skip
    parser.add_argument("--samples", type=int, default=defaults.samples, help="records a category")
    parser.add_argument("--heldout", type=int, default=defaults.heldout, help="held-out records a category")
    parser.add_argument("--min-tokens", type=int, default=defaults.min_tokens)
    parser.add_argument("--max-tokens", type=int, default=defaults.max_tokens)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    options = vars(parser.parse_args(arguments))
    folder, corpora = options.pop("folder"), options.pop("corpora")
    try:
        manifest = build_mixture(folder, MixtureConfig(**options), corpora=corpora)
    except (DataError, DownloadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, facts in manifest["files"].items():
        print(f"{folder / name}: {facts['bytes'] / 1e6:.1f} MB")
        for category, tasks in facts["categories"].items():
            tokens = sum(task["tokens"] for task in tasks.values())
            print(f"  {category:14} {sum(task['records'] for task in tasks.values()):6} records {tokens:12,} tokens")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
