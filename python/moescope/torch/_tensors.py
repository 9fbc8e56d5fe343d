"""What operators ask of the tensors they are given, and what they write gradients into."""
from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from moescope import _library as lib
from moescope.torch._calls import require

_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
_IDS = {torch.int32: "int32", torch.int64: "int64"}


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
    return require(name, ids, ids.dtype, ids.shape, device)


def _wanted(like: Tensor, want: bool) -> Tensor:
    """What a gradient is written into: of the size of `like`, or without elements."""
    return torch.empty_like(like, memory_format=torch.contiguous_format) if want else like.new_empty(0)


def _made(tensors, want) -> tuple[list[Tensor], list[Optional[int]]]:
    """Gradients of tensors, and their addresses: none of those that are not made."""
    made = [_wanted(like, one) for like, one in zip(tensors, want)]
    return made, [one.data_ptr() if need else None for one, need in zip(made, want)]


def _tables_together(x: Tensor, want: list[bool], first: int) -> list[bool]:
    """What is made where `want` is asked for: on CUDA the gradients of w_in (at `first`) and w_out both or neither."""
    if not x.is_cuda or want[first] == want[first + 1]:
        return want
    return [*want[:first], True, True, *want[first + 2:]]


def _only(made: list[Tensor], want: list[bool]) -> list[Tensor]:
    """Tensors without elements for what was made but not wanted."""
    return [one if need or one.numel() == 0 else one.new_empty(0) for one, need in zip(made, want)]
