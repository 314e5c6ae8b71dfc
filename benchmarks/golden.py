"""The command of the scripts that write golden files: what official code says, run from a clone of its repository."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_golden(description: str | None, repository: str, run_official: Callable[[Path], dict[str, Any]]) -> None:
    """Read the arguments, run the official code in the clone, and write what it said as JSON."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help=f"a clone of github.com/{repository}")
    parser.add_argument("output", type=Path, help="the JSON file to write")
    options = parser.parse_args()
    golden = run_official(options.folder)
    options.output.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{options.output}: {options.output.stat().st_size / 1e3:.0f} kB")
