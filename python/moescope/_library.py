"""libmoescope by ctypes: structs, functions and errors of moescope.h, and nothing that knows of arrays."""
from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from functools import lru_cache
from pathlib import Path

ABI_VERSION = 1
DTYPES = {"float32": 0, "float64": 1, "bfloat16": 2}
COMPUTE = {"float32": "float32", "float64": "float64", "bfloat16": "float32"}
ID_DTYPES = {"int32": 0, "int64": 1}
ACTIVATIONS = {"silu": 0, "gelu": 1, "relu": 2}
GATE_MODES = {"softmax": 0, "probability": 1, "relu": 2, "score": 3}
MARGINALS = {"log_softmax": 0, "as_given": 1}
CPU, CUDA = 0, 1
OPERATIONS = {name: code for code, name in enumerate((
    "select_forward", "select_backward", "experts_forward", "experts_backward", "mlp_forward", "mlp_backward", "layer_forward",
    "layer_backward"))}


class MoescopeError(Exception):
    """What libmoescope refused or could not do; `kind` is its code's name, such as "value" or "not_built"."""

    kind = "internal"


class MoescopeValueError(MoescopeError, ValueError):
    """An extent, an option, an id or a logit that cannot be; the message names it with its value."""

    kind = "value"


class MoescopeMemoryError(MoescopeError, MemoryError):
    """The system has no memory left."""

    kind = "memory"


class MoescopeUnsupported(MoescopeError, NotImplementedError):
    """There is no code for it on that device, or the library was built without the device."""

    kind = "unsupported"


class Shape(ctypes.Structure):
    _fields_ = [("struct_bytes", c_size_t), ("num_tokens", c_int64), ("hidden_size", c_int64), ("grid_rows", c_int64),
                ("grid_cols", c_int64), ("top_k", c_int64), ("shared_size", c_int64), ("dtype", c_int32), ("id_dtype", c_int32),
                ("activation", c_int32), ("gate_mode", c_int32), ("marginals", c_int32), ("reserved", c_int32)]


class Execution(ctypes.Structure):
    _fields_ = [("struct_bytes", c_size_t), ("device", c_int32), ("device_index", c_int32), ("stream", c_void_p),
                ("blas", c_void_p), ("workspace", c_void_p), ("workspace_bytes", c_size_t), ("num_threads", c_int32),
                ("deterministic", c_int32), ("schedule", c_int32), ("reserved", c_int32), ("strip_entries", c_int64),
                ("strip_tiles", c_int64)]


class LayerInputs(ctypes.Structure):
    _fields_ = [("struct_bytes", c_size_t)] + [(name, c_void_p) for name in (
        "x", "row_logits", "col_logits", "w_in", "w_out", "shared_gate", "shared_up", "shared_down", "expert_bound", "strip_counts")]


class LayerGradients(ctypes.Structure):
    _fields_ = LayerInputs._fields_[:-2]


# Of every operation how many arrays follow shape and execution; the layer's are structs and arrays.
_ARRAYS = {"select_forward": 5, "select_backward": 6, "experts_forward": 6, "experts_backward": 10, "mlp_forward": 5,
           "mlp_backward": 9}


def _candidates() -> list[Path]:
    """Where the library may lie: $MOESCOPE_LIBRARY, in the package, in the checkout's builds."""
    named = os.environ.get("MOESCOPE_LIBRARY")
    if named:
        return [Path(named)]
    here = Path(__file__).resolve().parent
    return [here / "lib" / "libmoescope.so", *(here.parents[1] / "build" / build / "capi" / "libmoescope.so" for build in (
        "cuda", "cpu"))]


def _require_cpu(path: Path) -> None:
    """Raises MoescopeError where the library has instructions that this CPU has not: it would end the process."""
    built_for = path.with_name("arch.txt")
    if not built_for.is_file() or built_for.read_text(encoding="ascii").strip() != "x86-64-v3":
        return
    flags = next((line.split() for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if line.startswith("flags")),
                 None)
    missing = [] if flags is None else [name for name in ("avx2", "fma", "bmi2") if name not in flags]
    if missing:
        raise MoescopeError(f"{path} needs a CPU with {', '.join(missing)} (x86-64-v3)")


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """libmoescope, with the types of its functions. Raises MoescopeError where there is none, or one of another ABI."""
    places = _candidates()
    path = next((place for place in places if place.is_file()), None)
    if path is not None:
        _require_cpu(path)
    try:
        loaded = ctypes.CDLL(str(path or "libmoescope.so.0"))
    except OSError as error:
        looked = ", ".join(map(str, places))
        raise MoescopeError(f"libmoescope cannot be loaded: {error}; looked for {looked}, and as a system library. "
                            "MOESCOPE_LIBRARY names another") from None
    loaded.moescope_version.restype = c_char_p
    loaded.moescope_last_error.restype = c_char_p
    loaded.moescope_status_name.restype = c_char_p
    loaded.moescope_status_name.argtypes = [c_int32]
    loaded.moescope_supports.argtypes = [c_int32]
    if loaded.moescope_abi_version() != ABI_VERSION:
        raise MoescopeError(f"{path}: ABI version {loaded.moescope_abi_version()}, this package needs {ABI_VERSION}")
    leading: list = [POINTER(Shape), POINTER(Execution)]
    loaded.moescope_workspace_bytes.argtypes = [c_int32, *leading, POINTER(c_size_t)]
    for name, count in _ARRAYS.items():
        getattr(loaded, f"moescope_{name}").argtypes = leading + [c_void_p] * count
    loaded.moescope_layer_forward.argtypes = [*leading, POINTER(LayerInputs), c_void_p, c_void_p, c_void_p]
    loaded.moescope_layer_backward.argtypes = [*leading, POINTER(LayerInputs), c_void_p, c_void_p, c_void_p,
                                               POINTER(LayerGradients)]
    return loaded


def raise_for(status: int) -> None:
    """Raises what a status means, with the library's text."""
    if status == 0:
        return
    text = library().moescope_last_error().decode()
    kind = library().moescope_status_name(status).decode()
    error: MoescopeError
    if kind in ("value", "null", "workspace"):
        error = MoescopeValueError(text)
    elif kind in ("unsupported", "not_built"):
        error = MoescopeUnsupported(text)
    elif kind == "memory":
        error = MoescopeMemoryError(text)
    else:
        error = MoescopeError(text)
    error.kind = kind
    raise error


def library_version() -> str:
    """Version of the loaded libmoescope, such as "0.1.0"."""
    return library().moescope_version().decode()


def supports_cuda() -> bool:
    """Whether the loaded libmoescope has kernels for CUDA."""
    return bool(library().moescope_supports(CUDA))


def code(table: dict[str, int], name: str, value: str) -> int:
    """The number of a word; raises MoescopeValueError naming it with the words that are known."""
    try:
        return table[value]
    except (KeyError, TypeError):
        raise MoescopeValueError(f"{name}: {value!r} is not one of {', '.join(table)}") from None


@lru_cache(maxsize=1024)
def shape(*, num_tokens: int, dtype: str, hidden_size: int = 1, grid_rows: int = 1, grid_cols: int = 1, top_k: int = 1,
          shared_size: int = 0, id_dtype: str = "int32", activation: str = "silu", gate_mode: str = "softmax",
          marginals: str = "log_softmax") -> Shape:
    """A shape of words and numbers; extents are checked by the library. Kept, because models ask for the same ones: not to be
    changed."""
    made = Shape(ctypes.sizeof(Shape), num_tokens, hidden_size, grid_rows, grid_cols, top_k, shared_size,
                 code(DTYPES, "dtype", dtype), code(ID_DTYPES, "ids' dtype", id_dtype), code(ACTIVATIONS, "activation", activation),
                 code(GATE_MODES, "gates", gate_mode), code(MARGINALS, "marginals", marginals), 0)
    made.sizes = {}
    return made


def execution(*, device: int = CPU, device_index: int = 0, stream: int = 0, num_threads: int = 0,
              deterministic: bool = False, strip_counts: tuple[int, int] = (0, 0)) -> Execution:
    """Where and how, without a workspace yet. strip_counts: entries and tiles, where they are known."""
    return Execution(ctypes.sizeof(Execution), device, device_index, stream or None, None, None, 0, num_threads,
                     int(deterministic), 0, 0, *strip_counts)


def workspace_bytes(operation: str, of: Shape, where: Execution) -> int:
    """Bytes that an operation needs; raises for a shape that cannot be. The shape remembers what the library said, but for OpenMP's
    own number of threads, which may change."""
    key = (operation, where.device, where.device_index, where.num_threads, where.deterministic, where.strip_entries, where.strip_tiles)
    known = of.sizes.get(key)
    if known is None:
        size = c_size_t()
        raise_for(library().moescope_workspace_bytes(OPERATIONS[operation], byref(of), byref(where), byref(size)))
        known = size.value
        if where.num_threads > 0 or where.device != CPU:
            of.sizes[key] = known
    return known


def give_workspace(where: Execution, address: int, size: int) -> None:
    """Sets the workspace to the 64-byte aligned part of an array of `size` + 63 bytes at `address`."""
    where.workspace = (address + 63) // 64 * 64
    where.workspace_bytes = size


@lru_cache(maxsize=1)
def python_calls() -> tuple:
    """The library's functions for Python, () where it or the interpreter has none."""
    try:
        found = ctypes.PyDLL(None, handle=library()._handle).moescope_python_calls
        found.restype = ctypes.py_object
        return found()
    except (AttributeError, ValueError):  # an older library; no CPython
        return ()


@lru_cache(maxsize=None)
def function(operation: str):
    """The function behind an operation: it takes references to shape and execution, then what moescope.h says."""
    return getattr(library(), f"moescope_{operation}")


def call(operation: str, of: Shape, where: Execution, *arguments) -> None:
    """One function of the interface; raises what it reports."""
    status = function(operation)(byref(of), byref(where), *arguments)
    if status:
        raise_for(status)
