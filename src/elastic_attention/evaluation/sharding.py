"""Which part of a run is this process's, and waiting for the others where one launcher started all of them."""

from __future__ import annotations

import os
from datetime import timedelta

from ..errors import ElasticAttentionError
from .plan import Shard

_LONGEST_RUN = timedelta(days=30)


def find_shard(text: str | None) -> Shard:
    """The shard that `--shard` names, else that of torchrun, else the whole.

    Raises:
        ElasticAttentionError: it is malformed, or given under torchrun as well.
    """
    if text is not None and is_launched():
        raise ElasticAttentionError(f"--shard {text} and torchrun both cut the run; leave --shard out.")
    if text is not None:
        return Shard.parse(text)
    return Shard(index=int(os.environ["RANK"]), count=int(os.environ["WORLD_SIZE"])) if is_launched() else Shard()


def is_launched() -> bool:
    """Did torchrun start this process as one of several?"""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def choose_shard_device(name: str | None) -> str | None:
    """Under torchrun on GPUs each process takes its own, where the user names none."""
    import torch

    has_own = name is None and is_launched() and torch.cuda.is_available()
    return f"cuda:{os.environ['LOCAL_RANK']}" if has_own else name


def wait_for_others() -> None:
    """Return once every process that torchrun started is here; at once without it."""
    if not is_launched():
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=_LONGEST_RUN)
    dist.barrier()
    dist.destroy_process_group()
