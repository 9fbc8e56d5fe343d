"""The published package's interface (omni_moe), by our operators: its tests and models run with the import swapped.

    from moescope.torch.published import OmniMoE, OmniMoEConfig, triton_omni_expert_func, triton_omni_mlp_func, triton_omni_router_func
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from moescope import _library as lib
from moescope.torch import functional, modules


@dataclass
class OmniMoEConfig:
    hidden_size: int
    intermediate_size: int
    hidden_act: str
    num_experts: int
    num_experts_per_token: int


class OmniMoE(modules.OmniMoE):
    """The module of that name, made of its configuration."""

    def __init__(self, config: OmniMoEConfig):
        super().__init__(config.hidden_size, config.intermediate_size, config.num_experts, config.num_experts_per_token,
                         config.hidden_act)

    def forward(self, hidden_states: Tensor, **_ignored: Any) -> Any:  # type: ignore[override]
        return super().forward(hidden_states)


def triton_omni_expert_func(x: Tensor, up_weight: Tensor, down_weight: Tensor, routing_weights: Tensor, indices: Tensor) -> Tensor:
    """[L, d] of x [L, d], up_weight = W and down_weight = V [N, d], routing_weights and indices [L, K]; silu."""
    return functional.experts(x, up_weight, down_weight, indices, routing_weights)


def triton_omni_router_func(router_logits_x: Tensor, router_logits_y: Tensor, num_expert_sqrt: int,
                            num_experts_per_token: int) -> tuple[Tensor, Tensor]:
    """Scores [L, K], the sums as they are, falling and in the inputs' dtype, and indices int32 = ix * num_expert_sqrt + iy."""
    for name, logits in (("router_logits_x", router_logits_x), ("router_logits_y", router_logits_y)):
        if logits.shape[-1] != num_expert_sqrt:
            raise lib.MoescopeValueError(f"{name}: shape {list(logits.shape)} must be [L, {num_expert_sqrt}]")
    found = functional.select(router_logits_x, router_logits_y, num_experts_per_token, gates="score", marginals="as_given")
    return found.gates.to(router_logits_x.dtype), found.ids


def triton_omni_mlp_func(x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor) -> Tensor:
    """(silu(x gate^T) * (x up^T)) down^T, [L, d]; gate_weight and up_weight [f, d], down_weight [d, f]."""
    return functional.mlp(x, gate_weight, up_weight, down_weight)


__all__ = ["OmniMoE", "OmniMoEConfig", "triton_omni_expert_func", "triton_omni_mlp_func", "triton_omni_router_func"]
