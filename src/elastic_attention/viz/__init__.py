"""Pictures, tables and pages. They are made from records alone, never from models.

Nothing here imports matplotlib, jinja2 or rich before a function needs it.
"""

from .curves import read_training_log, save_curves
from .frontier import save_frontier
from .head_map import save_head_maps
from .performance import save_speed
from .report import render_report
from .tables import update_tables
from .terminal import HeadMapPicture

__all__ = [
    "HeadMapPicture",
    "read_training_log",
    "render_report",
    "save_curves",
    "save_frontier",
    "save_head_maps",
    "save_speed",
    "update_tables",
]
