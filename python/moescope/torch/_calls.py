"""How an operator's call reaches the library, in as little Python as that takes.

What tensors have to be is checked when types, shapes and devices come together for the first time. What follows of it, structs and
size of the workspace, is a Plan: a call with the same ones finds it and fills in addresses. Plans belong to a thread.
"""
from __future__ import annotations

import ctypes
import threading
from functools import reduce
from operator import attrgetter, or_
from typing import Any, Optional

import torch
from torch import Tensor

from moescope import _library as lib

_MOST_PLANS = 2048  # of a thread: numbers of tokens come and go
_METADATA = attrgetter("shape", "dtype", "device")
_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", lambda index: torch.cuda.current_stream(index).cuda_stream)
_deterministic = getattr(torch._C, "_get_deterministic_algorithms", torch.are_deterministic_algorithms_enabled)
_contiguous, _address = Tensor.is_contiguous, Tensor.data_ptr
_empty, _bytes, _threads = torch.empty, torch.uint8, torch.get_num_threads


class Plan:
    """An operation at one shape in one place: what a call of it needs beside addresses."""

    __slots__ = ("device", "function", "index", "shape", "shape_reference", "size", "where", "where_reference")

    def __init__(self, operation: str, shape: lib.Shape, device: torch.device):
        self.device, self.shape = device, shape
        self.index = -1 if device.type == "cpu" else torch.cuda.current_device() if device.index is None else device.index
        self.where = lib.execution(device=lib.CPU if self.index < 0 else lib.CUDA, device_index=max(self.index, 0),
                                   num_threads=torch.get_num_threads() if self.index < 0 else 0, deterministic=bool(_deterministic()))
        self.size = lib.workspace_bytes(operation, shape, self.where)  # raises for a shape that cannot be
        self.function = lib.function(operation)
        self.shape_reference, self.where_reference = ctypes.byref(shape), ctypes.byref(self.where)

    def call(self, *arguments: Any) -> None:
        """arguments: addresses and references to structs behind shape and execution."""
        where = self.where
        if self.index >= 0:
            where.stream = _raw_stream(self.index)
            if self.size:
                workspace = _empty(self.size, dtype=_bytes, device=self.device)  # PyTorch aligns to 512 bytes
                where.workspace, where.workspace_bytes = workspace.data_ptr(), self.size
        elif self.size:
            workspace = _empty(self.size + 63, dtype=_bytes)
            where.workspace, where.workspace_bytes = (workspace.data_ptr() + 63) & -64, self.size
        status = self.function(self.shape_reference, self.where_reference, *arguments)
        if status:
            lib.raise_for(status)


class _Plans(threading.local):
    def __init__(self) -> None:
        self.of: dict[tuple, Plan] = {}


_plans = _Plans()


def _key(operation: str, options: Any, tensors: tuple) -> tuple:
    threads = 0 if tensors[0].is_cuda else _threads()
    return (operation, options, threads, _deterministic(), *map(_METADATA, tensors))


def planned(operation: str, options: Any, tensors: tuple) -> tuple[Optional[Plan], list[int]]:
    """The plan of a call like one that was made before, and the tensors' addresses; None where there was none, or where tensors have
    to be copied first."""
    plan = _plans.of.get(_key(operation, options, tensors))
    if plan is None or not all(map(_contiguous, tensors)):
        return None, []
    addresses = [*map(_address, tensors)]
    return (None, []) if plan.index >= 0 and reduce(or_, addresses) & 15 else (plan, addresses)


def plan_of(operation: str, options: Any, tensors: tuple, shape: lib.Shape) -> tuple[Plan, list[int]]:
    """A plan, to be found from now on, for tensors that were checked; and their addresses."""
    plan = Plan(operation, shape, tensors[0].device)
    if len(_plans.of) >= _MOST_PLANS:
        _plans.of.clear()
    _plans.of[_key(operation, options, tensors)] = plan
    return plan, [*map(_address, tensors)]


_float64, _float32 = torch.float64, torch.float32


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of logits, gates and scores that go with tensors of `dtype`."""
    return _float64 if dtype is _float64 else _float32


def dense(tensor: Tensor) -> Tensor:
    """Contiguous, and on CUDA aligned to what kernels load at once: a view may begin anywhere."""
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
    return tensor.clone() if tensor.is_cuda and tensor.data_ptr() % 16 else tensor


def require(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple, device: torch.device) -> Tensor:
    """Contiguous, and just so; the error names what it is instead."""
    if tensor.dtype != dtype:
        raise lib.MoescopeValueError(f"{name}: dtype {tensor.dtype} must be {dtype}")
    if tensor.shape != shape:
        raise lib.MoescopeValueError(f"{name}: shape {list(tensor.shape)} must be {list(shape)}")
    if tensor.device != device:
        raise lib.MoescopeValueError(f"{name}: device {tensor.device} must be {device}")
    return dense(tensor)
