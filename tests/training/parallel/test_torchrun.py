"""The commands of the documentation under torchrun: two processes on one node and on two, and a death on the way."""

import json
import os
import socket
import subprocess
import sys

import pytest
from rank_jobs import own_device
from tiny_runs import make_recipe, parts

import elastic_attention
from elastic_attention.training.parallel.config import ParallelConfig
from elastic_attention.training.recipe import load_recipe
from elastic_attention.training.trainer import train

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


@pytest.fixture
def folder(tmp_path):
    """A recipe with its records and its model."""
    make_recipe(tmp_path)  # writes the records
    made = parts()
    made["model"].save_pretrained(tmp_path / "model")
    made["tokenizer"].save_pretrained(tmp_path / "model")
    (tmp_path / "tiny.toml").write_text(RECIPE.format(folder=tmp_path))
    (tmp_path / "driver.py").write_text(DRIVER)
    return tmp_path


def start_torchrun(folder, *arguments, device=None, **environment):
    """torchrun with these arguments, training the recipe in `folder`."""
    options = ["train", "tiny.toml", "--output", "run", "--json", "record.json"]
    options += ["--device", device] if device else []
    source = os.path.dirname(os.path.dirname(elastic_attention.__file__))
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *arguments, *options],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(started):
    """What it printed."""
    try:
        stdout, stderr = started.communicate(timeout=150)
    finally:
        started.kill()
    assert started.returncode == 0, stderr[-2000:]
    return stdout, stderr


def test_two_nodes_are_one_run(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", address]
    cli = ["-m", "elastic_attention.cli"]
    # Without an address of their own, nodes look up their host's name.
    nodes = [
        start_torchrun(folder, *common, "--local-addr", "127.0.0.1", *cli, device="cpu", TOKENIZERS_PARALLELISM="false")
        for _ in range(2)
    ]
    outputs = [wait_for(node)[0] for node in nodes]
    assert sorted(output.count("2 of 2 steps") for output in outputs) == [0, 1]
    lines = (folder / "run" / "log.jsonl").read_text().splitlines()
    recipe = load_recipe(folder / "tiny.toml", parallel=ParallelConfig())
    train(recipe, folder / "alone", device="cpu")
    for line, other in zip(lines, (folder / "alone" / "log.jsonl").read_text().splitlines(), strict=True):
        one, two = json.loads(line), json.loads(other)
        assert one["step"] == two["step"] and one["msr"] == two["msr"]
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)


def test_torchrun_trains_a_recipe_and_starts_it_again_after_a_death(folder):
    device = "cpu" if own_device() == "cpu" else None
    start = ["--standalone", "--max-restarts", "1", "--nproc-per-node", "2", "driver.py"]
    stdout, stderr = wait_for(start_torchrun(folder, *start, device=device))
    assert stdout.count("2 of 2 steps") == 1  # one process speaks
    metrics = json.loads((folder / "record.json").read_text())["metrics"]
    assert metrics["is_finished"] and metrics["tokens"] > 0
    assert [json.loads(line)["step"] for line in (folder / "run" / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert "LostRank" in stderr or "exitcode: -9" in stderr
    assert (folder / "run" / "adapter" / "elastic_routers.safetensors").is_file()
