"""The project's own files: the make targets, the pinned versions, the licence."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_ci_runs_the_demo_and_the_readme_test_command():
    script = read(".ci/run")
    assert "set -euo pipefail" in script
    assert re.search(r"^make test$", script, re.MULTILINE) and re.search(r"^make demo$", script, re.MULTILINE)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


def test_ci_tests_the_oldest_transformers_that_is_allowed():
    dependencies = tomllib.loads(read("pyproject.toml"))["project"]["dependencies"]
    oldest = next(line.partition(">=")[2] for line in dependencies if line.startswith("transformers"))
    assert re.search(rf"^transformers=={re.escape(oldest)}\.", read(".ci/oldest.txt"), re.MULTILINE)
    assert "-r .ci/oldest.txt" in read(".ci/run") and f'startswith("{oldest}.")' in read(".ci/run")


def test_constraints_pin_torch_exactly():
    assert re.search(r"^torch==\d+\.\d+\.\d+$", read("constraints.txt"), re.MULTILINE)
    assert "-c constraints.txt" in read("Makefile")


def test_changelog_has_this_version():
    from elastic_attention import __version__

    assert f"## {__version__}\n" in read("CHANGELOG.md")


def test_licence_is_whole():
    text = read("LICENSE")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert tomllib.loads(read("pyproject.toml"))["project"]["license"] == "Apache-2.0"
