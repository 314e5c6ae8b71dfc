"""What counts as a budget, wherever one is given: to a handle, a server, a request or a command. Plain Python."""

import contextlib
import math
from numbers import Real
from typing import Any


def check_budget(value: Any, prefix: str = "budget=") -> float:
    """A budget as a float: a finite number, which a tensor or array without dimensions holds too.

    Args:
        value: what was given, of any type.
        prefix: stands before the value in the error; says where the value was given.

    Raises:
        ValueError: no number, a truth value, NaN, infinity, or an int that no float holds.
    """
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(number, Real) and not isinstance(number, bool):
        with contextlib.suppress(OverflowError):  # an int that no float holds
            if math.isfinite(number):
                return float(number)
    shown = " ".join(repr(value).split())  # tensors are written over several lines
    raise ValueError(f"{prefix}{shown:.60} is no finite number; give one: 0 is what training found, larger is sparser.")
