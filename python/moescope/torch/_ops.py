"""torch.ops.moescope: the C library's functions as operators, by define and impl (custom_op costs twice as much a call).

Every operator takes two-dimensional tensors and checks nothing that the library checks. Gradients that nobody needs come back
as tensors without elements.
"""
from __future__ import annotations

import ctypes
import threading
from typing import Optional

import torch
from torch import Tensor

from moescope import _library as lib

_LIBRARY = torch.library.Library("moescope", "DEF")
_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
_IDS = {torch.int32: "int32", torch.int64: "int64"}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of logits, gates and scores that go with tensors of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _require(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple, device: torch.device) -> Tensor:
    """Contiguous, and just so; the error names what it is instead."""
    if tensor.dtype != dtype:
        raise lib.MoescopeValueError(f"{name}: dtype {tensor.dtype} must be {dtype}")
    if tensor.shape != shape:
        raise lib.MoescopeValueError(f"{name}: shape {list(tensor.shape)} must be {list(shape)}")
    if tensor.device != device:
        raise lib.MoescopeValueError(f"{name}: device {tensor.device} must be {device}")
    return _dense(tensor)


def _dense(tensor: Tensor) -> Tensor:
    """Contiguous, and on CUDA aligned to what kernels load at once: a view may begin anywhere."""
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
    return tensor.clone() if tensor.is_cuda and tensor.data_ptr() % 16 else tensor


def _storage(name: str, tensor: Tensor) -> str:
    if tensor.dim() != 2:
        raise lib.MoescopeValueError(f"{name}: shape {list(tensor.shape)} must have two extents")
    if tensor.dtype not in _DTYPES:
        raise lib.MoescopeValueError(f"{name}: dtype {tensor.dtype} must be one of {', '.join(map(str, _DTYPES))}")
    return _DTYPES[tensor.dtype]


def _ids(name: str, ids: Tensor, rows: int, device: torch.device) -> Tensor:
    if ids.dtype not in _IDS:
        raise lib.MoescopeValueError(f"{name}: dtype {ids.dtype} must be torch.int32 or torch.int64")
    if ids.dim() != 2 or ids.shape[0] != rows:
        raise lib.MoescopeValueError(f"{name}: shape {list(ids.shape)} must be [{rows}, K]")
    return _require(name, ids, ids.dtype, ids.shape, device)


_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", lambda index: torch.cuda.current_stream(index).cuda_stream)


_deterministic = getattr(torch._C, "_get_deterministic_algorithms", torch.are_deterministic_algorithms_enabled)


def _place(device: torch.device) -> tuple[int, int, int, int]:
    """Device, index, threads and whether results have to repeat, as the library takes them."""
    if device.type == "cpu":
        return lib.CPU, 0, torch.get_num_threads(), int(_deterministic())
    index = device.index
    return lib.CUDA, torch.cuda.current_device() if index is None else index, 0, int(_deterministic())


def _workspace_bytes(operation: str, shape: lib.Shape, place: tuple[int, int, int, int]) -> int:
    """Raises for a shape that cannot be. Remembered with the shape: this stands before every call."""
    size = shape.sizes.get((operation, place))
    if size is None:
        kind, index, threads, deterministic = place
        where = lib.execution(device=kind, device_index=index, num_threads=threads, deterministic=bool(deterministic))
        size = shape.sizes[operation, place] = lib.workspace_bytes(operation, shape, where)
    return size


class _Executions(threading.local):
    """One struct for each place and thread, made once: a call fills in its stream and workspace."""

    def __init__(self):
        self.of_place: dict[tuple[int, int, int, int], lib.Execution] = {}


_executions = _Executions()


def _call(operation: str, device: torch.device, shape: lib.Shape, *arguments) -> None:
    """arguments: addresses and structs behind shape and execution."""
    place = _place(device)
    size = _workspace_bytes(operation, shape, place)
    workspace = torch.empty(size + 63, dtype=torch.uint8, device=device)
    where = _executions.of_place.get(place)
    if where is None:
        kind, index, threads, deterministic = place
        where = _executions.of_place[place] = lib.execution(device=kind, device_index=index, num_threads=threads,
                                                            deterministic=bool(deterministic))
    if place[0] == lib.CUDA:
        where.stream = _raw_stream(place[1])
    where.workspace = (workspace.data_ptr() + 63) & -64
    where.workspace_bytes = size
    lib.call(operation, shape, where, *arguments)


def _addresses(*tensors: Tensor) -> list[int]:
    return [one.data_ptr() for one in tensors]


def _wanted(like: Tensor, want: bool) -> Tensor:
    """What a gradient is written into: of the size of `like`, or without elements."""
    return torch.empty_like(like, memory_format=torch.contiguous_format) if want else like.new_empty(0)


def _address(tensor: Tensor, want: bool) -> Optional[int]:
    return tensor.data_ptr() if want else None


def _tables_together(x: Tensor, want: list[bool], first: int) -> list[bool]:
    """What is made where `want` is asked for: on CUDA the gradients of w_in (at `first`) and w_out both or neither."""
    either = x.is_cuda and (want[first] or want[first + 1])
    return [one or (either and at in (first, first + 1)) for at, one in enumerate(want)]


def _only(made: list[Tensor], want: list[bool]) -> list[Tensor]:
    """Tensors without elements for what was made but not wanted."""
    return [one if need or one.numel() == 0 else one.new_empty(0) for one, need in zip(made, want)]


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
    rows = _dense(row_logits)
    cols = _require("col_logits", col_logits, rows.dtype, (rows.shape[0], col_logits.shape[-1]), rows.device)
    return rows, cols, dtype


def _select(row_logits: Tensor, col_logits: Tensor, top_k: int, gate_mode: str, marginals: str) -> tuple[Tensor, Tensor, Tensor]:
    rows, cols, dtype = _logits(row_logits, col_logits)
    shape = lib.shape(num_tokens=rows.shape[0], dtype=dtype, grid_rows=rows.shape[1], grid_cols=cols.shape[1], top_k=top_k,
                      gate_mode=gate_mode, marginals=marginals)
    _workspace_bytes("select_forward", shape, _place(rows.device))  # refuses top_k before tensors are made
    extents = (rows.shape[0], top_k)
    ids = torch.empty(extents, dtype=torch.int32, device=rows.device)
    gates, scores = (torch.empty(extents, dtype=rows.dtype, device=rows.device) for _ in range(2))
    _call("select_forward", rows.device, shape, *_addresses(rows, cols, ids, gates, scores))
    return gates, ids, scores


def _select_fake(row_logits, col_logits, top_k, gate_mode, marginals):
    extents = (row_logits.shape[0], top_k)
    return row_logits.new_empty(extents), row_logits.new_empty(extents, dtype=torch.int32), row_logits.new_empty(extents)


def _select_backward(row_logits: Tensor, col_logits: Tensor, ids: Tensor, gates_gradient: Tensor, gate_mode: str,
                     marginals: str) -> tuple[Tensor, Tensor]:
    rows, cols, dtype = _logits(row_logits, col_logits)
    ids = _ids("ids", ids, rows.shape[0], rows.device)
    given = _require("gates_gradient", gates_gradient, rows.dtype, ids.shape, rows.device)
    shape = lib.shape(num_tokens=rows.shape[0], dtype=dtype, grid_rows=rows.shape[1], grid_cols=cols.shape[1], top_k=ids.shape[1],
                      id_dtype=_IDS[ids.dtype], gate_mode=gate_mode, marginals=marginals)
    made = _wanted(rows, True), _wanted(cols, True)
    _call("select_backward", rows.device, shape, *_addresses(rows, cols, ids, given, *made))
    return made


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
    x = _dense(x)
    w_in = _require("w_in", w_in, x.dtype, (w_in.shape[0], x.shape[1]), x.device)
    w_out = _require("w_out", w_out, x.dtype, w_in.shape, x.device)
    ids = _ids("ids", ids, x.shape[0], x.device)
    gates = _require("gates", gates, compute_dtype(x.dtype), ids.shape, x.device)
    shape = lib.shape(num_tokens=x.shape[0], dtype=dtype, hidden_size=x.shape[1], grid_cols=w_in.shape[0], top_k=ids.shape[1],
                      id_dtype=_IDS[ids.dtype], activation=activation)
    return shape, (x, w_in, w_out, ids, gates)


def _experts(x: Tensor, w_in: Tensor, w_out: Tensor, ids: Tensor, gates: Tensor, activation: str) -> Tensor:
    shape, tensors = _pairs(x, w_in, w_out, ids, gates, activation)
    y = torch.empty_like(tensors[0])
    _call("experts_forward", x.device, shape, *_addresses(*tensors, y))
    return y


def _experts_backward(x: Tensor, w_in: Tensor, w_out: Tensor, ids: Tensor, gates: Tensor, y_gradient: Tensor, activation: str,
                      want_x: bool, want_w_in: bool, want_w_out: bool, want_gates: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape, tensors = _pairs(x, w_in, w_out, ids, gates, activation)
    given = _require("y_gradient", y_gradient, x.dtype, x.shape, x.device)
    want = [want_x, want_w_in, want_w_out, want_gates]
    made_of = _tables_together(x, want, 1)
    made = [_wanted(like, one) for like, one in zip((x, w_in, w_out, gates), made_of)]
    _call("experts_backward", x.device, shape, *_addresses(*tensors, given), *map(_address, made, made_of))
    kept = _only(made, want)
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
    x = _dense(x)
    gate = _require("gate", gate, x.dtype, (gate.shape[0], x.shape[1]), x.device)
    up = _require("up", up, x.dtype, gate.shape, x.device)
    down = _require("down", down, x.dtype, (x.shape[1], gate.shape[0]), x.device)
    shape = lib.shape(num_tokens=x.shape[0], dtype=dtype, hidden_size=x.shape[1], shared_size=gate.shape[0], activation=activation)
    return shape, (x, gate, up, down)


def _mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, activation: str) -> Tensor:
    shape, tensors = _mlp_tensors(x, gate, up, down, activation)
    y = torch.empty_like(tensors[0])
    _call("mlp_forward", x.device, shape, *_addresses(*tensors, y))
    return y


def _mlp_backward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, y_gradient: Tensor, activation: str, want_x: bool,
                  want_gate: bool, want_up: bool, want_down: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape, tensors = _mlp_tensors(x, gate, up, down, activation)
    given = _require("y_gradient", y_gradient, x.dtype, x.shape, x.device)
    want = (want_x, want_gate, want_up, want_down)
    made = [_wanted(like, one) for like, one in zip((x, gate, up, down), want)]
    _call("mlp_backward", x.device, shape, *_addresses(*tensors, given), *map(_address, made, want))
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
    x = _dense(x)
    logits = compute_dtype(x.dtype)
    rows = _require("row_logits", row_logits, logits, (x.shape[0], row_logits.shape[-1]), x.device)
    cols = _require("col_logits", col_logits, logits, (x.shape[0], col_logits.shape[-1]), x.device)
    weights = (rows.shape[1] * cols.shape[1], x.shape[1])
    tensors = [x, rows, cols, _require("w_in", w_in, x.dtype, weights, x.device), _require("w_out", w_out, x.dtype, weights, x.device)]
    width = 0
    if gate is not None:
        width = gate.shape[0]
        tensors += [_require("gate", gate, x.dtype, (width, x.shape[1]), x.device),
                    _require("up", up, x.dtype, (width, x.shape[1]), x.device),
                    _require("down", down, x.dtype, (x.shape[1], width), x.device)]
    shape = lib.shape(num_tokens=x.shape[0], dtype=dtype, hidden_size=x.shape[1], grid_rows=rows.shape[1], grid_cols=cols.shape[1],
                      top_k=top_k, shared_size=width, activation=activation, gate_mode=gate_mode)
    return shape, tensors


def _struct(kind, addresses):
    return ctypes.byref(kind(ctypes.sizeof(kind), *addresses))


def _layer(x: Tensor, row_logits: Tensor, col_logits: Tensor, w_in: Tensor, w_out: Tensor, gate: Optional[Tensor],
           up: Optional[Tensor], down: Optional[Tensor], top_k: int, gate_mode: str,
           activation: str) -> tuple[Tensor, Tensor, Tensor]:
    shape, tensors = _layer_tensors(x, row_logits, col_logits, w_in, w_out, gate, up, down, top_k, gate_mode, activation)
    _workspace_bytes("layer_forward", shape, _place(x.device))
    y = torch.empty_like(tensors[0])
    extents = (x.shape[0], top_k)
    ids = torch.empty(extents, dtype=torch.int32, device=x.device)
    gates = torch.empty(extents, dtype=tensors[1].dtype, device=x.device)
    _call("layer_forward", x.device, shape, _struct(lib.LayerInputs, _addresses(*tensors)), *_addresses(y, ids, gates))
    return y, ids, gates


def _layer_fake(x, row_logits, col_logits, w_in, w_out, gate, up, down, top_k, gate_mode, activation):
    extents = (x.shape[0], top_k)
    return _wanted(x, True), x.new_empty(extents, dtype=torch.int32), row_logits.new_empty(extents)


def _layer_output(x: Tensor, row_logits: Tensor, col_logits: Tensor, w_in: Tensor, w_out: Tensor, gate: Optional[Tensor],
                  up: Optional[Tensor], down: Optional[Tensor], expert_bound: Optional[Tensor], top_k: int, gate_mode: str,
                  activation: str) -> Tensor:
    if not x.is_cuda:
        return _layer(x, row_logits, col_logits, w_in, w_out, gate, up, down, top_k, gate_mode, activation)[0]
    shape, tensors = _layer_tensors(x, row_logits, col_logits, w_in, w_out, gate, up, down, top_k, gate_mode, activation)
    given = lib.LayerInputs(ctypes.sizeof(lib.LayerInputs), *_addresses(*tensors))
    if expert_bound is not None:
        bound = _require("expert_bound", expert_bound, torch.float32, (1,), x.device)  # kept until the call is made
        given.expert_bound = bound.data_ptr()
    y = torch.empty_like(tensors[0])
    _call("layer_forward", x.device, shape, ctypes.byref(given), y.data_ptr(), None, None)
    return y


def _layer_backward(x: Tensor, row_logits: Tensor, col_logits: Tensor, w_in: Tensor, w_out: Tensor, gate: Optional[Tensor],
                    up: Optional[Tensor], down: Optional[Tensor], ids: Tensor, gates: Tensor, y_gradient: Tensor, gate_mode: str,
                    activation: str, want: list[bool]) -> list[Tensor]:
    ids = _require("ids", ids, torch.int32, (x.shape[0], ids.shape[-1]), x.device)
    gates = _require("gates", gates, compute_dtype(x.dtype), ids.shape, x.device)
    shape, tensors = _layer_tensors(x, row_logits, col_logits, w_in, w_out, gate, up, down, ids.shape[1], gate_mode, activation)
    given = _require("y_gradient", y_gradient, x.dtype, x.shape, x.device)
    return _run_layer_backward(shape, tensors, _addresses(ids, gates), given, want)


def _run_layer_backward(shape: lib.Shape, tensors: list[Tensor], pairs: list[Optional[int]], given: Tensor, want: list[bool]) -> list[Tensor]:
    """pairs: addresses of ids and gates, whose tensors the caller keeps, or None."""
    made_of = _tables_together(given, want, 3)
    made = [_wanted(like, one) for like, one in zip(tensors, made_of)]
    _call("layer_backward", given.device, shape, _struct(lib.LayerInputs, _addresses(*tensors)), *pairs, given.data_ptr(),
          _struct(lib.LayerGradients, map(_address, made, made_of)))
    return _only(made, want)


def _layer_backward_fake(x, row_logits, col_logits, w_in, w_out, gate, up, down, ids, gates, y_gradient, gate_mode, activation,
                         want):
    tensors = [one for one in (x, row_logits, col_logits, w_in, w_out, gate, up, down) if one is not None]
    return [_wanted(like, one) for like, one in zip(tensors, want)]


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
    shape, tensors = _layer_tensors(x, row_logits, col_logits, w_in, w_out, gate, up, down, top_k, gate_mode, activation)
    given = _require("y_gradient", y_gradient, x.dtype, x.shape, x.device)
    return _run_layer_backward(shape, tensors, [None, None], given, want)


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
