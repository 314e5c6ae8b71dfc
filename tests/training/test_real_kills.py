"""A run that is killed in earnest, so that it can do nothing about it, goes on bit for bit as if it had not been."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import assert_equal_runs, make_recipe, parts

from elastic_attention.training.checkpoints import FILE, PREVIOUS
from elastic_attention.training.engine import Engine
from elastic_attention.training.holding import LOCK
from elastic_attention.training.trainer import train

FILES = [LOCK, "adapter", PREVIOUS, FILE, "log.jsonl", "tensorboard"]
MOMENTS = {
    "half of the log line": ("log line", 3),
    "half of the file": ("fsync", 3),
    "before the last one is kept": ("replace previous", 2),
    "when the last one is kept": ("write", 3),
    "when the file is whole": ("replace", 3),
    "before the adapter": ("adapter", 1),
}
CHILDREN = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from tiny_runs import make_recipe, parts
from elastic_attention.training import checkpoints, log, trainer
from elastic_attention.training.sources.routers import HeadRouters

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def at(number, function, do=die):
    calls = iter(range(1, 10_000))
    return lambda *a, **k: do(*a, **k) if next(calls) == number else function(*a, **k)

def halve(descriptor):
    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
    die()

def write_half(self, step, values):
    os.write(self._stream.fileno(), b'{{"step": 3, "lo')
    die()

def install(moment, number):
    replace, fsync = os.replace, os.fsync
    if moment == "log line":
        log.TrainingLog.write = at(number, log.TrainingLog.write, write_half)
    elif moment == "fsync":
        counted = at(number, fsync, halve)
        os.fsync = lambda d: (counted if checkpoints.FILE in os.readlink(f"/proc/self/fd/{{d}}") else fsync)(d)
    elif moment == "write":
        checkpoints.write_file = at(number, checkpoints.write_file)
    elif moment == "adapter":
        HeadRouters.export = at(number, HeadRouters.export)
    else:
        name = checkpoints.PREVIOUS if "previous" in moment else checkpoints.FILE
        counted = at(number, replace)
        os.replace = lambda a, b: (counted if os.path.basename(b) == name else replace)(a, b)

def tell(child):
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

folder = Path({folder!r})
recipe = make_recipe(folder)
for i, (moment, number) in enumerate({moments!r}):
    child = os.fork()
    if not child:
        install(moment, number)
        trainer.train(recipe, folder / f"run{{i}}", **parts())
        os._exit(0)
    tell(child)
child = os.fork()
if not child:
    trainer.train(make_recipe(folder, steps=400), folder / "long", **parts())
log, deadline = folder / "long/log.jsonl", time.monotonic() + 60
while not (log.exists() and log.read_text().count("\\n") >= 3) and time.monotonic() < deadline:
    time.sleep(0.01)
os.kill(child, signal.SIGKILL)
tell(child)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """One run for each moment, killed at it; and a long one, killed from outside. One process imports for all."""
    folder, here = tmp_path_factory.mktemp("killed"), Path(__file__).parent
    code = CHILDREN.format(paths=[str(here), str(here.parent)], folder=str(folder), moments=list(MOMENTS.values()))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [int(line) for line in done.stdout.split()] == [-signal.SIGKILL] * (len(MOMENTS) + 1)
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_real_kill_inside_of_writing_loses_nothing(killed, whole, moment):
    folder = killed / f"run{list(MOMENTS).index(moment)}"
    before = {path.name for path in folder.iterdir()}
    assert any(name.endswith(".tmp") for name in before) == (moment in ("half of the file", "when the file is whole"))
    assert before & {FILE, PREVIOUS}
    train(make_recipe(killed), folder, **parts())
    assert_equal_runs(whole[0], folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES


def ending_at(step):
    """An engine whose run stops after `step` steps."""

    class Ending(Engine):
        def agree(self, wish):
            return self.step + 1 >= step

    return Ending


def test_a_kill_from_outside_loses_nothing(killed):
    recipe = make_recipe(killed, steps=400)
    stopped = train(recipe, killed / "long", max_seconds=0, **parts())
    assert 3 <= stopped["steps"] < 400
    whole = train(recipe, killed / "whole", build_engine=ending_at(stopped["steps"]), **parts())
    assert whole["steps"] == stopped["steps"]
    assert_equal_runs(killed / "whole", killed / "long")
