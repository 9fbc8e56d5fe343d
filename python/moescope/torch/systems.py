"""The systems that OmniMoE is compared with, as modules to train beside it.

Product-key systems select with our operator, and PEER computes its experts with it. FFN experts and PKM's values are plain
PyTorch: there is no kernel of ours for them here. FFN experts take a loop over the experts that have tokens, which
torch.compile breaks at.
"""
from __future__ import annotations

import math
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moescope import _library as lib
from moescope.torch import _ops, functional
from moescope.torch.hooks import RoutingHooks

_ACTIVATIONS: dict[str, Any] = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


def _require(name: str, value: int, least: int, most: Optional[int] = None) -> None:
    if value < least or (most is not None and value > most):
        raise lib.MoescopeValueError(f"{name}: {value} must be " + (f"at least {least}" if most is None else f"in [{least}, {most}]"))


class _ProductKeys(nn.Module):
    """Queries of every head against two sets of sqrt N keys, and the K best sums of each head."""

    def __init__(self, hidden_size: int, num_experts: int, heads: int, top_k: int, key_size: int, gates: str, made: dict):
        super().__init__()
        side = math.isqrt(max(num_experts, 0))
        if num_experts < 1 or side * side != num_experts:
            raise lib.MoescopeValueError(f"num_experts: {num_experts} must be a square")
        _require("heads", heads, 1)
        _require("num_experts_per_token", top_k, 1)
        if top_k % heads != 0:
            raise lib.MoescopeValueError(f"num_experts_per_token: {top_k} must be a multiple of heads {heads}")
        _require("num_experts_per_token / heads", top_k // heads, 1, num_experts)
        _require("key_size", key_size, 1)
        self.heads, self.top_k, self.key_size, self.gates = heads, top_k, key_size, gates
        self.queries = nn.Linear(hidden_size, heads * 2 * key_size, bias=False, **made)
        self.keys = nn.Parameter(torch.empty(heads, 2, side, key_size, **made))
        nn.init.normal_(self.keys, std=key_size**-0.5)

    def forward(self, tokens: Tensor) -> functional.Selection:
        """tokens [L, d]: ids and gates [L, K], head by head."""
        queries = self.queries(tokens).unflatten(-1, (self.heads, 2, self.key_size))
        scores = torch.einsum("lhse,hsne->lhsn", queries, self.keys)
        found = functional.select(scores[:, :, 0], scores[:, :, 1], self.top_k // self.heads, gates=self.gates, marginals="as_given")
        return functional.Selection(*(one.flatten(1) for one in found))


class PEER(RoutingHooks, nn.Module):
    """Parameter-efficient expert retrieval: `heads` queries a token, each K / heads experts of one neuron (W, V as OmniMoE's).

    num_experts_per_token K is over all heads. gates: "softmax" over a head's experts, or "relu". hidden_act as in OmniMoE.
    """

    def __init__(self, hidden_size: int, num_experts: int, num_experts_per_token: int, heads: int = 8, key_size: int = 128,
                 hidden_act: str = "gelu", *, gates: str = "softmax", device: Optional[Union[torch.device, str]] = None,
                 dtype: Optional[torch.dtype] = None):
        super().__init__()
        lib.code(lib.ACTIVATIONS, "hidden_act", hidden_act)
        lib.code({"softmax": 0, "relu": 2}, "gates", gates)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.hidden_act = hidden_act
        self.router = _ProductKeys(hidden_size, num_experts, heads, num_experts_per_token, key_size, gates, made)
        self.up_embed = nn.Embedding(num_experts, hidden_size, **made)
        self.down_embed = nn.Embedding(num_experts, hidden_size, **made)
        for weight in (self.up_embed.weight, self.down_embed.weight):
            nn.init.normal_(weight, std=hidden_size**-0.5)

    def forward(self, hidden_states: Tensor, return_routing: bool = False):
        """y of the shape of hidden_states [..., d]; with return_routing also ids and gates [..., K]."""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        found = self.router(tokens)
        self.tell_routing(tokens, found.ids, found.gates)
        y = functional.experts(tokens, self.up_embed.weight, self.down_embed.weight, found.ids, found.gates, activation=self.hidden_act)
        return _with_routing(y, found.ids, found.gates, hidden_states, return_routing)


class PKM(RoutingHooks, nn.Module):
    """Product-key memory: as PEER, but an expert is a value of d numbers, summed by its gate. Values are plain PyTorch."""

    def __init__(self, hidden_size: int, num_experts: int, num_experts_per_token: int, heads: int = 4, key_size: int = 128, *,
                 device: Optional[Union[torch.device, str]] = None, dtype: Optional[torch.dtype] = None):
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.router = _ProductKeys(hidden_size, num_experts, heads, num_experts_per_token, key_size, "softmax", made)
        self.values = nn.Embedding(num_experts, hidden_size, **made)
        nn.init.normal_(self.values.weight, std=hidden_size**-0.5)

    def forward(self, hidden_states: Tensor, return_routing: bool = False):
        """y of the shape of hidden_states [..., d]; with return_routing also ids and gates [..., K]."""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        found = self.router(tokens)
        self.tell_routing(tokens, found.ids, found.gates)
        values = self.values.weight
        y = F.embedding_bag(found.ids.long(), values, per_sample_weights=found.gates.to(values.dtype), mode="sum")
        return _with_routing(y, found.ids, found.gates, hidden_states, return_routing)


class GShard(RoutingHooks, nn.Module):
    """N gated FFN experts of width expert_size behind a flat router, K a token. gates: "softmax" over the K selected, or
    "probability" (softmax over all N). Experts are plain PyTorch."""

    def __init__(self, hidden_size: int, expert_size: int, num_experts: int, num_experts_per_token: int = 2, hidden_act: str = "silu",
                 *, gates: str = "softmax", device: Optional[Union[torch.device, str]] = None, dtype: Optional[torch.dtype] = None):
        super().__init__()
        _require("expert_size", expert_size, 1)
        _require("num_experts", num_experts, 1)
        _require("num_experts_per_token", num_experts_per_token, 1, num_experts)
        lib.code(lib.ACTIVATIONS, "hidden_act", hidden_act)
        lib.code({"softmax": 0, "probability": 1}, "gates", gates)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.top_k, self.gates, self.hidden_act = num_experts_per_token, gates, hidden_act
        self.router = nn.Linear(hidden_size, num_experts, bias=False, **made)
        self.gate = nn.Parameter(torch.empty(num_experts, expert_size, hidden_size, **made))
        self.up = nn.Parameter(torch.empty(num_experts, expert_size, hidden_size, **made))
        self.down = nn.Parameter(torch.empty(num_experts, hidden_size, expert_size, **made))
        for weight in (self.gate, self.up, self.down):
            nn.init.normal_(weight, std=weight.shape[-1]**-0.5)

    def _shared(self, tokens: Tensor) -> Optional[Tensor]:
        return None

    def forward(self, hidden_states: Tensor, return_routing: bool = False):
        """y of the shape of hidden_states [..., d]; with return_routing also ids and gates [..., K]."""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits = self.router(tokens).to(_ops.compute_dtype(tokens.dtype))
        values, ids = torch.topk(logits, self.top_k, dim=-1)
        gates = values.softmax(-1) if self.gates == "softmax" else logits.softmax(-1).gather(-1, ids)
        self.tell_routing(tokens, ids, gates)
        shared = self._shared(tokens)
        y = torch.zeros_like(tokens) if shared is None else shared
        act = _ACTIVATIONS[self.hidden_act]
        flat_ids, order = ids.reshape(-1).sort(stable=True)
        counts = torch.bincount(flat_ids, minlength=len(self.gate)).tolist()
        for expert, pairs in enumerate(order.split(counts)):
            if len(pairs) == 0:
                continue
            rows = pairs // self.top_k
            x = tokens[rows]
            hidden = act(F.linear(x, self.gate[expert])) * F.linear(x, self.up[expert])
            weighted = F.linear(hidden, self.down[expert]) * gates.reshape(-1)[pairs, None].to(tokens.dtype)
            y = y.index_add(0, rows, weighted.to(y.dtype))
        return _with_routing(y, ids, gates, hidden_states, return_routing)


class DeepSeekMoE(GShard):
    """GShard's experts with a shared one of width shared_size beside them; gates are probabilities over all N by default."""

    def __init__(self, hidden_size: int, expert_size: int, shared_size: int, num_experts: int, num_experts_per_token: int,
                 hidden_act: str = "silu", *, gates: str = "probability", device: Optional[Union[torch.device, str]] = None,
                 dtype: Optional[torch.dtype] = None):
        super().__init__(hidden_size, expert_size, num_experts, num_experts_per_token, hidden_act, gates=gates, device=device, dtype=dtype)
        _require("shared_size", shared_size, 1)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.gate_proj = nn.Linear(hidden_size, shared_size, bias=False, **made)
        self.up_proj = nn.Linear(hidden_size, shared_size, bias=False, **made)
        self.down_proj = nn.Linear(shared_size, hidden_size, bias=False, **made)

    def _shared(self, tokens: Tensor) -> Tensor:
        return functional.mlp(tokens, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight, activation=self.hidden_act)


def _with_routing(y: Tensor, ids: Tensor, gates: Tensor, like: Tensor, return_routing: bool):
    y = y.reshape(like.shape)
    if not return_routing:
        return y
    leading = like.shape[:-1]
    return functional.LayerOutput(y, ids.reshape(*leading, -1), gates.reshape(*leading, -1))
