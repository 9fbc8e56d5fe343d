"""The backward on CUDA in PyTorch's own operators, as long as the library has no kernels for it.

Each function takes what an operator's kernel takes, already checked and contiguous, and returns gradients in float32 where
they are sums that more may be added to, else in their tensor's dtype. Nothing waits for the device, so CUDA graphs capture it.
No intermediate tensor is larger than BUDGET_BYTES, but for gradients themselves, which may be summed in float32, and for one
token's pairs or one row of products where even that is more. Where deterministic algorithms are asked for, PyTorch's
index_add_ keeps an order; everything else here has one anyway.
"""
from __future__ import annotations

import math
from typing import Iterator, Optional

import torch
from torch import Tensor

BUDGET_BYTES = 256 << 20
# Experts to a selected one up to which products with all experts, those not selected behind a mask, are expected to take less
# time than rows gathered pair by pair: tensor cores do ten operations of bf16 in the time that memory takes for one byte.
MASKED_UP_TO = {torch.bfloat16: 512, torch.float32: 64}

_OUT_DTYPE = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 8)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32. Before PyTorch 2.8 products of bfloat16 come rounded."""
    if a.dtype == torch.float32:
        return torch.mm(a, b)
    return torch.mm(a, b, out_dtype=torch.float32) if _OUT_DTYPE else torch.mm(a, b).float()


def activate(name: str, z: Tensor) -> tuple[Tensor, Tensor]:
    """The activation and its slope."""
    if name == "relu":
        return z.clamp(min=0), (z > 0).to(z.dtype)
    if name == "silu":
        gate = z.sigmoid()
        return z * gate, gate * (1 + z * (1 - gate))
    below = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
    return z * below, below + z * torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))


def pieces(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def _fitting(row_elements: int) -> int:
    """Rows of float32 that the budget holds."""
    return max(BUDGET_BYTES // (4 * max(row_elements, 1)), 1)


def experts_backward(x: Tensor, w_in: Tensor, w_out: Tensor, ids: Tensor, gates: Tensor, dy: Tensor, activation: str, want_x: bool,
                     want_w_in: bool, want_w_out: bool, want_gates: bool) -> tuple[Optional[Tensor], ...]:
    """Gradients of x (float32), w_in, w_out and gates, None where not wanted."""
    few = w_in.shape[0] <= MASKED_UP_TO[x.dtype] * ids.shape[1]
    return (_masked if few else _gathered)(x, w_in, w_out, ids.long(), gates, dy, activation, want_x, want_w_in, want_w_out, want_gates)


def _masked(x, w_in, w_out, ids, gates, dy, activation, want_x, want_w_in, want_w_out, want_gates):
    """All experts for all tokens behind a mask of gates, a block of either at a time."""
    experts, hidden = w_in.shape
    tokens = x.shape[0]
    width = min(experts, max(_fitting(max(tokens, 1)) // 256 * 256, 256))
    dx = torch.zeros(tokens, hidden, dtype=torch.float32, device=x.device) if want_x else None
    dgates = torch.zeros_like(gates) if want_gates else None
    dw_in = torch.empty_like(w_in) if want_w_in else None
    dw_out = torch.empty_like(w_out) if want_w_out else None
    for own in pieces(experts, width):
        w, v = w_in[own], w_out[own]
        count = w.shape[0]
        sums_in = torch.zeros(count, hidden, dtype=torch.float32, device=x.device) if want_w_in else None
        sums_out = torch.zeros(count, hidden, dtype=torch.float32, device=x.device) if want_w_out else None
        for some in pieces(tokens, _fitting(count)):
            column = ids[some] - own.start
            inside = (column >= 0) & (column < count)
            # Pairs of other experts add nothing, and each to a column of its own, so that none is fought over.
            column = torch.where(inside, column, column.remainder(count))
            place = column + count * torch.arange(column.shape[0], device=x.device)[:, None]
            mask = torch.zeros(column.shape[0] * count, dtype=torch.float32, device=x.device)
            mask = mask.index_add_(0, place.view(-1), torch.where(inside, gates[some], 0.0).view(-1)).view(-1, count)
            value, slope = activate(activation, product(x[some], w.t()))
            u = product(dy[some], v.t())
            if dgates is not None:
                dgates[some] += torch.where(inside, (u * value).gather(1, column), 0.0)
            if sums_out is not None:
                sums_out += product((mask * value).to(x.dtype).t(), dy[some])
            q = (u * mask * slope).to(x.dtype)
            if sums_in is not None:
                sums_in += product(q.t(), x[some])
            if dx is not None:
                dx[some] += product(q, w)
        if dw_in is not None:
            dw_in[own] = sums_in
        if dw_out is not None:
            dw_out[own] = sums_out
    return dx, dw_in, dw_out, dgates


def _gathered(x, w_in, w_out, ids, gates, dy, activation, want_x, want_w_in, want_w_out, want_gates):
    """Rows of W and V pair by pair, a block of tokens at a time."""
    experts, hidden = w_in.shape
    tokens, top_k = ids.shape
    sums_in = torch.zeros(experts, hidden, dtype=torch.float32, device=x.device) if want_w_in else None
    sums_out = torch.zeros(experts, hidden, dtype=torch.float32, device=x.device) if want_w_out else None
    dx = torch.empty(tokens, hidden, dtype=torch.float32, device=x.device) if want_x else None
    dgates = torch.empty_like(gates) if want_gates else None
    for some in pieces(tokens, _fitting(top_k * hidden)):
        x_some, dy_some, flat = x[some].float(), dy[some].float(), ids[some].reshape(-1)
        rows = w_in.index_select(0, flat).float().view(-1, top_k, hidden)
        value, slope = activate(activation, torch.bmm(rows, x_some[:, :, None])[:, :, 0])
        u = torch.bmm(w_out.index_select(0, flat).float().view(-1, top_k, hidden), dy_some[:, :, None])[:, :, 0]
        if dgates is not None:
            dgates[some] = u * value
        q = u * gates[some] * slope
        if dx is not None:
            dx[some] = torch.bmm(q[:, None], rows)[:, 0]
        del rows
        if sums_in is not None:
            sums_in.index_add_(0, flat, (q[:, :, None] * x_some[:, None]).view(-1, hidden))
        if sums_out is not None:
            sums_out.index_add_(0, flat, ((gates[some] * value)[:, :, None] * dy_some[:, None]).view(-1, hidden))
    return (dx, None if sums_in is None else sums_in.to(w_in.dtype), None if sums_out is None else sums_out.to(w_out.dtype), dgates)


def mlp_backward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, dy: Tensor, activation: str, want_x: bool, want_gate: bool,
                 want_up: bool, want_down: bool) -> tuple[Optional[Tensor], ...]:
    """Gradients of x (float32), gate, up and down, None where not wanted."""
    sums = [torch.zeros(one.shape, dtype=torch.float32, device=x.device) if want else None
            for one, want in ((x, want_x), (gate, want_gate), (up, want_up), (down, want_down))]
    dx, dgate, dup, ddown = sums
    for some in pieces(x.shape[0], _fitting(gate.shape[0])):
        x_some, dy_some = x[some], dy[some]
        value, slope = activate(activation, product(x_some, gate.t()))
        raised = product(x_some, up.t())
        if ddown is not None:
            ddown += product(dy_some.t(), (value * raised).to(x.dtype))
        dh = product(dy_some, down)
        dg, dr = (dh * raised * slope).to(x.dtype), (dh * value).to(x.dtype)
        if dgate is not None:
            dgate += product(dg.t(), x_some)
        if dup is not None:
            dup += product(dr.t(), x_some)
        if dx is not None:
            dx[some] = product(dg, gate) + product(dr, up)
    return (dx, *(None if one is None else one.to(x.dtype) for one in (dgate, dup, ddown)))


def select_backward(rows: Tensor, cols: Tensor, ids: Tensor, given: Tensor, gate_mode: str, marginals: str) -> tuple[Tensor, Tensor]:
    """Gradients of both sides' logits."""
    place = ids.long()
    row, col = place // cols.shape[1], place % cols.shape[1]
    exact = marginals == "as_given"
    row_values, col_values = (rows, cols) if exact else (rows.log_softmax(1), cols.log_softmax(1))
    scores = row_values.gather(1, row) + col_values.gather(1, col)
    if gate_mode == "softmax":
        gates = scores.softmax(1)
        slope = gates * (given - (gates * given).sum(1, keepdim=True))
    elif gate_mode == "probability":
        slope = scores.exp() * given
    elif gate_mode == "relu":
        slope = torch.where(scores > 0, given, 0.0)
    else:
        slope = given
    made = []
    for values, at in ((row_values, row), (col_values, col)):
        count = values.shape[1]
        flat = at + count * torch.arange(values.shape[0], device=values.device)[:, None]
        sums = torch.zeros(values.numel(), dtype=values.dtype, device=values.device)
        sums = sums.index_add_(0, flat.view(-1), slope.reshape(-1)).view_as(values)
        made.append(sums if exact else sums - values.exp() * sums.sum(1, keepdim=True))
    return made[0], made[1]
