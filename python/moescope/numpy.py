"""The layer and its parts on NumPy arrays, forward and backward, by the C library on the CPU.

Symbols: L tokens, d hidden size, experts on a grid of Nr x Nc (N = Nr Nc, id = row * Nc + column), K experts a token, f the
width of the shared MLP. x, weights and logits are float32 or float64, all of one dtype; ids are int32 or int64. Arrays that
are not contiguous are copied. Every result is a new array. What cannot be is a MoescopeError (also a ValueError) that names
argument and value. `num_threads` = 0 takes OpenMP's number; results are the same bits with any.
"""
from __future__ import annotations

import ctypes
from typing import NamedTuple, Optional

from moescope import _library as lib

try:
    import numpy as np
except ModuleNotFoundError:
    raise ModuleNotFoundError("moescope.numpy needs NumPy: pip install numpy", name="numpy") from None

Array = np.ndarray


class Selection(NamedTuple):
    """K experts of every token, by falling score, equal scores by rising id."""

    ids: Array  #: int32 [L, K]
    gates: Array  #: [L, K]
    scores: Array  #: [L, K] sums of the marginals


class LayerOutput(NamedTuple):
    """What the layer's forward gives; ids and gates are what its backward reads."""

    y: Array  #: [L, d]
    ids: Array  #: int32 [L, K]
    gates: Array  #: [L, K]


class ExpertsGradients(NamedTuple):
    x: Array  #: [L, d]
    w_in: Array  #: [N, d]; rows of experts without a token are 0
    w_out: Array  #: [N, d]
    gates: Array  #: [L, K]


class MlpGradients(NamedTuple):
    x: Optional[Array]  #: [L, d]; None inside of LayerGradients
    gate: Array  #: [f, d]
    up: Array  #: [f, d]
    down: Array  #: [d, f]


class LayerGradients(NamedTuple):
    x: Array  #: [L, d], without the part through the logits
    row_logits: Array  #: [L, Nr]
    col_logits: Array  #: [L, Nc]
    w_in: Array  #: [N, d]
    w_out: Array  #: [N, d]
    shared: Optional[MlpGradients]  #: its x is None: that part is in x above


def _dtype(name: str, array: Array) -> str:
    dtype = str(np.asarray(array).dtype)
    if dtype not in ("float32", "float64"):
        raise lib.MoescopeValueError(f"{name}: dtype {dtype} must be float32 or float64")
    return dtype


def _array(name: str, array, dtype: str, shape: tuple) -> Array:
    """Contiguous, of that dtype and shape (None: any extent)."""
    array = np.asarray(array)
    fits = array.ndim == len(shape) and all(want is None or have == want for have, want in zip(array.shape, shape))
    if not fits:
        wanted = ", ".join("any" if extent is None else str(extent) for extent in shape)
        raise lib.MoescopeValueError(f"{name}: shape {list(array.shape)} must be [{wanted}]")
    if str(array.dtype) != dtype:
        raise lib.MoescopeValueError(f"{name}: dtype {array.dtype} must be {dtype}")
    return np.ascontiguousarray(array)


def _ids(name: str, ids, rows: int) -> Array:
    ids = np.asarray(ids)
    if str(ids.dtype) not in lib.ID_DTYPES:
        raise lib.MoescopeValueError(f"{name}: dtype {ids.dtype} must be int32 or int64")
    return _array(name, ids, str(ids.dtype), (rows, None))


def _run(operation: str, shape: lib.Shape, num_threads: int, *arguments) -> None:
    where = lib.execution(num_threads=num_threads)
    size = lib.workspace_bytes(operation, shape, where)
    workspace = np.empty(size + 63, dtype=np.uint8)
    lib.give_workspace(where, workspace.ctypes.data, size)
    lib.call(operation, shape, where, *(one.ctypes.data if isinstance(one, np.ndarray) else one for one in arguments))


def select(row_logits: Array, col_logits: Array, top_k: int, *, gates: str = "softmax", marginals: str = "log_softmax",
           num_threads: int = 0) -> Selection:
    """The exact top K of the N sums row + column, without forming them.

    row_logits [L, Nr], col_logits [L, Nc], finite. gates: "softmax" over the selected, "probability" (exp of the score),
    "relu" or "score". marginals: "log_softmax" of the logits, or "as_given".
    """
    dtype = _dtype("row_logits", row_logits)
    rows = _array("row_logits", row_logits, dtype, (None, None))
    cols = _array("col_logits", col_logits, dtype, (len(rows), None))
    shape = lib.shape(num_tokens=len(rows), dtype=dtype, grid_rows=rows.shape[1], grid_cols=cols.shape[1], top_k=top_k,
                      gate_mode=gates, marginals=marginals)
    lib.workspace_bytes("select_forward", shape, lib.execution())  # refuses top_k before arrays are made
    found = Selection(np.empty((len(rows), top_k), np.int32), np.empty((len(rows), top_k), dtype),
                      np.empty((len(rows), top_k), dtype))
    _run("select_forward", shape, num_threads, rows, cols, found.ids, found.gates, found.scores)
    return found


def select_backward(row_logits: Array, col_logits: Array, ids: Array, gates_gradient: Array, *, gates: str = "softmax",
                    marginals: str = "log_softmax", num_threads: int = 0) -> tuple[Array, Array]:
    """Gradients of the logits, [L, Nr] and [L, Nc], from those of the gates [L, K]. ids as select() gave them."""
    dtype = _dtype("row_logits", row_logits)
    rows = _array("row_logits", row_logits, dtype, (None, None))
    cols = _array("col_logits", col_logits, dtype, (len(rows), None))
    ids = _ids("ids", ids, len(rows))
    given = _array("gates_gradient", gates_gradient, dtype, ids.shape)
    shape = lib.shape(num_tokens=len(rows), dtype=dtype, grid_rows=rows.shape[1], grid_cols=cols.shape[1], top_k=ids.shape[1],
                      id_dtype=str(ids.dtype), gate_mode=gates, marginals=marginals)
    row_gradient, col_gradient = np.empty_like(rows), np.empty_like(cols)
    _run("select_backward", shape, num_threads, rows, cols, ids, given, row_gradient, col_gradient)
    return row_gradient, col_gradient


class _Pairs(NamedTuple):
    x: Array
    w_in: Array
    w_out: Array
    ids: Array
    gates: Array
    shape: lib.Shape


def _pairs(x, w_in, w_out, ids, gates, activation: str) -> _Pairs:
    dtype = _dtype("x", x)
    x = _array("x", x, dtype, (None, None))
    w_in = _array("w_in", w_in, dtype, (None, x.shape[1]))
    w_out = _array("w_out", w_out, dtype, w_in.shape)
    ids = _ids("ids", ids, len(x))
    gates = _array("gates", gates, dtype, ids.shape)
    shape = lib.shape(num_tokens=len(x), dtype=dtype, hidden_size=x.shape[1], grid_cols=len(w_in), top_k=ids.shape[1],
                      id_dtype=str(ids.dtype), activation=activation)
    return _Pairs(x, w_in, w_out, ids, gates, shape)


def experts(x: Array, w_in: Array, w_out: Array, ids: Array, gates: Array, *, activation: str = "silu",
            num_threads: int = 0) -> Array:
    """y [L, d]: for every token the sum over its K experts of gate * act(x . w_in[id]) * w_out[id].

    x [L, d], w_in and w_out [N, d], ids and gates [L, K]. An id that stands there twice counts twice.
    """
    pairs = _pairs(x, w_in, w_out, ids, gates, activation)
    y = np.empty_like(pairs.x)
    _run("experts_forward", pairs.shape, num_threads, *pairs[:5], y)
    return y


def experts_backward(x: Array, w_in: Array, w_out: Array, ids: Array, gates: Array, y_gradient: Array, *,
                     activation: str = "silu", num_threads: int = 0) -> ExpertsGradients:
    """Gradients of what experts() reads, from y_gradient [L, d]."""
    pairs = _pairs(x, w_in, w_out, ids, gates, activation)
    given = _array("y_gradient", y_gradient, str(pairs.x.dtype), pairs.x.shape)
    made = ExpertsGradients(*map(np.empty_like, (pairs.x, pairs.w_in, pairs.w_out, pairs.gates)))
    _run("experts_backward", pairs.shape, num_threads, *pairs[:5], given, *made)
    return made


def _mlp(x, gate, up, down, activation: str):
    dtype = _dtype("x", x)
    x = _array("x", x, dtype, (None, None))
    gate = _array("gate", gate, dtype, (None, x.shape[1]))
    up = _array("up", up, dtype, gate.shape)
    down = _array("down", down, dtype, gate.shape[::-1])
    shape = lib.shape(num_tokens=len(x), dtype=dtype, hidden_size=x.shape[1], shared_size=len(gate), activation=activation)
    return shape, (x, gate, up, down)


def mlp(x: Array, gate: Array, up: Array, down: Array, *, activation: str = "silu", num_threads: int = 0) -> Array:
    """(act(x gate^T) * (x up^T)) down^T, [L, d]. gate and up [f, d], down [d, f]."""
    shape, arrays = _mlp(x, gate, up, down, activation)
    y = np.empty_like(arrays[0])
    _run("mlp_forward", shape, num_threads, *arrays, y)
    return y


def mlp_backward(x: Array, gate: Array, up: Array, down: Array, y_gradient: Array, *, activation: str = "silu",
                 num_threads: int = 0) -> MlpGradients:
    """Gradients of what mlp() reads, from y_gradient [L, d]."""
    shape, arrays = _mlp(x, gate, up, down, activation)
    given = _array("y_gradient", y_gradient, str(arrays[0].dtype), arrays[0].shape)
    made = MlpGradients(*map(np.empty_like, arrays))
    _run("mlp_backward", shape, num_threads, *arrays, given, *made)
    return made


def _layer(x, row_logits, col_logits, w_in, w_out, shared, top_k: int, gates: str, activation: str):
    dtype = _dtype("x", x)
    x = _array("x", x, dtype, (None, None))
    rows = _array("row_logits", row_logits, dtype, (len(x), None))
    cols = _array("col_logits", col_logits, dtype, (len(x), None))
    experts_shape = (rows.shape[1] * cols.shape[1], x.shape[1])
    arrays = [x, rows, cols, _array("w_in", w_in, dtype, experts_shape), _array("w_out", w_out, dtype, experts_shape)]
    width = 0
    if shared is not None:
        gate = _array("shared[0] (gate)", shared[0], dtype, (None, x.shape[1]))
        width = len(gate)
        arrays += [gate, _array("shared[1] (up)", shared[1], dtype, gate.shape),
                   _array("shared[2] (down)", shared[2], dtype, gate.shape[::-1])]
    shape = lib.shape(num_tokens=len(x), dtype=dtype, hidden_size=x.shape[1], grid_rows=rows.shape[1], grid_cols=cols.shape[1],
                      top_k=top_k, shared_size=width, activation=activation, gate_mode=gates)
    lib.workspace_bytes("layer_forward", shape, lib.execution())
    return shape, arrays


def _struct(kind, arrays):
    return kind(ctypes.sizeof(kind), *(array.ctypes.data for array in arrays))


def layer(x: Array, row_logits: Array, col_logits: Array, w_in: Array, w_out: Array, top_k: int, *,
          shared: Optional[tuple[Array, Array, Array]] = None, gates: str = "softmax", activation: str = "silu",
          num_threads: int = 0) -> LayerOutput:
    """The fused layer: select(), experts(), and mlp() of `shared` = (gate, up, down) added.

    x [L, d], row_logits [L, Nr], col_logits [L, Nc], w_in and w_out [Nr Nc, d]. gates: "softmax" or "probability".
    """
    shape, arrays = _layer(x, row_logits, col_logits, w_in, w_out, shared, top_k, gates, activation)
    made = LayerOutput(np.empty_like(arrays[0]), np.empty((len(arrays[0]), top_k), np.int32),
                       np.empty((len(arrays[0]), top_k), arrays[0].dtype))
    _run("layer_forward", shape, num_threads, ctypes.byref(_struct(lib.LayerInputs, arrays)), *made)
    return made


def layer_backward(x: Array, row_logits: Array, col_logits: Array, w_in: Array, w_out: Array, output: LayerOutput,
                   y_gradient: Array, *, shared: Optional[tuple[Array, Array, Array]] = None, gates: str = "softmax",
                   activation: str = "silu", num_threads: int = 0) -> LayerGradients:
    """Gradients of what layer() reads, from y_gradient [L, d]; `output` and the options are those of the forward."""
    top_k = np.asarray(output.ids).shape[-1]
    shape, arrays = _layer(x, row_logits, col_logits, w_in, w_out, shared, top_k, gates, activation)
    ids = _array("output.ids", output.ids, "int32", (len(arrays[0]), top_k))
    kept = _array("output.gates", output.gates, str(arrays[0].dtype), ids.shape)
    given = _array("y_gradient", y_gradient, str(arrays[0].dtype), arrays[0].shape)
    made = [np.empty_like(array) for array in arrays]
    _run("layer_backward", shape, num_threads, ctypes.byref(_struct(lib.LayerInputs, arrays)), ids, kept, given,
         ctypes.byref(_struct(lib.LayerGradients, made)))
    shared_gradients = MlpGradients(None, *made[5:]) if shared is not None else None
    return LayerGradients(made[0], made[1], made[2], made[3], made[4], shared_gradients)
