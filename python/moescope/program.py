"""The program's commands from Python.

    moescope.run(preset="tiny", K=8, workload="zipf:1")              # a DataFrame, a row a value
    moescope.compare(preset="tiny", output="my-run")                 # and rows.jsonl, rows.csv, run.json stay there
    moescope.simulate(preset="table-a-1024-512", device="h100-sxm")
    print(moescope.inspect("routing.npz"))                           # what the command prints

An option is spelt as on the command line, with _ for -: min_samples=3 is --min-samples 3, K=8 is -K 8. An iterable is joined with
commas; of workload, schedule, system and others that the program takes several times it repeats the option. True is the option
alone, None and False leave it out. `moescope.command("check", "--full")` runs anything.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

if TYPE_CHECKING:
    import pandas as pd

PathLike = Union[str, "os.PathLike[str]"]


class ProgramError(RuntimeError):
    """A command that failed: `exit_code` as docs/reference/exit-codes.md has it, `message` what it said."""

    def __init__(self, words: list[str], exit_code: int, message: str):
        super().__init__(f"moescope {' '.join(words[:1])}: exit code {exit_code}: {message}")
        self.exit_code = exit_code
        self.message = message


def _is_program(path: Path) -> bool:
    """An executable that is not this package's own console script."""
    if not (path.is_file() and os.access(path, os.X_OK)):
        return False
    with open(path, "rb") as stream:
        return stream.read(2) != b"#!"


def program_path() -> Path:
    """Where the program is: $MOESCOPE, in the package, in the checkout's builds, on PATH. Raises FileNotFoundError."""
    if os.environ.get("MOESCOPE"):
        places = [Path(os.environ["MOESCOPE"])]
    else:
        here = Path(__file__).resolve().parent
        places = [here / "bin" / "moescope", *(here.parents[1] / "build" / build / "experiments" / "moescope" for build in (
            "cuda", "cpu"))]
        places += [Path(folder) / "moescope" for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    found = next((place for place in places if _is_program(place)), None)
    if found is None:
        raise FileNotFoundError("no program moescope: looked for $MOESCOPE, in the package, in build/ of the checkout, and on PATH")
    return found


def command(*words: Any, check: bool = True, cwd: Optional[PathLike] = None) -> subprocess.CompletedProcess[str]:
    """Runs `moescope WORDS...` and returns what it printed. A code other than 0 is a ProgramError, unless check=False."""
    line = [os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in words]
    done = subprocess.run([str(program_path()), *line], capture_output=True, text=True, check=False, cwd=cwd)
    if check and done.returncode != 0:
        raise ProgramError(line, done.returncode, (done.stderr.strip() or done.stdout.strip()).removeprefix("moescope: "))
    return done


_REPEATED = {"exchange", "placement", "schedule", "system", "vary", "workload"}  # options that stand there once for each value


def _options(options: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        option = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
        several = not isinstance(value, (str, os.PathLike)) and isinstance(value, Iterable)
        if value is True:
            words.append(option)
        elif several and name in _REPEATED:
            for one in value:
                words += [option, str(one)]
        else:
            words += [option, ",".join(map(str, value)) if several else str(value)]
    return words


def _rows(name: str, output: Optional[PathLike], options: dict[str, Any], cwd: Optional[PathLike] = None) -> "pd.DataFrame":
    from moescope import rows  # before the command runs: without pandas nothing is to be done in vain

    with tempfile.TemporaryDirectory(prefix="moescope-") as scratch:
        folder = Path(output).resolve() if output is not None else Path(scratch) / "rows"
        command(name, *_options(options), "--output", folder, "--quiet", cwd=cwd)
        return rows.load(str(folder / "rows.jsonl"))


def run(*, output: Optional[PathLike] = None, **options: Any) -> "pd.DataFrame":
    """`moescope run`: one configuration through the whole layer. Rows stay in `output` where it is given."""
    return _rows("run", output, options)


def compare(*, output: Optional[PathLike] = None, **options: Any) -> "pd.DataFrame":
    """`moescope compare`: every schedule side by side; without options over skew, which takes a minute."""
    return _rows("compare", output, options)


def simulate(*, output: Optional[PathLike] = None, **options: Any) -> "pd.DataFrame":
    """`moescope simulate`: bytes and time of each stage on modelled GPUs."""
    return _rows("simulate", output, options)


def inspect(*files: PathLike, **options: Any) -> str:
    """`moescope inspect`: what it prints of a file, or of a workload."""
    return command("inspect", *files, *_options(options)).stdout


def load_rows(*patterns: PathLike, root: Optional[PathLike] = None) -> "pd.DataFrame":
    """Rows of files (.jsonl, .csv, either also .gz; globs too), relative to `root` or the current folder: moescope.rows.load()."""
    from moescope import rows

    return rows.load(*(os.fspath(pattern) for pattern in patterns), root=Path(root) if root is not None else Path.cwd())


def main() -> None:
    """The console script `moescope`: becomes the program."""
    try:
        program = str(program_path())
    except FileNotFoundError as error:
        sys.exit(f"moescope: {error}")
    os.execv(program, [program, *sys.argv[1:]])
