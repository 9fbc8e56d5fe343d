"""The operators as functions of tensors with any leading extents, with autocast and with what types they need.

x [..., d] and weights are float32, float64 or bfloat16, of one type; logits, gates and scores are float32 (float64 beside
float64) and are converted where they are not. Under autocast x and weights become bfloat16, and logits float32. Gradients go
through x, weights, logits and gates; ids have none. Errors are MoescopeError (also ValueError) naming argument and value.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from moescope import _library as lib
from moescope.torch import _direct, _ops
from moescope.torch._calls import quick

_operators = torch.ops.moescope
_SELECT = _operators.select.default, _direct.select, _ops.select_kernel
_EXPERTS = _operators.experts.default, _direct.experts, _ops.experts_kernel
_MLP = _operators.mlp.default, _direct.mlp, _ops.mlp_kernel
_LAYER = _operators.layer.default, _direct.layer, _ops.layer_kernel
_LAYER_OUTPUT = _operators.layer_output.default, _direct.layer_output, _ops.layer_output_kernel
_LAYER_OUTPUT_EXACT = _operators.layer_output.default, _direct.layer_output_exact, _ops.layer_output_kernel


class Selection(NamedTuple):
    """K experts of every token, by falling score, equal scores by rising id."""

    ids: Tensor  #: int32 [..., K], id = row * Nc + column
    gates: Tensor  #: [..., K]
    scores: Tensor  #: [..., K]; not differentiable, gates="score" gives those that are


class LayerOutput(NamedTuple):
    y: Tensor  #: [..., d]
    ids: Tensor  #: int32 [..., K]
    gates: Tensor  #: [..., K]; not differentiable


_compiling = torch.compiler.is_compiling  # asked first: what is asked after it the compiler cannot trace
_any_autocast = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def _under_autocast(x: Tensor) -> Optional[torch.dtype]:
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return None
    dtype = torch.get_autocast_dtype(kind)
    if dtype == torch.float16:
        raise lib.MoescopeValueError(f"autocast: {dtype} must be torch.bfloat16: torch.autocast({kind!r}, dtype=torch.bfloat16)")
    return dtype


def _cast(x: Tensor, *weights: Optional[Tensor]) -> list[Any]:
    """x and weights as autocast wants them."""
    dtype = _under_autocast(x)
    return [x, *weights] if dtype is None else [one if one is None else one.to(dtype) for one in (x, *weights)]


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


def _of(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _run(roads: tuple, tensors: Sequence[Tensor], *arguments: Any) -> Any:
    """One of `roads`: an operator, autograd's function around its kernel, or the kernel. The dispatcher takes most of a call to a kernel
    in Python. tensors: those of the arguments that there are."""
    return (roads[0] if _compiling() else _direct.road(tensors, *roads))(*arguments)


def select(row_logits: Tensor, col_logits: Tensor, top_k: int, *, gates: str = "softmax", marginals: str = "log_softmax") -> Selection:
    """The exact top K of the N = Nr Nc sums of row_logits [..., Nr] and col_logits [..., Nc], without forming them.

    gates: "softmax" over the selected, "probability" (exp of the score), "relu" or "score". marginals: "log_softmax" of the
    logits, or "as_given". Logits must be finite.
    """
    if not _compiling():
        made = quick.select_road(row_logits, col_logits, top_k, gates, marginals)
        if made is not None:
            return Selection(made[1], made[0], made[2])
    if row_logits.dim() != 2:
        found = select(_rows(row_logits), _rows(col_logits), top_k, gates=gates, marginals=marginals)
        return Selection(*(one.reshape(*row_logits.shape[:-1], top_k) for one in found))
    dtype = _ops.compute_dtype(row_logits.dtype)
    logits = _of(row_logits, dtype), _of(col_logits, dtype)
    weights, ids, scores = _run(_SELECT, logits, *logits, top_k, gates, marginals)
    return Selection(ids, weights, scores)


def experts(x: Tensor, w_in: Tensor, w_out: Tensor, ids: Tensor, gates: Tensor, *, activation: str = "silu") -> Tensor:
    """y [..., d]: of every token the sum over its K experts of gate * act(x . w_in[id]) * w_out[id].

    x [..., d], w_in and w_out [N, d], ids (int32 or int64) and gates [..., K]. activation: "silu", "gelu" (erf) or "relu". An id
    that stands there twice counts twice.
    """
    if not _compiling():
        made = quick.experts_road(x, w_in, w_out, ids, gates, activation)
        if made is not None:
            return made
    if x.dim() != 2:
        return experts(_rows(x), w_in, w_out, _rows(ids), _rows(gates), activation=activation).reshape(x.shape)
    if _compiling() or _any_autocast():
        x, w_in, w_out = _cast(x, w_in, w_out)
    tensors = x, w_in, w_out, ids, _of(gates, _ops.compute_dtype(x.dtype))
    return _run(_EXPERTS, tensors, *tensors, activation)


def mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, *, activation: str = "silu") -> Tensor:
    """(act(x gate^T) * (x up^T)) down^T, [..., d]. gate and up [f, d], down [d, f]."""
    if not _compiling():
        made = quick.mlp_road(x, gate, up, down, activation)
        if made is not None:
            return made
    if x.dim() != 2:
        return mlp(_rows(x), gate, up, down, activation=activation).reshape(x.shape)
    if _compiling() or _any_autocast():
        x, gate, up, down = _cast(x, gate, up, down)
    return _run(_MLP, (x, gate, up, down), x, gate, up, down, activation)


def layer(x: Tensor, row_logits: Tensor, col_logits: Tensor, w_in: Tensor, w_out: Tensor, top_k: int, *,
          shared: Optional[tuple[Tensor, Tensor, Tensor]] = None, gates: str = "softmax", activation: str = "silu") -> LayerOutput:
    """The fused layer: select(), experts(), and mlp() of `shared` = (gate, up, down) added.

    x [..., d], row_logits [..., Nr], col_logits [..., Nc], w_in and w_out [Nr Nc, d]. gates: "softmax" or "probability".
    """
    gate, up, down = shared or (None, None, None)
    if not _compiling():
        found = quick.layer_road(x, row_logits, col_logits, w_in, w_out, gate, up, down, top_k, gates, activation)
        if found is not None:
            return LayerOutput(*found)
    if x.dim() != 2:
        made = layer(_rows(x), _rows(row_logits), _rows(col_logits), w_in, w_out, top_k, shared=shared, gates=gates, activation=activation)
        leading = x.shape[:-1]
        return LayerOutput(made.y.reshape(x.shape), made.ids.reshape(*leading, top_k), made.gates.reshape(*leading, top_k))
    if _compiling() or _any_autocast():
        x, w_in, w_out, gate, up, down = _cast(x, w_in, w_out, gate, up, down)
    dtype = _ops.compute_dtype(x.dtype)
    given = x, _of(row_logits, dtype), _of(col_logits, dtype), w_in, w_out, gate, up, down
    y, ids, weights = _run(_LAYER, given if gate is not None else given[:5], *given, top_k, gates, activation)
    return LayerOutput(y, ids, weights)


def layer_output(x: Tensor, row_logits: Tensor, col_logits: Tensor, w_in: Tensor, w_out: Tensor, top_k: int, *,
                 shared: Optional[tuple[Tensor, Tensor, Tensor]] = None, gates: str = "softmax", activation: str = "silu",
                 expert_bound: Optional[Tensor] = None, exact_memory: bool = False) -> Tensor:
    """y [..., d] of layer() alone: with many tokens a GPU then lists no pairs, forward or backward. On a CPU its backward selects
    once more, which layer() does not.

    expert_bound: that of expert_bound(w_in, w_out) where the weights do not change, which saves reading them once more. One that is
    too small makes wrong sums.

    exact_memory: on a GPU the backward takes memory for what the forward selected, about half of all that such a batch can select. For
    that it waits until the forward has run, where it has not yet. It makes no difference in a graph and in torch.compile.
    """
    gate, up, down = shared or (None, None, None)
    if not _compiling():
        made = None if exact_memory else quick.layer_output_road(x, row_logits, col_logits, w_in, w_out, gate, up, down, expert_bound, top_k,
                                                                 gates, activation)
        if made is not None:
            return made
    if x.dim() != 2:
        return layer_output(_rows(x), _rows(row_logits), _rows(col_logits), w_in, w_out, top_k, shared=shared, gates=gates,
                            activation=activation, expert_bound=expert_bound, exact_memory=exact_memory).reshape(x.shape)
    if _compiling() or _any_autocast():
        x, w_in, w_out, gate, up, down = _cast(x, w_in, w_out, gate, up, down)
    dtype = _ops.compute_dtype(x.dtype)
    given = x, _of(row_logits, dtype), _of(col_logits, dtype), w_in, w_out, gate, up, down
    roads = _LAYER_OUTPUT_EXACT if exact_memory else _LAYER_OUTPUT
    return _run(roads, given if gate is not None else given[:5], *given, expert_bound, top_k, gates, activation)


@torch.no_grad()
def expert_bound(w_in: Tensor, w_out: Tensor) -> Tensor:
    """Float32 [1]: max over experts of |w_in|_2 |w_out|_inf, which no expert's output exceeds for |x|_2 = 1. Plain PyTorch."""
    largest = torch.zeros(1, dtype=torch.float32, device=w_in.device)
    for w, v in zip(w_in.split(8192), w_out.split(8192)):
        bound = w.float().norm(dim=1) * v.float().abs().amax(1)
        largest = torch.maximum(largest, bound.max())
    return largest


def balance_loss(row_logits: Tensor, col_logits: Tensor, ids: Tensor) -> Tensor:
    """N times the mean over tokens of r F c: r and c softmax of the logits, F the fraction of all pairs that each expert has (a
    constant). 1 when all is even. Never N numbers a token. Plain PyTorch."""
    rows, cols = _rows(row_logits).softmax(-1), _rows(col_logits).softmax(-1)
    experts_count = rows.shape[1] * cols.shape[1]
    pairs = ids.reshape(-1).long()
    loads = torch.zeros(experts_count, dtype=rows.dtype, device=rows.device).index_add_(0, pairs, torch.ones_like(pairs, dtype=rows.dtype))
    fractions = (loads / max(pairs.numel(), 1)).reshape(rows.shape[1], cols.shape[1])
    return experts_count * ((rows @ fractions) * cols).sum(-1).mean()


def z_loss(row_logits: Tensor, col_logits: Tensor) -> Tensor:
    """Mean over tokens of (logsumexp of rows + logsumexp of columns) squared. Plain PyTorch."""
    return (_rows(row_logits).logsumexp(-1) + _rows(col_logits).logsumexp(-1)).square().mean()
