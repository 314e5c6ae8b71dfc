"""The methods of a comparison under one roof: same runner, same samples, same kernels where there are some.

`METHODS` (`registry`) lists them; one file holds one method or one family. `attach_method` makes a model read as a
method says, `kind.choose` gives the routes of a batch. What has no kernel, because every query chooses its own keys
(MoBA, InfLLM-V2), runs in plain PyTorch.
"""

from .attaching import attach_method, check_method
from .base import ChooseRoutes, Method, MethodKind
from .registry import LEFT_OUT, METHODS, find_method, settle_method
from .simple import draw_routes

__all__ = [
    "LEFT_OUT",
    "METHODS",
    "ChooseRoutes",
    "Method",
    "MethodKind",
    "attach_method",
    "check_method",
    "draw_routes",
    "find_method",
    "settle_method",
]
