"""moescope from Python: the OmniMoE layer, the program's commands, rows as frames, and routing recorded from models.

    import moescope
    frame = moescope.compare(preset="tiny")            # the program's command; a row a value
    rows = moescope.load_rows("my-run/rows.jsonl")      # needs pandas

    import moescope.numpy as mn                         # the layer on arrays; needs NumPy
    import moescope.torch                               # the layer as an operator and a module; needs torch
    import moescope.record                              # routing of any model into files the program reads

Importing this alone needs nothing but Python; what is missing is said by what needs it.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moescope._library import MoescopeError, library_version, supports_cuda

__version__ = "0.1.0"
__all__ = ["MoescopeError", "ProgramError", "RowError", "__version__", "command", "compare", "inspect", "library_version", "load_rows",
           "program_path", "run", "simulate", "supports_cuda"]

if TYPE_CHECKING:
    from moescope.program import ProgramError, command, compare, inspect, load_rows, program_path, run, simulate
    from moescope.rows import RowError

_PROGRAM = {"ProgramError", "command", "compare", "inspect", "load_rows", "program_path", "run", "simulate"}


def __getattr__(name: str) -> Any:
    if name in _PROGRAM:
        import moescope.program
        return getattr(moescope.program, name)
    if name == "RowError":
        from moescope.rows import RowError
        return RowError
    raise AttributeError(f"module 'moescope' has no attribute {name!r}")
