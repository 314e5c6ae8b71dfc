"""What the processes of a test do, and how they are started: two on the CPU over gloo, or one each on two GPUs."""

import dataclasses
import json
import multiprocessing
import os
import signal
import time

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from elastic_attention.errors import ElasticAttentionError
from elastic_attention.records import write_file
from elastic_attention.training.data.steps import PackedSteps
from elastic_attention.training.engine import Engine
from elastic_attention.training.fitted_inputs import fit_inputs
from elastic_attention.training.parallel.config import ParallelConfig
from elastic_attention.training.parallel.engine import ParallelEngine
from elastic_attention.training.parallel.launch import train_on_ranks
from elastic_attention.training.parallel.ranks import choose_local_device, join_ranks
from elastic_attention.training.parallel.ulysses import SequenceExchange, cut_evenly

SIZE = 2
PATIENCE_SECONDS = 20.0


class Pair:
    """Two processes in one group that run jobs: `job(rank, folder, *arguments)`, results as JSON.

    A file stands in for torchrun's server, so that tests that run at the same time cannot take each other's port.
    """

    def __init__(self, folder):
        context = multiprocessing.get_context("spawn")
        self.folder, self.count = folder, 0
        self.tasks = [context.Queue() for _ in range(SIZE)]
        self.processes = [
            context.Process(target=_work, args=(rank, folder, tasks), daemon=True)
            for rank, tasks in enumerate(self.tasks)
        ]
        for process in self.processes:
            process.start()

    def run(self, job, folder, *arguments):
        """The results by rank, None of a process that died."""
        self.count += 1
        for tasks in self.tasks:
            tasks.put((job, folder, arguments, self.count))
        return [self._wait(rank) for rank in range(SIZE)]

    def _wait(self, rank, seconds=120):
        file = self.folder / f"{self.count}-{rank}.json"
        end = time.monotonic() + seconds
        while not file.exists():
            if not self.processes[rank].is_alive():
                return None
            assert time.monotonic() < end, f"process {rank} does not end its job"
            time.sleep(0.02)
        return json.loads(file.read_text())

    def close(self):
        """End the processes, dead or alive."""
        for process in self.processes:
            process.kill()
            process.join()


def _work(rank, folder, tasks):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(SIZE)}
    if own_device() != "cpu":
        torch.cuda.set_device(rank)
    backend = "gloo" if own_device() == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
    while True:
        job, place, arguments, number = tasks.get()
        write_file(folder / f"{number}-{rank}.json", json.dumps(job(rank, place, *arguments)))


def own_device():
    """The device of this process."""
    return choose_local_device(None) if torch.cuda.device_count() >= SIZE else "cpu"


def place(made):
    """Model, tokenizer and device of a run, on the device of this process."""
    return made | {"model": made["model"].to(own_device()), "device": own_device()}


def one_step(engine, recipe, tokenizer):
    """The first step of a run; what the log says, the gradients and the held-out measures."""
    data = PackedSteps(
        recipe.data,
        tokenizer,
        seed=recipe.seed,
        steps=recipe.steps,
        rank=engine.rank,
        world_size=engine.world_size,
    )
    with torch.no_grad():  # they start at 0, which would hide the penalty
        for parameter in engine.constraint.parameters():
            parameter.fill_(0.7)
    fit_inputs(engine, data)
    engine.start_step(0)
    packs = data[0]
    for pack in packs:
        engine.accumulate(pack.to(engine.device))
    values = engine.finish_step()
    named = zip(engine.source.state(), engine.source.parameters_to_train(), strict=False)
    gradients = {name: parameter.grad.cpu().clone() for name, parameter in named}
    gradients |= {f"constraint.{name}": p.grad.cpu().clone() for name, p in engine.constraint.named_parameters()}
    measured = {name: value.tolist() for name, value in engine.measure(packs[0].to(engine.device)).items()}
    return {"values": values, "measured": measured}, gradients


def steps_alone(recipes, make_parts):
    """`one_step` of each recipe on one process."""
    results = {}
    for name, recipe in recipes.items():
        parts = place(make_parts())
        engine = Engine(recipe, parts["model"])
        results[name] = one_step(engine, recipe, parts["tokenizer"])
        engine.close()
    return results


def take_steps(rank, folder, recipes, make_parts):
    """`one_step` of each recipe, on two processes."""
    results = {}
    for name, recipe in recipes.items():
        parts = place(make_parts())
        with join_ranks(recipe.parallel, torch.device(own_device())) as ranks:
            engine = ParallelEngine(recipe, parts["model"], ranks)
            results[name], gradients = one_step(engine, recipe, parts["tokenizer"])
            engine.close()
        save_file(gradients, folder / f"{name}-{rank}.safetensors")
    return results


def load_gradients(folder, name):
    """What `take_steps` saved, by rank."""
    return [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(SIZE)]


def exchange_heads(rank, folder, num_q_heads, num_kv_heads, num_tokens, routes):
    """Tokens to heads and back; what this process holds in between, and the gradient of taken rows."""
    counts = cut_evenly(num_tokens, SIZE)
    lengths = torch.tensor([3, num_tokens - 3])
    exchange = SequenceExchange(group=dist.group.WORLD, rank=rank, counts=counts, lengths=lengths)
    whole = make_heads(num_q_heads, num_kv_heads, num_tokens)
    mine = [x[:, :, exchange.own].clone().requires_grad_() for x in whole]
    heads = exchange.deal(torch.tensor(routes))
    q, k, v = heads.to_heads(*mine)
    back = heads.to_tokens(q)
    (q.sum() + 2 * k.sum() + 3 * v.sum() + (back * back).sum()).backward()
    hidden = torch.arange(num_tokens, dtype=torch.float32)[None, exchange.own, None].expand(-1, -1, 3).clone()
    hidden.requires_grad_()
    index = torch.tensor([[0, num_tokens - 1], [counts[0] - 1, counts[0]]])
    taken = exchange.take(hidden, index)
    ((rank + 1) * taken).sum().backward()
    return {
        "q": q[0].tolist(),
        "k": k[0].tolist(),
        "own": [exchange.own.start, exchange.own.stop],
        "is_back": torch.equal(back, mine[0]),
        "gradients": [x.grad.unique().tolist() for x in mine[1:]],
        "is_query_gradient": torch.equal(mine[0].grad, 1 + 2 * mine[0].detach()),
        "taken": taken[..., 0].tolist(),
        "taken_gradient": hidden.grad[0, :, 0].tolist(),
        "routes": heads.routes.tolist(),
    }


def make_heads(num_q_heads, num_kv_heads, num_tokens, head_dim=2):
    """Queries, keys and values whose numbers tell head and token."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, n, num_tokens, head_dim, generator=generator) for n in (num_q_heads, *[num_kv_heads] * 2)]


def train_twice(rank, folder, recipe, make_parts):
    """A whole run, and one that stops after its first step and goes on."""
    whole = train_on_ranks(recipe, folder / "whole", **place(make_parts()))
    first = train_on_ranks(recipe, folder / "cut", max_seconds=0, **place(make_parts()))
    if rank == 0:
        (folder / "first").mkdir()
        for file in (folder / "cut").glob("*.*"):
            if file.is_file():
                (folder / "first" / file.name).write_bytes(file.read_bytes())
    second = train_on_ranks(recipe, folder / "cut", **place(make_parts()))
    return {"steps": [whole["steps"], first["steps"], second["steps"]], "validation": whole["validation"]}


def lose_one(rank, folder, recipe, make_parts):
    """The second process dies in the second step."""
    accumulate = ParallelEngine.accumulate

    def die(self, batch):
        if rank == 1 and self.step == 1:
            os._exit(3)
        accumulate(self, batch)

    ParallelEngine.accumulate = die
    recipe = dataclasses.replace(recipe, parallel=ParallelConfig(timeout_seconds=PATIENCE_SECONDS))
    try:
        train_on_ranks(recipe, folder / "lost", **place(make_parts()))
    except ElasticAttentionError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {}


def differ(rank, folder, recipes, make_parts):
    """Each process has a recipe of its own."""
    try:
        train_on_ranks(recipes[rank], folder / "differ", **place(make_parts()))
    except ElasticAttentionError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {}


def stop_second(rank, folder, recipe, make_parts):
    """The second process alone is asked to stop, in the second step; then both go on."""
    accumulate = ParallelEngine.accumulate

    def interrupted(self, batch):
        accumulate(self, batch)
        if rank == 1 and self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    ParallelEngine.accumulate = interrupted
    try:
        first = train_on_ranks(recipe, folder / "stopped", **place(make_parts()))
    finally:
        ParallelEngine.accumulate = accumulate
    return [first["steps"], train_on_ranks(recipe, folder / "stopped", **place(make_parts()))["steps"]]
