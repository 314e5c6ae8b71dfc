"""Routed attention as a model of LOOM (the package loom-scope), the harness of the Elastic Attention paper.

LOOM finds models by name in `models.BENCHMARK_MAP`, and its command line knows a fixed list of names, so `register`
takes the place of one of them. LOOM pins old releases of torch and transformers: install it without dependencies.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch

from ..models.attach import attach
from .session import open_base

Entry = tuple[str, str]
"""Module and class."""


def register(models: MutableMapping[str, Entry], *, name: str = "transformers") -> None:
    """Put `LoomModel` into LOOM's `BENCHMARK_MAP` under `name`, which `--server` or `--acceleration` then means.

    Raises:
        KeyError: LOOM has no such name, so its command line would refuse it.
    """
    if name not in models:
        raise KeyError(f"LOOM knows no {name!r}; take the place of one of {', '.join(models)}.")
    models[name] = (__name__, LoomModel.__name__)


class LoomModel:
    """What LOOM calls: `deploy` once, then for every prompt `updata_params` and `generate`.

    Args:
        model_path: folder or hub id of the model.
        torch_dtype: such as "torch.bfloat16".
        adapter_path: routers; empty takes those that ship with the package.
        kwargs: what LOOM tells its serving engines; not used.
    """

    def __init__(self, model_path: str, torch_dtype: str, adapter_path: str = "", **kwargs: Any) -> None:
        self.model_path, self.torch_dtype, self.adapter_path = model_path, torch_dtype, adapter_path
        self.params_dict: dict[str, Any] = {}

    def deploy(self) -> tuple[Any, Any]:
        """The attached model and its tokenizer."""
        base = open_base(self.model_path, dtype=self.torch_dtype.removeprefix("torch."))
        attach(base.model, self.adapter_path or None)
        return base.model, base.tokenizer

    def updata_params(self, params: dict[str, Any], tokenizer: Any, enable_thinking: bool) -> dict[str, Any]:
        """LOOM's generation settings as `generate` takes them; the name is LOOM's own."""
        made = self.params_dict | params
        if "stop" in made:
            last = [tokenizer.encode(str(word), add_special_tokens=False)[-1] for word in made.pop("stop")]
            made["eos_token_id"] = [tokenizer.eos_token_id, *last]
        if "max_tokens" in made:
            made["max_new_tokens"] = made.pop("max_tokens")
        if not made.get("do_sample", True):
            made |= {"top_p": None, "temperature": None}
        return made

    def generate(self, model: Any, tokenizer: Any, input: str, params: dict[str, Any], **kwargs: Any) -> str:
        """The answer to one prompt, without what stands before "</think>"."""
        ids = torch.tensor([tokenizer.encode(input)], device=model.device)
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=tokenizer.eos_token_id, **params
            )
        answer = str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
        _, mark, behind = answer.rpartition("</think>")
        return behind.strip() if mark else answer
