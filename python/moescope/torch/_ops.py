"""torch.ops.moescope: the C library's functions as operators, by define and impl (custom_op costs twice as much a call).

Every operator takes two-dimensional tensors and checks nothing that the library checks. Gradients that nobody needs come back
as tensors without elements.
"""
from __future__ import annotations

import ctypes
from typing import Optional

import torch
from torch import Tensor

from moescope import _library as lib
from moescope.torch._calls import compute_dtype, dense, plan_of, planned, quick, require
from moescope.torch._tensors import _IDS, _ids, _made, _only, _storage, _tables_together, _wanted

_LIBRARY = torch.library.Library("moescope", "DEF")


def _define(schema: str, kernel, fake) -> None:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, kernel, "CPU")
    _LIBRARY.impl(name, kernel, "CUDA")
    torch.library.register_fake(f"moescope::{name}", fake, lib=_LIBRARY)


def _autograd(name: str, setup_context, backward) -> None:
    torch.library.register_autograd(f"moescope::{name}", backward, setup_context=setup_context, lib=_LIBRARY)


def _no_double_backward(name: str, why: str = "there is no double backward") -> None:
    def backward(ctx, *gradients):
        raise NotImplementedError(f"moescope::{name}: {why}")

    _autograd(name, lambda ctx, inputs, output: None, backward)


# --- select -------------------------------------------------------------------------------------------------------------------


def _logits(row_logits: Tensor, col_logits: Tensor) -> tuple[Tensor, Tensor, str]:
    dtype = _storage("row_logits", row_logits)
    if dtype == "bfloat16":
        raise lib.MoescopeValueError("row_logits: dtype torch.bfloat16 must be torch.float32 or torch.float64")
    rows = dense(row_logits)
    cols = require("col_logits", col_logits, rows.dtype, (rows.shape[0], col_logits.shape[-1]), rows.device)
    return rows, cols, dtype


def _select(row_logits: Tensor, col_logits: Tensor, top_k: int, gate_mode: str, marginals: str) -> tuple[Tensor, Tensor, Tensor]:
    made = quick.select(row_logits, col_logits, top_k, gate_mode, marginals)
    if made is not None:
        return made
    tensors, options = (row_logits, col_logits), (top_k, gate_mode, marginals)
    plan, addresses = planned("select_forward", options, tensors)
    if plan is None:
        rows, cols, dtype = _logits(row_logits, col_logits)
        tensors = rows, cols
        shape = lib.shape(num_tokens=rows.shape[0], dtype=dtype, grid_rows=rows.shape[1], grid_cols=cols.shape[1], top_k=top_k,
                          gate_mode=gate_mode, marginals=marginals)
        plan, addresses = plan_of("select_forward", options, tensors, shape)  # refuses top_k before tensors are made
    extents = (row_logits.shape[0], top_k)
    ids = torch.empty(extents, dtype=torch.int32, device=plan.device)
    gates, scores = row_logits.new_empty(extents), row_logits.new_empty(extents)
    plan.call(*addresses, ids.data_ptr(), gates.data_ptr(), scores.data_ptr())
    quick.learn("select", (row_logits, col_logits), tensors, options, plan, (gates, ids, scores))
    return gates, ids, scores


def _select_fake(row_logits, col_logits, top_k, gate_mode, marginals):
    extents = (row_logits.shape[0], top_k)
    return row_logits.new_empty(extents), row_logits.new_empty(extents, dtype=torch.int32), row_logits.new_empty(extents)


def _select_backward(row_logits: Tensor, col_logits: Tensor, ids: Tensor, gates_gradient: Tensor, gate_mode: str,
                     marginals: str) -> tuple[Tensor, Tensor]:
    found = quick.select_backward(row_logits, col_logits, ids, gates_gradient, gate_mode, marginals)
    if found is not None:
        return found
    given, options = (row_logits, col_logits, ids, gates_gradient), (gate_mode, marginals)
    tensors = given
    plan, addresses = planned("select_backward", options, tensors)
    if plan is None:
        rows, cols, dtype = _logits(row_logits, col_logits)
        ids = _ids("ids", ids, rows.shape[0], rows.device)
        tensors = rows, cols, ids, require("gates_gradient", gates_gradient, rows.dtype, ids.shape, rows.device)
        shape = lib.shape(num_tokens=rows.shape[0], dtype=dtype, grid_rows=rows.shape[1], grid_cols=cols.shape[1], top_k=ids.shape[1],
                          id_dtype=_IDS[ids.dtype], gate_mode=gate_mode, marginals=marginals)
        plan, addresses = plan_of("select_backward", options, tensors, shape)
    made, places = _made(tensors[:2], (True, True))
    plan.call(*addresses, *places)
    quick.learn("select_backward", given, tensors, options, plan, tuple(made))
    return made[0], made[1]


def _select_context(ctx, inputs, output):
    row_logits, col_logits, _, ctx.gate_mode, ctx.marginals = inputs
    _, ids, scores = output
    ctx.mark_non_differentiable(ids, scores)
    ctx.save_for_backward(row_logits, col_logits, ids)


def _select_gradients(ctx, gates_gradient, ids_gradient, scores_gradient):
    rows, cols, ids = ctx.saved_tensors
    given = rows.new_zeros(ids.shape) if gates_gradient is None else gates_gradient
    made = torch.ops.moescope.select_backward(rows, cols, ids, given, ctx.gate_mode, ctx.marginals)
    return *made, None, None, None


_define("select(Tensor row_logits, Tensor col_logits, int top_k, str gate_mode, str marginals) -> (Tensor, Tensor, Tensor)",
        _select, _select_fake)
_define("select_backward(Tensor row_logits, Tensor col_logits, Tensor ids, Tensor gates_gradient, str gate_mode, str marginals)"
        " -> (Tensor, Tensor)", _select_backward,
        lambda rows, cols, ids, given, gate_mode, marginals: (_wanted(rows, True), _wanted(cols, True)))
_autograd("select", _select_context, _select_gradients)
_no_double_backward("select_backward")


# --- experts ------------------------------------------------------------------------------------------------------------------


def _pairs(x: Tensor, w_in: Tensor, w_out: Tensor, ids: Tensor, gates: Tensor, activation: str):
    dtype = _storage("x", x)
    x = dense(x)
    w_in = require("w_in", w_in, x.dtype, (w_in.shape[0], x.shape[1]), x.device)
    w_out = require("w_out", w_out, x.dtype, w_in.shape, x.device)
    ids = _ids("ids", ids, x.shape[0], x.device)
    gates = require("gates", gates, compute_dtype(x.dtype), ids.shape, x.device)
    shape = lib.shape(num_tokens=x.shape[0], dtype=dtype, hidden_size=x.shape[1], grid_cols=w_in.shape[0], top_k=ids.shape[1],
                      id_dtype=_IDS[ids.dtype], activation=activation)
    return shape, (x, w_in, w_out, ids, gates)


def _experts(x: Tensor, w_in: Tensor, w_out: Tensor, ids: Tensor, gates: Tensor, activation: str) -> Tensor:
    made = quick.experts(x, w_in, w_out, ids, gates, activation)
    if made is not None:
        return made
    given: tuple = (x, w_in, w_out, ids, gates)
    tensors = given
    plan, addresses = planned("experts_forward", activation, tensors)
    if plan is None:
        shape, tensors = _pairs(x, w_in, w_out, ids, gates, activation)
        plan, addresses = plan_of("experts_forward", activation, tensors, shape)
    y = torch.empty_like(tensors[0])
    plan.call(*addresses, y.data_ptr())
    quick.learn("experts", given, tensors, (activation,), plan, (y,))
    return y


def _experts_backward(x: Tensor, w_in: Tensor, w_out: Tensor, ids: Tensor, gates: Tensor, y_gradient: Tensor, activation: str,
                      want_x: bool, want_w_in: bool, want_w_out: bool, want_gates: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = quick.experts_backward(x, w_in, w_out, ids, gates, y_gradient, activation, want_x, want_w_in, want_w_out, want_gates)
    if found is not None:
        return found
    given: tuple = (x, w_in, w_out, ids, gates, y_gradient)
    tensors = given
    plan, addresses = planned("experts_backward", activation, tensors)
    if plan is None:
        shape, tensors = _pairs(x, w_in, w_out, ids, gates, activation)
        tensors = *tensors, require("y_gradient", y_gradient, x.dtype, x.shape, x.device)
        plan, addresses = plan_of("experts_backward", activation, tensors, shape)
    want = [want_x, want_w_in, want_w_out, want_gates]
    together = _tables_together(x, want, 1)
    made, places = _made((x, w_in, w_out, gates), together)
    plan.call(*addresses, *places)
    kept = _only(made, want)
    if together == want:
        quick.learn("experts_backward", given, tensors, (activation, *want), plan, tuple(kept))
    return kept[0], kept[1], kept[2], kept[3]


def _experts_backward_fake(x, w_in, w_out, ids, gates, y_gradient, activation, want_x, want_w_in, want_w_out, want_gates):
    return _wanted(x, want_x), _wanted(w_in, want_w_in), _wanted(w_out, want_w_out), _wanted(gates, want_gates)


def _kept(ctx, made, positions) -> list[Optional[Tensor]]:
    """Gradients in the inputs' order, None for those not needed."""
    return [one if ctx.needs_input_grad[at] else None for one, at in zip(made, positions)]


def _experts_context(ctx, inputs, output):
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _experts_gradients(ctx, y_gradient):
    need = ctx.needs_input_grad
    made = torch.ops.moescope.experts_backward(*ctx.saved_tensors, y_gradient, ctx.activation, need[0], need[1], need[2], need[4])
    x, w_in, w_out, gates = _kept(ctx, made, (0, 1, 2, 4))
    return x, w_in, w_out, None, gates, None


_define("experts(Tensor x, Tensor w_in, Tensor w_out, Tensor ids, Tensor gates, str activation) -> Tensor", _experts,
        lambda x, w_in, w_out, ids, gates, activation: _wanted(x, True))
_define("experts_backward(Tensor x, Tensor w_in, Tensor w_out, Tensor ids, Tensor gates, Tensor y_gradient, str activation, "
        "bool want_x, bool want_w_in, bool want_w_out, bool want_gates) -> (Tensor, Tensor, Tensor, Tensor)", _experts_backward,
        _experts_backward_fake)
_autograd("experts", _experts_context, _experts_gradients)
_no_double_backward("experts_backward")


# --- mlp ----------------------------------------------------------------------------------------------------------------------


def _mlp_tensors(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, activation: str):
    dtype = _storage("x", x)
    x = dense(x)
    gate = require("gate", gate, x.dtype, (gate.shape[0], x.shape[1]), x.device)
    up = require("up", up, x.dtype, gate.shape, x.device)
    down = require("down", down, x.dtype, (x.shape[1], gate.shape[0]), x.device)
    shape = lib.shape(num_tokens=x.shape[0], dtype=dtype, hidden_size=x.shape[1], shared_size=gate.shape[0], activation=activation)
    return shape, (x, gate, up, down)


def _mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, activation: str) -> Tensor:
    made = quick.mlp(x, gate, up, down, activation)
    if made is not None:
        return made
    given: tuple = (x, gate, up, down)
    tensors = given
    plan, addresses = planned("mlp_forward", activation, tensors)
    if plan is None:
        shape, tensors = _mlp_tensors(x, gate, up, down, activation)
        plan, addresses = plan_of("mlp_forward", activation, tensors, shape)
    y = torch.empty_like(tensors[0])
    plan.call(*addresses, y.data_ptr())
    quick.learn("mlp", given, tensors, (activation,), plan, (y,))
    return y


def _mlp_backward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, y_gradient: Tensor, activation: str, want_x: bool,
                  want_gate: bool, want_up: bool, want_down: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    want = (want_x, want_gate, want_up, want_down)
    found = quick.mlp_backward(x, gate, up, down, y_gradient, activation, *want)
    if found is not None:
        return found
    given: tuple = (x, gate, up, down, y_gradient)
    tensors = given
    plan, addresses = planned("mlp_backward", activation, tensors)
    if plan is None:
        shape, tensors = _mlp_tensors(x, gate, up, down, activation)
        tensors = *tensors, require("y_gradient", y_gradient, x.dtype, x.shape, x.device)
        plan, addresses = plan_of("mlp_backward", activation, tensors, shape)
    made, places = _made((x, gate, up, down), want)
    plan.call(*addresses, *places)
    quick.learn("mlp_backward", given, tensors, (activation, *want), plan, tuple(made))
    return made[0], made[1], made[2], made[3]


def _mlp_backward_fake(x, gate, up, down, y_gradient, activation, want_x, want_gate, want_up, want_down):
    return _wanted(x, want_x), _wanted(gate, want_gate), _wanted(up, want_up), _wanted(down, want_down)


def _mlp_context(ctx, inputs, output):
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _mlp_gradients(ctx, y_gradient):
    made = torch.ops.moescope.mlp_backward(*ctx.saved_tensors, y_gradient, ctx.activation, *ctx.needs_input_grad[:4])
    return *_kept(ctx, made, range(4)), None


_define("mlp(Tensor x, Tensor gate, Tensor up, Tensor down, str activation) -> Tensor", _mlp,
        lambda x, gate, up, down, activation: _wanted(x, True))
_define("mlp_backward(Tensor x, Tensor gate, Tensor up, Tensor down, Tensor y_gradient, str activation, bool want_x, "
        "bool want_gate, bool want_up, bool want_down) -> (Tensor, Tensor, Tensor, Tensor)", _mlp_backward, _mlp_backward_fake)
_autograd("mlp", _mlp_context, _mlp_gradients)
_no_double_backward("mlp_backward")


# --- layer --------------------------------------------------------------------------------------------------------------------


def _layer_tensors(x, row_logits, col_logits, w_in, w_out, gate, up, down, top_k, gate_mode, activation):
    dtype = _storage("x", x)
    x = dense(x)
    logits = compute_dtype(x.dtype)
    rows = require("row_logits", row_logits, logits, (x.shape[0], row_logits.shape[-1]), x.device)
    cols = require("col_logits", col_logits, logits, (x.shape[0], col_logits.shape[-1]), x.device)
    weights = (rows.shape[1] * cols.shape[1], x.shape[1])
    tensors = [x, rows, cols, require("w_in", w_in, x.dtype, weights, x.device), require("w_out", w_out, x.dtype, weights, x.device)]
    width = 0
    if gate is not None:
        width = gate.shape[0]
        tensors += [require("gate", gate, x.dtype, (width, x.shape[1]), x.device),
                    require("up", up, x.dtype, (width, x.shape[1]), x.device),
                    require("down", down, x.dtype, (x.shape[1], width), x.device)]
    shape = lib.shape(num_tokens=x.shape[0], dtype=dtype, hidden_size=x.shape[1], grid_rows=rows.shape[1], grid_cols=cols.shape[1],
                      top_k=top_k, shared_size=width, activation=activation, gate_mode=gate_mode)
    return shape, tuple(tensors)


def _inputs_of(x, row_logits, col_logits, w_in, w_out, gate, up, down) -> tuple:
    """Those that there are."""
    return (x, row_logits, col_logits, w_in, w_out) if gate is None else (x, row_logits, col_logits, w_in, w_out, gate, up, down)


_INPUTS_BYTES, _GRADIENTS_BYTES = ctypes.sizeof(lib.LayerInputs), ctypes.sizeof(lib.LayerGradients)


def _layer(x: Tensor, row_logits: Tensor, col_logits: Tensor, w_in: Tensor, w_out: Tensor, gate: Optional[Tensor],
           up: Optional[Tensor], down: Optional[Tensor], top_k: int, gate_mode: str,
           activation: str) -> tuple[Tensor, Tensor, Tensor]:
    all_inputs = x, row_logits, col_logits, w_in, w_out, gate, up, down
    made = quick.layer(*all_inputs, top_k, gate_mode, activation)
    if made is not None:
        return made
    tensors, options = _inputs_of(*all_inputs), (top_k, gate_mode, activation)
    plan, addresses = planned("layer_forward", options, tensors)
    if plan is None:
        shape, tensors = _layer_tensors(*all_inputs, *options)
        plan, addresses = plan_of("layer_forward", options, tensors, shape)
    y = torch.empty_like(tensors[0])
    extents = (x.shape[0], top_k)
    ids = torch.empty(extents, dtype=torch.int32, device=plan.device)
    gates = row_logits.new_empty(extents)
    given = lib.LayerInputs(_INPUTS_BYTES, *addresses)
    plan.call(ctypes.byref(given), y.data_ptr(), ids.data_ptr(), gates.data_ptr())
    quick.learn("layer", all_inputs, tensors, options, plan, (y, ids, gates))
    return y, ids, gates


def _layer_fake(x, row_logits, col_logits, w_in, w_out, gate, up, down, top_k, gate_mode, activation):
    extents = (x.shape[0], top_k)
    return _wanted(x, True), x.new_empty(extents, dtype=torch.int32), row_logits.new_empty(extents)


def _layer_output(x: Tensor, row_logits: Tensor, col_logits: Tensor, w_in: Tensor, w_out: Tensor, gate: Optional[Tensor],
                  up: Optional[Tensor], down: Optional[Tensor], expert_bound: Optional[Tensor], top_k: int, gate_mode: str,
                  activation: str, strip_counts: Optional[Tensor] = None) -> Tensor:
    """strip_counts: int32 [2] on the GPU, to be written."""
    if not x.is_cuda:
        return _layer(x, row_logits, col_logits, w_in, w_out, gate, up, down, top_k, gate_mode, activation)[0]
    all_inputs = x, row_logits, col_logits, w_in, w_out, gate, up, down
    made = None if strip_counts is not None else quick.layer_output(*all_inputs, expert_bound, top_k, gate_mode, activation)
    if made is not None:
        return made
    tensors, options = _inputs_of(*all_inputs), (top_k, gate_mode, activation)
    bound: tuple = ()
    plan, addresses = planned("layer_forward", options, tensors)
    if plan is None:
        shape, tensors = _layer_tensors(*all_inputs, *options)
        plan, addresses = plan_of("layer_forward", options, tensors, shape)
    given = lib.LayerInputs(_INPUTS_BYTES, *addresses)
    if expert_bound is not None:
        bound = (require("expert_bound", expert_bound, torch.float32, (1,), plan.device),)  # kept until the call is made
        given.expert_bound = bound[0].data_ptr()
    if strip_counts is not None:
        given.strip_counts = strip_counts.data_ptr()
    y = torch.empty_like(tensors[0])
    plan.call(ctypes.byref(given), y.data_ptr(), None, None)
    quick.learn("layer_output", (*all_inputs, expert_bound), (*tensors, *bound), options, plan, (y,))
    return y


def _layer_backward(x: Tensor, row_logits: Tensor, col_logits: Tensor, w_in: Tensor, w_out: Tensor, gate: Optional[Tensor],
                    up: Optional[Tensor], down: Optional[Tensor], ids: Optional[Tensor], gates: Optional[Tensor], y_gradient: Tensor,
                    gate_mode: str, activation: str, want: list[bool], top_k: int = 0,
                    strip_counts: tuple[int, int] = (0, 0)) -> list[Tensor]:
    """Without ids and gates, which a GPU can do without, it takes top_k. strip_counts: what the forward had written, if that is known."""
    all_inputs = x, row_logits, col_logits, w_in, w_out, gate, up, down
    if ids is None:
        quick_form, given_all, own_options = "layer_output_backward", (*all_inputs, y_gradient), (top_k, gate_mode, activation, want)
        found = quick.layer_output_backward(*given_all, *own_options) if strip_counts == (0, 0) else None
    else:
        quick_form, given_all = "layer_backward", (*all_inputs, ids, gates, y_gradient)
        own_options = (gate_mode, activation, want, top_k)  # type: ignore[assignment]
        found = quick.layer_backward(*given_all, *own_options)
    if found is not None:
        return list(found)
    inputs = _inputs_of(*all_inputs)
    listed = (ids, gates) if ids is not None else ()
    tensors, options = (*inputs, y_gradient, *listed), (gate_mode, activation, top_k, strip_counts)
    plan, addresses = planned("layer_backward", options, tensors)
    if plan is None:
        top = top_k if ids is None else ids.shape[-1]
        shape, found = _layer_tensors(x, row_logits, col_logits, w_in, w_out, gate, up, down, top, gate_mode, activation)
        found = *found, require("y_gradient", y_gradient, x.dtype, x.shape, x.device)
        if ids is not None and gates is not None:
            pairs = (x.shape[0], top)
            found = (*found, require("ids", ids, torch.int32, pairs, x.device),
                     require("gates", gates, compute_dtype(x.dtype), pairs, x.device))
        tensors = found
        plan, addresses = plan_of("layer_backward", options, tensors, shape, strip_counts)
    count = len(inputs)
    together = _tables_together(x, want, 3)
    made, places = _made(inputs, together)
    given, to = lib.LayerInputs(_INPUTS_BYTES, *addresses[:count]), lib.LayerGradients(_GRADIENTS_BYTES, *places)
    pairs_at = addresses[count + 1:] or (None, None)
    plan.call(ctypes.byref(given), *pairs_at, addresses[count], ctypes.byref(to))
    kept = _only(made, want)
    if together == want and strip_counts == (0, 0):
        # The inputs, then pairs where there are some, then y's gradient: the order of given_all.
        quick.learn(quick_form, given_all, (*tensors[:count], *tensors[count + 1:], tensors[count]), own_options, plan, tuple(kept))
    return kept


def _layer_backward_fake(x, row_logits, col_logits, w_in, w_out, gate, up, down, ids, gates, y_gradient, gate_mode, activation,
                         want):
    return [_wanted(like, one) for like, one in zip(_inputs_of(x, row_logits, col_logits, w_in, w_out, gate, up, down), want)]


def _layer_context(ctx, inputs, output):
    *tensors, _, ctx.gate_mode, ctx.activation = inputs
    _, ids, gates = output
    ctx.mark_non_differentiable(ids, gates)
    ctx.save_for_backward(*tensors, ids, gates)


def _layer_gradients(ctx, y_gradient, ids_gradient, gates_gradient):
    *tensors, ids, gates = ctx.saved_tensors
    count = sum(one is not None for one in tensors)
    want = [bool(one) for one in ctx.needs_input_grad[:count]]
    made = torch.ops.moescope.layer_backward(*tensors, ids, gates, y_gradient, ctx.gate_mode, ctx.activation, want)
    kept = [one if need else None for one, need in zip(made, want)]
    return *kept, *[None] * (8 - count), None, None, None


_define("layer(Tensor x, Tensor row_logits, Tensor col_logits, Tensor w_in, Tensor w_out, Tensor? gate, Tensor? up, Tensor? down, "
        "int top_k, str gate_mode, str activation) -> (Tensor, Tensor, Tensor)", _layer, _layer_fake)
_define("layer_backward(Tensor x, Tensor row_logits, Tensor col_logits, Tensor w_in, Tensor w_out, Tensor? gate, Tensor? up, "
        "Tensor? down, Tensor ids, Tensor gates, Tensor y_gradient, str gate_mode, str activation, bool[] want) -> Tensor[]",
        _layer_backward, _layer_backward_fake)
_autograd("layer", _layer_context, _layer_gradients)


# y alone: with many tokens on a GPU no pair is listed then, neither here nor in the backward.


def _layer_output_backward(x: Tensor, row_logits: Tensor, col_logits: Tensor, w_in: Tensor, w_out: Tensor, gate: Optional[Tensor],
                           up: Optional[Tensor], down: Optional[Tensor], y_gradient: Tensor, top_k: int, gate_mode: str,
                           activation: str, want: list[bool]) -> list[Tensor]:
    if not x.is_cuda:
        _, ids, gates = _layer(x, row_logits, col_logits, w_in, w_out, gate, up, down, top_k, gate_mode, activation)
        return _layer_backward(x, row_logits, col_logits, w_in, w_out, gate, up, down, ids, gates, y_gradient, gate_mode, activation,
                               want)
    return _layer_backward(x, row_logits, col_logits, w_in, w_out, gate, up, down, None, None, y_gradient, gate_mode, activation, want,
                           top_k)


def _layer_output_context(ctx, inputs, output):
    *tensors, _, ctx.top_k, ctx.gate_mode, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _layer_output_gradients(ctx, y_gradient):
    tensors = ctx.saved_tensors
    count = sum(one is not None for one in tensors)
    want = [bool(one) for one in ctx.needs_input_grad[:count]]
    made = torch.ops.moescope.layer_output_backward(*tensors, y_gradient, ctx.top_k, ctx.gate_mode, ctx.activation, want)
    kept = [one if need else None for one, need in zip(made, want)]
    return *kept, *[None] * (8 - count), None, None, None, None


_define("layer_output(Tensor x, Tensor row_logits, Tensor col_logits, Tensor w_in, Tensor w_out, Tensor? gate, Tensor? up, Tensor? down, "
        "Tensor? expert_bound, int top_k, str gate_mode, str activation) -> Tensor", _layer_output,
        lambda x, *others: _wanted(x, True))
_define("layer_output_backward(Tensor x, Tensor row_logits, Tensor col_logits, Tensor w_in, Tensor w_out, Tensor? gate, Tensor? up, "
        "Tensor? down, Tensor y_gradient, int top_k, str gate_mode, str activation, bool[] want) -> Tensor[]", _layer_output_backward,
        lambda x, row_logits, col_logits, w_in, w_out, gate, up, down, y_gradient, top_k, gate_mode, activation, want:
        _layer_backward_fake(x, row_logits, col_logits, w_in, w_out, gate, up, down, None, None, y_gradient, gate_mode, activation, want))
_autograd("layer_output", _layer_output_context, _layer_output_gradients)
_no_double_backward("layer_output_backward")
_no_double_backward("layer_backward")

# Forward kernels, for functional.py.
select_kernel, experts_kernel, mlp_kernel, layer_kernel, layer_output_kernel = _select, _experts, _mlp, _layer, _layer_output
