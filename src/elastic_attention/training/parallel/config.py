"""How a run is spread over processes; it changes speed and memory, never what is trained."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """The [parallel] table of a recipe. One process a GPU, started by torchrun.

    Attributes:
        sequence: processes that share the tokens of a pack (Ulysses); the others work on other packs. It divides the
            number of processes, and the KV heads of the model divide by it or it by them.
        weights: processes that share one copy of the frozen layers (FSDP2); 1 = each holds a whole one, 0 = all share.
        timeout_seconds: how long a process waits for another before it gives up by name.
    """

    sequence: int = 1
    weights: int = 1
    timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name, lowest in (("sequence", 1), ("weights", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"parallel.{name}={getattr(self, name)} must be at least {lowest}.")
        if not self.timeout_seconds > 0:
            raise ValueError(f"parallel.timeout_seconds={self.timeout_seconds} must be positive.")
