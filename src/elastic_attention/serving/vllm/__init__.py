"""The plugin for vLLM: routed heads as block tables over vLLM's own attention kernels.

One flag turns it on: `--additional-config '{"elastic_attention": {}}'`, with the keys of `ServingConfig` inside.
Without the flag the plugin does nothing.
"""

import functools
from typing import Any

KEY = "elastic_attention"


def register() -> None:
    """Entry point `vllm.general_plugins`; vLLM calls it in every process, maybe several times."""
    from vllm.engine.arg_utils import EngineArgs

    make_config = EngineArgs.create_engine_config
    if getattr(make_config, "is_elastic", False):
        return

    @functools.wraps(make_config)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        if KEY in (self.additional_config or {}):
            from .arguments import complete_arguments

            complete_arguments(self)
        return make_config(self, *args, **kwargs)

    create_engine_config.is_elastic = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_engine_config
