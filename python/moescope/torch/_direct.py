"""Autograd around the kernels without the dispatcher, for functional.py where nobody stands between: plain tensors, no mode and no
transformation. The dispatcher and register_autograd take several times as long as a call itself. What they do is the same: each
function here has its operator's kernels, and under create_graph it calls the operator, whose own backward refuses."""
from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Callable

import torch
from torch import Tensor

from moescope.torch import _ops
from moescope.torch._calls import FORMS, quick

ops = torch.ops.moescope
# Names of PyTorch's own use: where one is gone, every call goes through the dispatcher.
_asked = [getattr(torch._C, "_len_torch_dispatch_stack", None), getattr(torch._C, "_is_tracing", None),
          getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)]
_KNOWN = None not in _asked
_modes, _tracing, _transformation = _asked if _KNOWN else [lambda: None] * 3  # type: ignore[misc]
_state = attrgetter("__class__", "requires_grad")
_FIXED = {(Tensor, False), (torch.nn.Parameter, False)}
_PLAIN = _FIXED | {(Tensor, True), (torch.nn.Parameter, True)}
_records = torch.is_grad_enabled


def road(tensors: Sequence[Tensor], operator: Any, direct: Any, kernel: Any) -> Any:
    """What to call of these, where nothing is being compiled: the operator, unless it makes no difference; then autograd's function
    around the kernel, or the kernel. Whether tensors are on one device the kernel finds out."""
    states = {*map(_state, tensors)}
    first = tensors[0]
    if not (_KNOWN and states <= _PLAIN and (first.is_cuda or first.is_cpu)) or _modes() or _tracing() or _transformation():  # type: ignore[misc]
        return operator
    return kernel if states <= _FIXED or not _records() else direct


def _either(operator: Any, kernel: Callable, gradient: Tensor, *arguments: Any) -> Any:
    """In a backward: the kernel, or the operator where the gradient itself is to have one or somebody stands between."""
    return road((gradient,), operator, operator, operator if torch.is_grad_enabled() else kernel)(*arguments)


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(ctx, row_logits, col_logits, *options):
        gates, ids, scores = _ops.select_kernel(row_logits, col_logits, *options)
        ctx.save_for_backward(row_logits, col_logits, ids)
        ctx.options = options[1:]
        ctx.mark_non_differentiable(ids, scores)
        return gates, ids, scores

    @staticmethod
    def backward(ctx, gates_gradient, *_others):
        made = _either(ops.select_backward.default, _ops._select_backward, gates_gradient, *ctx.saved_tensors, gates_gradient, *ctx.options)
        return *made, None, None, None


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w_in, w_out, ids, gates, activation):
        ctx.save_for_backward(x, w_in, w_out, ids, gates)
        ctx.activation = activation
        return _ops.experts_kernel(x, w_in, w_out, ids, gates, activation)

    @staticmethod
    def backward(ctx, y_gradient):
        need = ctx.needs_input_grad
        made = _either(ops.experts_backward.default, _ops._experts_backward, y_gradient, *ctx.saved_tensors, y_gradient, ctx.activation,
                       need[0], need[1], need[2], need[4])
        x, w_in, w_out, gates = (one if need[at] else None for one, at in zip(made, (0, 1, 2, 4)))
        return x, w_in, w_out, None, gates, None


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate, up, down, activation):
        ctx.save_for_backward(x, gate, up, down)
        ctx.activation = activation
        return _ops.mlp_kernel(x, gate, up, down, activation)

    @staticmethod
    def backward(ctx, y_gradient):
        need = ctx.needs_input_grad[:4]
        made = _either(ops.mlp_backward.default, _ops._mlp_backward, y_gradient, *ctx.saved_tensors, y_gradient, ctx.activation, *need)
        return *(one if wanted else None for one, wanted in zip(made, need)), None


def _layer_gradients(ctx, made) -> tuple:
    """Of x, logits, weights and the MLP's matrices, if there are those."""
    kept = [one if wanted else None for one, wanted in zip(made, ctx.want)]
    return (*kept, *[None] * (8 - len(kept)))


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, row_logits, col_logits, w_in, w_out, gate, up, down, top_k, gate_mode, activation):
        y, ids, gates = _ops.layer_kernel(x, row_logits, col_logits, w_in, w_out, gate, up, down, top_k, gate_mode, activation)
        ctx.save_for_backward(x, row_logits, col_logits, w_in, w_out, gate, up, down, ids, gates)
        ctx.options = gate_mode, activation
        ctx.mark_non_differentiable(ids, gates)
        return y, ids, gates

    @staticmethod
    def backward(ctx, y_gradient, *_others):
        saved = ctx.saved_tensors
        ctx.want = [*ctx.needs_input_grad[:5 if saved[5] is None else 8]]
        made = _either(ops.layer_backward.default, _ops._layer_backward, y_gradient, *saved, y_gradient, *ctx.options, ctx.want)
        return *_layer_gradients(ctx, made), None, None, None


class _LayerOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, row_logits, col_logits, w_in, w_out, gate, up, down, expert_bound, *options):
        ctx.save_for_backward(x, row_logits, col_logits, w_in, w_out, gate, up, down)
        ctx.options = options
        return _ops.layer_output_kernel(x, row_logits, col_logits, w_in, w_out, gate, up, down, expert_bound, *options)

    @staticmethod
    def backward(ctx, y_gradient):
        saved = ctx.saved_tensors
        ctx.want = [*ctx.needs_input_grad[:5 if saved[5] is None else 8]]
        made = _either(ops.layer_output_backward.default, _ops._layer_output_backward, y_gradient, *saved, y_gradient, *ctx.options, ctx.want)
        return *_layer_gradients(ctx, made), None, None, None, None


def _ceiling(count: int) -> int:
    """A count, or up to a sixteenth more: few sizes, so that plans and PyTorch's allocator find one again."""
    step = 1 << max(count.bit_length() - 5, 0)
    return -(-count // step) * step


class _LayerOutputExact(torch.autograd.Function):
    """_LayerOutput whose backward takes memory for what the forward selected. It waits until that forward has run."""

    @staticmethod
    def forward(ctx, x, row_logits, col_logits, w_in, w_out, gate, up, down, expert_bound, *options):
        ctx.save_for_backward(x, row_logits, col_logits, w_in, w_out, gate, up, down)
        ctx.options, ctx.counted = options, None
        if not x.is_cuda or torch.cuda.is_current_stream_capturing():
            return _ops.layer_output_kernel(x, row_logits, col_logits, w_in, w_out, gate, up, down, expert_bound, *options)
        counts = torch.empty(2, dtype=torch.int32, device=x.device)
        y = _ops.layer_output_kernel(x, row_logits, col_logits, w_in, w_out, gate, up, down, expert_bound, *options, counts)
        ctx.counts, ctx.counted = torch.empty(2, dtype=torch.int32, pin_memory=True), torch.cuda.Event()
        ctx.counts.copy_(counts, non_blocking=True)
        ctx.counted.record(torch.cuda.current_stream(x.device))
        return y

    @staticmethod
    def backward(ctx, y_gradient):
        saved = ctx.saved_tensors
        ctx.want = [*ctx.needs_input_grad[:5 if saved[5] is None else 8]]
        if torch.is_grad_enabled() or ctx.counted is None:
            made = _either(ops.layer_output_backward.default, _ops._layer_output_backward, y_gradient, *saved, y_gradient, *ctx.options,
                           ctx.want)
        else:
            ctx.counted.synchronize()
            entries, tiles = map(_ceiling, ctx.counts.tolist())
            top_k, gate_mode, activation = ctx.options
            made = _ops._layer_backward(*saved, None, None, y_gradient, gate_mode, activation, ctx.want, top_k, (entries, tiles))
        return *_layer_gradients(ctx, made), None, None, None, None


# Function.apply in Python sees to functorch, which plain() has ruled out.
_functions = (_Select, _Experts, _Mlp, _Layer, _LayerOutput, _LayerOutputExact)
select, experts, mlp, layer, layer_output, layer_output_exact = (super(torch.autograd.Function, one).apply  # type: ignore[misc]
                                                                 for one in _functions)
for _name, _function in (("select", select), ("experts", experts), ("mlp", mlp), ("layer", layer), ("layer_output", layer_output)):
    quick.direct[FORMS.index(_name)] = _function
