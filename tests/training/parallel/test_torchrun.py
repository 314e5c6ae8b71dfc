"""The command of the documentation under torchrun: two processes, a recipe file, and a death on the way."""

import json
import os
import subprocess
import sys

from rank_jobs import own_device
from tiny_runs import make_recipe, parts

import elastic_attention

RECIPE = """
model = "{folder}/model"
steps = 2
checkpoint_every = 1
validate_every = 0
precision = "float32"
recompute_layers = true
[parallel]
sequence = 2
weights = 0
[data.packs]
files = ["{folder}/train.jsonl"]
heldout_files = ["{folder}/held.jsonl"]
tokens = 700
per_step = 2
cache = "{folder}/cache"
[routes]
pooled_tokens = 8
[pattern]
num_sink_tokens = 16
local_window = 32
block_size = 16
[intervals.single_qa]
low = 0.2
high = 0.3
[intervals.few_shot]
low = 0.8
high = 1.0
[intervals.code]
low = 0.8
high = 1.0
"""


# What `-m elastic_attention.cli` runs, but the second process kills itself in the second step of the first attempt.
DRIVER = """
import os, runpy, signal
from elastic_attention.training.parallel.engine import ParallelEngine

accumulate = ParallelEngine.accumulate

def die(self, batch):
    if self.step == 1 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    accumulate(self, batch)

ParallelEngine.accumulate = die
runpy.run_module("elastic_attention.cli", run_name="__main__")
"""


def test_torchrun_trains_a_recipe_and_starts_it_again_after_a_death(tmp_path):
    make_recipe(tmp_path)  # writes the records
    made = parts()
    made["model"].save_pretrained(tmp_path / "model")
    made["tokenizer"].save_pretrained(tmp_path / "model")
    (tmp_path / "tiny.toml").write_text(RECIPE.format(folder=tmp_path))
    (tmp_path / "driver.py").write_text(DRIVER)
    start = ["-m", "torch.distributed.run", "--standalone", "--max-restarts", "1", "--nproc-per-node", "2", "driver.py"]
    options = ["train", "tiny.toml", "--output", "run", "--json", "record.json"]
    options += ["--device", "cpu"] if own_device() == "cpu" else []
    source = os.path.dirname(os.path.dirname(elastic_attention.__file__))
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *start, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("2 of 2 steps") == 1  # one process speaks
    metrics = json.loads((tmp_path / "record.json").read_text())["metrics"]
    assert metrics["is_finished"] and metrics["tokens"] > 0
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert "LostRank" in done.stderr or "exitcode: -9" in done.stderr
    assert (tmp_path / "run" / "adapter" / "elastic_routers.safetensors").is_file()
