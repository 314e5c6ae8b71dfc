"""What decides the result of a run, so that a checkpoint can tell whether it belongs to it, and what differs if not."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..settings import to_dict
from .recipe import Recipe

# What does not change the result, or by rounding alone, may differ between a run and its resumption.
_FREE = (
    "checkpoint_every",
    "fast_gradients",
    "fuse_layers",
    "keep_attention",
    "on_nan",
    "parallel",
    "recompute_layers",
    "validate_every",
    "validation_samples",
    "whole_layers",
)
_FREE_OF_DATA = ("workers", "corpora")  # of the texts their content counts, which the identity of the data holds
_FREE_OF_PACKS = ("cache", "files", "heldout_files", "sources")
_OF_EXPONENTIAL = ("schedule", "rate", "final_p")  # a cosine reads none of them
_SHOWN = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class RunIdentity:
    """A run by what decides its result.

    Attributes:
        recipe: the keys that count.
        data: the samples, by `Corpus.identity`.
    """

    recipe: dict[str, Any]
    data: str

    @property
    def digest(self) -> str:
        """16 hexadecimal digits; equal for runs with equal results."""
        return hashlib.sha256(json.dumps([self.recipe, self.data], sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """What `explain_difference` of another run reads."""
        return json.dumps({"recipe": self.recipe, "data": self.data})

    def explain_difference(self, other: str | None) -> str:
        """In what the run `other`, as its `to_json`, differs from this one; None: it does not say."""
        if other is None:  # as checkpoints of older versions
            return "its recipe, data or tokenizer differ"
        there = json.loads(other)
        mine, theirs = dict(_flatten(self.recipe)), dict(_flatten(there["recipe"]))
        found = [
            f"{key} is {theirs.get(key, 'absent')} there and {mine.get(key, 'absent')} here"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key, "absent") != theirs.get(key, "absent")
        ]
        found = [*found[:_SHOWN], f"{len(found) - _SHOWN} more keys differ"] if len(found) > _SHOWN + 1 else found
        if there["data"] != self.data:
            found.append("the samples or the tokenizer differ")
        return "; ".join(found)


def identify_run(recipe: Recipe, data: str) -> RunIdentity:
    """The identity of a run on the samples `data`, by `Corpus.identity`."""
    content = {k: v for k, v in to_dict(recipe).items() if k not in _FREE}
    content["data"] = {k: v for k, v in content["data"].items() if k not in _FREE_OF_DATA}
    content["data"]["packs"] = {k: v for k, v in content["data"]["packs"].items() if k not in _FREE_OF_PACKS}
    if recipe.temperature.schedule == "cosine":
        content["temperature"] = {k: v for k, v in content["temperature"].items() if k not in _OF_EXPONENTIAL}
    if recipe.temperature.noise_end == 1.0:  # as before there was the key
        content["temperature"] = {k: v for k, v in content["temperature"].items() if k != "noise_end"}
    if not recipe.routes.standardize:  # as before there was the key
        content["routes"] = {k: v for k, v in content["routes"].items() if k != "standardize"}
    return RunIdentity(recipe=content, data=data)


def fingerprint(recipe: Recipe, data: str) -> str:
    """`RunIdentity.digest` of a recipe and its samples."""
    return identify_run(recipe, data).digest


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
