"""How an operator's call reaches the library, in as little Python as that takes.

What tensors have to be is checked when types, shapes and devices come together for the first time. What follows of it, structs and
size of the workspace, is a Plan: a call with the same ones finds it and fills in addresses. Plans belong to a thread.

Where PyTorch gives C its tensors (2.10 and later, by DLPack's exchange functions), the library keeps the same plans and calls past
Python and ctypes: `quick` has its functions. They answer None to every call that they have no plan for, and what is here goes on.
"""
from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import reduce
from operator import attrgetter, is_not, or_
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

    def __init__(self, operation: str, shape: lib.Shape, device: torch.device, strip_counts: tuple[int, int]):
        self.device, self.shape = device, shape
        self.index = -1 if device.type == "cpu" else torch.cuda.current_device() if device.index is None else device.index
        self.where = lib.execution(device=lib.CPU if self.index < 0 else lib.CUDA, device_index=max(self.index, 0),
                                   num_threads=torch.get_num_threads() if self.index < 0 else 0, deterministic=bool(_deterministic()),
                                   strip_counts=strip_counts)
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


def plan_of(operation: str, options: Any, tensors: tuple, shape: lib.Shape,
            strip_counts: tuple[int, int] = (0, 0)) -> tuple[Plan, list[int]]:
    """A plan, to be found from now on, for tensors that were checked; and their addresses. strip_counts: of what the options say."""
    plan = Plan(operation, shape, tensors[0].device, strip_counts)
    if len(_plans.of) >= _MOST_PLANS:
        _plans.of.clear()
    _plans.of[_key(operation, options, tensors)] = plan
    return plan, [*map(_address, tensors)]


FORMS = ("select", "select_backward", "experts", "experts_backward", "mlp", "mlp_backward", "layer", "layer_backward", "layer_output",
         "layer_output_backward")


def _nothing(*_arguments: Any) -> None:
    return None


class Quick:
    """The library's functions: of every form `kernel`, and `road` where nobody stands between. All answer None until there are."""

    def __init__(self) -> None:
        self._asked, self._learn, self._enable, self.direct = False, None, None, [None] * len(FORMS)
        self._put([_nothing] * len(FORMS), [_nothing] * len(FORMS))

    def _put(self, kernels: Sequence[Callable], roads: Sequence[Callable]) -> None:
        for name, kernel, road in zip(FORMS, kernels, roads):
            setattr(self, name, kernel)
            setattr(self, f"{name}_road", road)

    def _attach(self) -> None:
        """Once, when the library is there."""
        self._asked = True
        exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
        stands_between = _stands_between()
        functions = lib.python_calls() if exchange is not None and stands_between is not None else ()
        if functions and functions[0](exchange, Tensor, torch.nn.Parameter, torch.empty_like, _deterministic, _threads,
                                      torch.is_grad_enabled, stands_between, tuple(self.direct)):
            _, self._enable, self._learn, *others = functions
            self._put(others[:len(FORMS)], others[len(FORMS):])

    @property
    def attached(self) -> bool:
        """Whether calls can go past Python here; known once a call was made."""
        return self._learn is not None

    def enable(self, on: bool) -> None:
        """For tests: without it every call goes through Python."""
        if self._enable is not None:
            self._enable(on)

    def learn(self, form: str, given: tuple, taken: tuple, options: tuple, plan: Plan, made: tuple) -> None:
        """What the first call of its kind has made. given: its tensors, or None; taken: those that went to the library, the same
        ones where nothing had to be copied."""
        if not self._asked:
            self._attach()
        there = [one for one in given if one is not None]
        if self._learn is None or len(there) != len(taken) or any(map(is_not, there, taken)):
            return
        if plan.index >= 0 and torch.cuda.is_current_stream_capturing():
            return  # what is kept would lie in the graph's memory
        kept = tuple(one.new_empty(1).expand(one.shape) if one.numel() > 0 else one for one in made)
        workspace = None
        if plan.size:
            room = plan.size if plan.index >= 0 else plan.size + 63
            workspace = torch.empty(1, dtype=_bytes, device=plan.device).expand(room)
        self._learn(FORMS.index(form), (*given, *options), ctypes.addressof(plan.shape), ctypes.addressof(plan.where), workspace, made,
                    kept)


def _stands_between() -> Optional[tuple]:
    """Functions that are all false where a call may go past the dispatcher; None where this PyTorch has not all of them."""
    asked = (getattr(torch._C, "_len_torch_dispatch_stack", None), getattr(torch._C, "_is_tracing", None),
             getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None),
             getattr(torch._C, "_is_any_autocast_enabled", None))
    return None if None in asked else asked


quick: Any = Quick()

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
