"""Two ranks, each with its own KV heads, say what one says."""

import json
import os
import subprocess
import sys
from pathlib import Path

from served_models import make_params, make_prompts, run_engine


def test_two_ranks(engines, served):
    alone = run_engine(engines(), make_prompts([40, 150, 300, 97]), make_params(12))
    engines.close()
    script = Path(__file__).with_name("ask_ranks.py")
    paths = [str(script.parent), str(script.parents[2])]
    done = subprocess.run(
        [sys.executable, str(script), str(served.model_folder), str(served.routers)],
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [list(result) for result in alone]
