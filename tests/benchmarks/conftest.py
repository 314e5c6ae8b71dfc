"""The benchmark scripts are no package; they import each other from their own folder."""

import os
import sys
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, so it has to come first
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
