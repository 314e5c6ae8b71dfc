"""The kernel assembles for sm_90 without spills and with its matrix products in flight; no GPU is needed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HAS_GLUON = importlib.util.find_spec("triton") is not None and (
    importlib.util.find_spec("triton.experimental.gluon") is not None
)
SHARED_MEMORY = 232_448  # bytes that a block may have on sm_90


@pytest.mark.skipif(not HAS_GLUON, reason="needs Triton with Gluon")
def test_shapes_assemble_without_spills(tmp_path: Path) -> None:
    # A process of its own: other tests run Triton in interpreter mode.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_shapes.py")],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    reports = json.loads(result.stdout)
    assert len(reports) == 8
    for report in reports:
        assert report["spills"] == 0, report
        assert report["warnings"] == [], report
        assert report["shared"] <= SHARED_MEMORY, report
        assert report["products"] > 0, report
