"""OmniMoE as a module, with the names of the published one: a state dict goes either way."""
from __future__ import annotations

import math
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moescope import _library as lib
from moescope.torch import functional
from moescope.torch.hooks import RoutingHooks


class OmniMoE(RoutingHooks, nn.Module):
    """A layer of N atomic experts on a square grid, K a token, beside a shared MLP.

    hidden_size d, intermediate_size f of the shared MLP (0: none), num_experts N (a square), num_experts_per_token K.
    hidden_act: "silu", "gelu" (erf) or "relu". gates: "probability" as published, or "softmax" over the selected.
    exact_memory: as in layer_output(), for training.
    router_norm: batch norm of the router's logits, as published; in training it needs two tokens or more.

    Parameters and buffers: gate_proj, up_proj, down_proj (shared MLP), router_gate_x, router_gate_y, router_norm_x,
    router_norm_y, up_embed (W), down_embed (V), as the published OmniMoE has them. The router is computed in float32 (float64
    beside float64) under autocast.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, num_experts: int, num_experts_per_token: int,
                 hidden_act: str = "silu", *, gates: str = "probability", router_norm: bool = True, exact_memory: bool = False,
                 device: Optional[Union[torch.device, str]] = None, dtype: Optional[torch.dtype] = None):
        super().__init__()
        side = math.isqrt(max(num_experts, 0))
        if num_experts < 1 or side * side != num_experts:
            raise lib.MoescopeValueError(f"num_experts: {num_experts} must be a square")
        if not 1 <= num_experts_per_token <= num_experts:
            raise lib.MoescopeValueError(f"num_experts_per_token: {num_experts_per_token} must be in [1, {num_experts}]")
        lib.code(lib.ACTIVATIONS, "hidden_act", hidden_act)
        if gates not in ("probability", "softmax"):
            raise lib.MoescopeValueError(f"gates: {gates!r} must be 'probability' or 'softmax'")
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.num_experts = num_experts
        self.num_expert_sqrt = side
        self.top_k = num_experts_per_token
        self.gates = gates
        self.exact_memory = exact_memory
        if intermediate_size > 0:
            self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False, **made)
            self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False, **made)
            self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False, **made)
        self.router_gate_x = nn.Linear(hidden_size, side, bias=False, **made)
        self.router_gate_y = nn.Linear(hidden_size, side, bias=False, **made)
        self.router_norm_x = nn.BatchNorm1d(side, affine=False, **made) if router_norm else nn.Identity()
        self.router_norm_y = nn.BatchNorm1d(side, affine=False, **made) if router_norm else nn.Identity()
        self.up_embed = nn.Embedding(num_experts, hidden_size, **made)
        self.down_embed = nn.Embedding(num_experts, hidden_size, **made)
        self._expert_bound: Optional[Tensor] = None
        self.reset_experts()

    @classmethod
    def from_config(cls, config: Any, **options: Any) -> "OmniMoE":
        """Of an object with the published configuration's fields: hidden_size, intermediate_size, hidden_act, num_experts,
        num_experts_per_token."""
        return cls(config.hidden_size, config.intermediate_size, config.num_experts, config.num_experts_per_token, config.hidden_act,
                   **options)

    def reset_experts(self) -> None:
        """W and V normal with deviation d^-1/2: a sum of K gated terms then starts small."""
        for weight in (self.up_embed.weight, self.down_embed.weight):
            nn.init.normal_(weight, std=self.hidden_size**-0.5)

    def freeze_experts(self, frozen: bool = True) -> None:
        """W and V stay as they are from now on: without gradients a GPU then need not read them once more in every call for the bound
        that it scales sums by. Call it again after they have changed, or with False: outputs would be wrong otherwise."""
        self._expert_bound = functional.expert_bound(self.up_embed.weight, self.down_embed.weight) if frozen else None

    def extra_repr(self) -> str:
        return (f"hidden_size={self.hidden_size}, intermediate_size={self.intermediate_size}, num_experts={self.num_experts}, "
                f"num_experts_per_token={self.top_k}, hidden_act={self.hidden_act!r}, gates={self.gates!r}")

    def router_logits(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """What the softmax of rows and of columns reads: [L, sqrt N] each, of hidden_states [L, d]."""
        if not torch.is_autocast_enabled(hidden_states.device.type):
            return (self.router_norm_x(self.router_gate_x(hidden_states)), self.router_norm_y(self.router_gate_y(hidden_states)))
        with torch.autocast(hidden_states.device.type, enabled=False):
            exact = hidden_states.to(torch.promote_types(self.router_gate_x.weight.dtype, torch.float32))
            rows = F.linear(exact, self.router_gate_x.weight.to(exact.dtype))
            cols = F.linear(exact, self.router_gate_y.weight.to(exact.dtype))
            return self.router_norm_x(rows), self.router_norm_y(cols)

    def forward(self, hidden_states: Tensor, return_routing: bool = False) -> Union[Tensor, functional.LayerOutput]:
        """y of the shape of hidden_states [..., d]; with return_routing also ids and gates [..., K]."""
        tokens = hidden_states.reshape(-1, self.hidden_size)
        row_logits, col_logits = self.router_logits(tokens)
        shared = None
        if self.intermediate_size > 0:
            shared = (self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
        trains = torch.is_grad_enabled()
        if not return_routing and not self._routing_hooks and (tokens.is_cuda or not trains):
            bound = None if trains else self._expert_bound  # weights that train do not keep theirs
            if bound is not None and bound.device != tokens.device:
                bound = None  # the module has moved
            y = functional.layer_output(tokens, row_logits, col_logits, self.up_embed.weight, self.down_embed.weight, self.top_k,
                                        shared=shared, gates=self.gates, activation=self.hidden_act, expert_bound=bound,
                                        exact_memory=self.exact_memory)
            return y.reshape(*hidden_states.shape[:-1], self.hidden_size)
        made = functional.layer(tokens, row_logits, col_logits, self.up_embed.weight, self.down_embed.weight, self.top_k, shared=shared,
                                gates=self.gates, activation=self.hidden_act)
        self.tell_routing(tokens, made.ids, made.gates)
        leading = hidden_states.shape[:-1]
        y = made.y.reshape(*leading, self.hidden_size)
        if not return_routing:
            return y
        return functional.LayerOutput(y, made.ids.reshape(*leading, self.top_k), made.gates.reshape(*leading, self.top_k))
