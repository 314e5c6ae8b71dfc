"""The processes of a run: who works on what, and what they add up. A run of one process is the same code without peers.

Ranks are numbered so that those of one sequence group follow each other, and so stand on one node.
"""

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from ...errors import LostRank, RecipeError
from .config import ParallelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This process among those of a run.

    Attributes:
        rank, world_size: of all processes.
        sequence_rank, sequence_size: within the group that shares the tokens of a pack.
        mesh: (data, sequence), None for one process.
        control: a group on the host, so that a process that is gone can be named while the devices still wait for it.
        timeout_seconds: how long to wait for the others.
    """

    rank: int = 0
    world_size: int = 1
    sequence_rank: int = 0
    sequence_size: int = 1
    mesh: DeviceMesh | None = None
    control: dist.ProcessGroup | None = None
    timeout_seconds: float = 600.0

    @property
    def is_first(self) -> bool:
        """Does this process write the files of the run?"""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which share of the packs is this process's."""
        return self.rank // self.sequence_size

    @property
    def data_size(self) -> int:
        """Number of shares of the packs."""
        return self.world_size // self.sequence_size

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add the gradients of all processes, in one transfer; a parameter without one counts as 0.

        The weights of the samples refer to the whole step, so the sum is the gradient of the step: no division.
        """
        if self.mesh is None:
            return
        chosen = list(parameters)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in chosen])
        for parameter, part in zip(chosen, self.sum(flat).split([p.numel() for p in chosen]), strict=True):
            parameter.grad = part.view_as(parameter)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits on each."""
        if self.mesh is not None:
            with naming_lost_ranks():
                dist.all_reduce(values)
        return values

    def agree(self, wish: bool) -> bool:
        """Does any process wish it? All get the same answer."""
        if self.mesh is None:
            return wish
        with naming_lost_ranks():
            answer = torch.tensor(int(wish))
            dist.all_reduce(answer, op=dist.ReduceOp.MAX, group=self.control)
        return bool(answer)

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values, in place."""
        if self.mesh is not None:
            with torch.no_grad(), naming_lost_ranks():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), 0)

    def collect(self, number: int) -> list[int]:
        """The number that each process holds, by rank."""
        if self.mesh is None:
            return [number]
        found = torch.zeros(self.world_size, dtype=torch.int64)
        found[self.rank] = number
        with naming_lost_ranks():
            dist.all_reduce(found, group=self.control)
        return found.tolist()

    def meet(self) -> None:
        """Wait until every process is here; on the host, so that devices that wait in vain do not matter.

        Raises:
            LostRank: some did not come in time; the first process's message names them.
        """
        if self.is_first:
            if lost := [peer for peer in range(1, self.world_size) if not self._hear(peer)]:
                raise _describe_loss(f"the ranks {lost} did not answer within {self.timeout_seconds:g} s")
            for peer in range(1, self.world_size):
                with naming_lost_ranks():
                    dist.send(torch.zeros(1), peer, group=self.control)
        else:
            with naming_lost_ranks():
                dist.send(torch.zeros(1), 0, group=self.control)
            if not self._hear(0):
                raise _describe_loss("rank 0, or another that it waits for, did not answer")

    def _hear(self, peer: int) -> bool:
        try:
            dist.recv(torch.zeros(1), peer, group=self.control)
        except RuntimeError:
            return False
        return True


@contextlib.contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Inside, an exchange that fails because a process is gone is a LostRank."""
    try:
        yield
    except RuntimeError as error:
        raise _describe_loss(str(error)) from error


def _describe_loss(reason: str) -> LostRank:
    return LostRank(
        f"An exchange between processes failed: {reason}. Another process died or hangs; its own error is in its own "
        "output. Nothing is lost: start the run again, and it goes on from its last checkpoint."
    )


def choose_local_device(device: str | None) -> str:
    """The device of this process: its own GPU under torchrun, else `device`, else the GPU if there is one."""
    if device not in (None, "cuda"):
        return str(device)
    if not torch.cuda.is_available():
        return "cpu" if device is None else "cuda"
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"


def _start_group(device: torch.device, limit: datetime.timedelta) -> None:
    store, rank, world_size = next(rendezvous("env://", timeout=limit))
    # After a restart, torchrun's store still holds where the processes of the last attempt were.
    store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=limit,
        device_id=device if device.type == "cuda" else None,
    )


@contextlib.contextmanager
def join_ranks(config: ParallelConfig, device: torch.device) -> Iterator[Ranks]:
    """Find the other processes of a run that torchrun has started, and leave them in the end.

    A process group that exists already is used and left standing.

    Raises:
        RecipeError: the number of processes does not fit `config`.
        LostRank: not all of them came.
    """
    world_size = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    for name, size in (("sequence", config.sequence), ("weights", config.weights or world_size)):
        if world_size % size:
            raise RecipeError(
                f"parallel.{name}={size} does not divide the {world_size} processes; start the run with "
                f"`torchrun --nproc-per-node N` and N a multiple of {size}."
            )
    if world_size == 1:
        yield Ranks()
        return
    is_ours = not dist.is_initialized()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    limit = datetime.timedelta(seconds=config.timeout_seconds)
    with naming_lost_ranks():
        if is_ours:
            _start_group(device, limit)
        shape = world_size // config.sequence, config.sequence
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("data", "sequence"))
        control = dist.new_group(backend="gloo", timeout=limit)
    yield Ranks(
        rank=dist.get_rank(),
        world_size=world_size,
        sequence_rank=mesh.get_local_rank("sequence"),
        sequence_size=config.sequence,
        mesh=mesh,
        control=control,
        timeout_seconds=config.timeout_seconds,
    )
    if is_ours:  # not after an error: leaving in order means waiting for the others, who may be gone
        dist.destroy_process_group()
