"""Who wants to know a module's routing."""
from __future__ import annotations

from typing import Callable

from torch import Tensor

RoutingHook = Callable[[Tensor, Tensor, Tensor], None]


class RoutingHooks:
    """Of a module that routes: hooks that are called with tokens [L, d], ids [L, K] and gates [L, K] of every forward."""

    _routing_hooks: tuple[RoutingHook, ...] = ()

    def register_routing_hook(self, hook: RoutingHook) -> Callable[[], None]:
        """Returns what takes the hook away again."""
        self._routing_hooks = (*self._routing_hooks, hook)

        def remove() -> None:
            self._routing_hooks = tuple(one for one in self._routing_hooks if one is not hook)

        return remove

    def tell_routing(self, tokens: Tensor, ids: Tensor, gates: Tensor) -> None:
        for hook in self._routing_hooks:
            hook(tokens, ids, gates)
