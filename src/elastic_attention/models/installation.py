"""What attaching puts on a model, and how it comes off again: attention, hooks, `generate`, and the handle's mark."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ElasticAttentionError
from .attention_function import IMPLEMENTATION, register
from .families import find_attention_modules
from .generation import wrap_generate

if TYPE_CHECKING:
    from .handle import Handle

MARK = "_elastic_handle"


class Installation:
    """A handle's things on its model; they are put there at once.

    Args:
        handle: whose model it is.
        before_forward, after_forward: hooks of the model's body.
        before_attention: hook of every attention module that is routed.
    """

    def __init__(
        self,
        handle: "Handle",
        before_forward: Callable[..., Any],
        after_forward: Callable[..., Any],
        before_attention: Callable[..., Any],
    ) -> None:
        register()
        self._model = model = handle.model
        self._base_implementation = model.config._attn_implementation
        model.set_attn_implementation(IMPLEMENTATION)
        body = model.base_model
        self._hooks = [
            body.register_forward_pre_hook(before_forward, with_kwargs=True),
            body.register_forward_hook(after_forward),
        ]
        for module in find_attention_modules(model).values():
            self._hooks.append(module.register_forward_pre_hook(before_attention, with_kwargs=True))
        wrap_generate(handle)
        setattr(model, MARK, handle)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A model that another process pickled: transformers must know its attention here too."""
        self.__dict__.update(state)
        register()

    def remove(self) -> None:
        """Restore the model bit for bit. Calling it again does nothing."""
        if not self._hooks:
            return
        while self._hooks:
            self._hooks.pop().remove()
        del self._model.generate
        delattr(self._model, MARK)
        self._model.set_attn_implementation(self._base_implementation)

    def require(self, method: str) -> None:
        """Refuse `method` of a handle that was detached: it would do nothing, or disturb the handle that came after.

        Raises:
            ElasticAttentionError: `remove` has been called.
        """
        if not self._hooks:
            raise ElasticAttentionError(
                f"This handle was detached from its {type(self._model).__name__}, so {method} cannot reach the model; "
                "use the handle that attach(model, …) returns now."
            )

    def require_attention(self) -> None:
        """Refuse a forward that would not route: the hooks are there, but somebody took the attention away.

        Raises:
            ElasticAttentionError: the model's attention implementation was changed after `attach`.
        """
        found = self._model.config._attn_implementation
        if found != IMPLEMENTATION:
            raise ElasticAttentionError(
                f"The attention of this {type(self._model).__name__} was set to {found!r} while routers are attached; "
                "detach them first, or use handle.disabled() to run the base model."
            )

    def switch(self, is_routed: bool) -> None:
        """Give the model routed attention or its own; nothing changes once it was removed."""
        if self._hooks:
            self._model.set_attn_implementation(IMPLEMENTATION if is_routed else self._base_implementation)
