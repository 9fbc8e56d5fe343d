"""The operators as functions of tensors with any leading extents, with autocast and with what types they need.

x [..., d] and weights are float32, float64 or bfloat16, of one type; logits, gates and scores are float32 (float64 beside
float64) and are converted where they are not. Under autocast x and weights become bfloat16, and logits float32. Gradients go
through x, weights, logits and gates; ids have none. Errors are MoescopeError (also ValueError) naming argument and value.
"""
from __future__ import annotations

from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from moescope import _library as lib
from moescope.torch import _ops


class Selection(NamedTuple):
    """K experts of every token, by falling score, equal scores by rising id."""

    ids: Tensor  #: int32 [..., K], id = row * Nc + column
    gates: Tensor  #: [..., K]
    scores: Tensor  #: [..., K]; not differentiable, gates="score" gives those that are


class LayerOutput(NamedTuple):
    y: Tensor  #: [..., d]
    ids: Tensor  #: int32 [..., K]
    gates: Tensor  #: [..., K]; not differentiable


def _under_autocast(x: Tensor) -> Optional[torch.dtype]:
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return None
    dtype = torch.get_autocast_dtype(kind)
    if dtype == torch.float16:
        raise lib.MoescopeValueError(f"autocast: {dtype} must be torch.bfloat16: torch.autocast({kind!r}, dtype=torch.bfloat16)")
    return dtype


def _cast(x: Tensor, *weights: Optional[Tensor]) -> list[Any]:
    dtype = _under_autocast(x)
    return [x, *weights] if dtype is None else [one if one is None else one.to(dtype) for one in (x, *weights)]


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


def _of(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _shaped(tensor: Tensor, *extents: int) -> Tensor:
    return tensor if len(extents) == 2 else tensor.reshape(extents)


# What says whether someone stands between a call and its kernel. Names of PyTorch's own use: where one is gone, every call goes
# through the dispatcher.
_asked = [getattr(torch._C, "_len_torch_dispatch_stack", None), getattr(torch._C, "_get_tracing_state", None),
          getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)]
_PLAIN = (Tensor, torch.nn.Parameter)


def _alone(arguments: tuple) -> bool:
    """Whether a kernel may be called as it is: plain tensors, nothing to record, no mode and no transformation."""
    if torch.compiler.is_compiling() or None in _asked or any(one() for one in _asked):
        return False
    tensors = [one for one in arguments if isinstance(one, Tensor)]
    if not (tensors[0].is_cuda or tensors[0].is_cpu) or not all(type(one) in _PLAIN for one in tensors):
        return False
    return not (torch.is_grad_enabled() and any(one.requires_grad for one in tensors))


def _run(operator: Any, kernel: Any, *arguments: Any) -> Any:
    """The operator, or its kernel where that makes no difference: the dispatcher takes half of a call to a kernel in Python."""
    return kernel(*arguments) if _alone(arguments) else operator(*arguments)


def select(row_logits: Tensor, col_logits: Tensor, top_k: int, *, gates: str = "softmax", marginals: str = "log_softmax") -> Selection:
    """The exact top K of the N = Nr Nc sums of row_logits [..., Nr] and col_logits [..., Nc], without forming them.

    gates: "softmax" over the selected, "probability" (exp of the score), "relu" or "score". marginals: "log_softmax" of the
    logits, or "as_given". Logits must be finite.
    """
    dtype = _ops.compute_dtype(row_logits.dtype)
    leading = row_logits.shape[:-1]
    weights, ids, scores = _run(torch.ops.moescope.select.default, _ops.select_kernel, _of(_rows(row_logits), dtype),
                                _of(_rows(col_logits), dtype), top_k, gates, marginals)
    return Selection(*(_shaped(one, *leading, top_k) for one in (ids, weights, scores)))


def experts(x: Tensor, w_in: Tensor, w_out: Tensor, ids: Tensor, gates: Tensor, *, activation: str = "silu") -> Tensor:
    """y [..., d]: of every token the sum over its K experts of gate * act(x . w_in[id]) * w_out[id].

    x [..., d], w_in and w_out [N, d], ids (int32 or int64) and gates [..., K]. activation: "silu", "gelu" (erf) or "relu". An id
    that stands there twice counts twice.
    """
    x, w_in, w_out = _cast(x, w_in, w_out)
    y = _run(torch.ops.moescope.experts.default, _ops.experts_kernel, _rows(x), w_in, w_out, _rows(ids),
             _of(_rows(gates), _ops.compute_dtype(x.dtype)), activation)
    return _shaped(y, *x.shape)


def mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, *, activation: str = "silu") -> Tensor:
    """(act(x gate^T) * (x up^T)) down^T, [..., d]. gate and up [f, d], down [d, f]."""
    x, gate, up, down = _cast(x, gate, up, down)
    return _shaped(_run(torch.ops.moescope.mlp.default, _ops.mlp_kernel, _rows(x), gate, up, down, activation), *x.shape)


def layer(x: Tensor, row_logits: Tensor, col_logits: Tensor, w_in: Tensor, w_out: Tensor, top_k: int, *,
          shared: Optional[tuple[Tensor, Tensor, Tensor]] = None, gates: str = "softmax", activation: str = "silu") -> LayerOutput:
    """The fused layer: select(), experts(), and mlp() of `shared` = (gate, up, down) added.

    x [..., d], row_logits [..., Nr], col_logits [..., Nc], w_in and w_out [Nr Nc, d]. gates: "softmax" or "probability".
    """
    x, w_in, w_out, gate, up, down = _cast(x, w_in, w_out, *(shared or (None, None, None)))
    dtype = _ops.compute_dtype(x.dtype)
    y, ids, weights = _run(torch.ops.moescope.layer.default, _ops.layer_kernel, _rows(x), _of(_rows(row_logits), dtype),
                           _of(_rows(col_logits), dtype), w_in, w_out, gate, up, down, top_k, gates, activation)
    leading = x.shape[:-1]
    return LayerOutput(_shaped(y, *x.shape), _shaped(ids, *leading, top_k), _shaped(weights, *leading, top_k))


def layer_output(x: Tensor, row_logits: Tensor, col_logits: Tensor, w_in: Tensor, w_out: Tensor, top_k: int, *,
                 shared: Optional[tuple[Tensor, Tensor, Tensor]] = None, gates: str = "softmax", activation: str = "silu",
                 expert_bound: Optional[Tensor] = None) -> Tensor:
    """y [..., d] of layer() alone: with many tokens a GPU then lists no pairs, forward or backward. On a CPU its backward selects
    once more, which layer() does not.

    expert_bound: that of expert_bound(w_in, w_out) where the weights do not change, which saves reading them once more. One that is
    too small makes wrong sums.
    """
    x, w_in, w_out, gate, up, down = _cast(x, w_in, w_out, *(shared or (None, None, None)))
    dtype = _ops.compute_dtype(x.dtype)
    y = _run(torch.ops.moescope.layer_output.default, _ops.layer_output_kernel, _rows(x), _of(_rows(row_logits), dtype),
             _of(_rows(col_logits), dtype), w_in, w_out, gate, up, down, expert_bound, top_k, gates, activation)
    return _shaped(y, *x.shape)


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
