"""Recorded rows of moescope as a pandas DataFrame: the one reader of rows in Python.

    from moescope import rows as mr
    rows = mr.load("results/h100/profile.jsonl", "my-run/rows.csv")     # globs and .gz too
    mr.pivot(mr.select(rows, metric="time_s", L=4096), index="stage", columns="schedule")

A frame has a line per value. Its columns are the fields of core/results/result.schema.json, in that order, then those of the
run's header that say where a value comes from (device, git_revision, git_dirty, started_utc, command_line), then
`file`. Values keep the unit that stands in column `unit`: nothing is converted. What cannot be read is a RowError
that names file, line and field; no row is left out in silence, except those of a sweep's point that has no end
(schema: a point counts whole or not at all).
"""
from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

try:
    import pandas as pd
except ModuleNotFoundError:
    raise ModuleNotFoundError("moescope's rows need pandas: pip install pandas", name="pandas") from None

_HERE = Path(__file__).resolve().parent
# The checkout that this file lies in; None where it is installed, whose schema lies beside it.
ROOT = _HERE.parents[1] if (_HERE.parents[1] / "core" / "results" / "result.schema.json").is_file() else None
_SCHEMA = json.loads((ROOT / "core" / "results" / "result.schema.json" if ROOT else _HERE / "result.schema.json").read_text(
    encoding="utf-8"))["$defs"]["row"]
_FIELDS = _SCHEMA["properties"]
# dtype is left open: rows of version 1 that describe test runs say "all".
_ALLOWED = {field: rules["enum"] for field, rules in _FIELDS.items() if "enum" in rules and field != "dtype"}
_SINCE = [(rule["if"]["properties"]["schema_version"]["enum"], rule["then"]["required"]) for rule in _SCHEMA["allOf"]
          if "required" in rule["then"]]
_REQUIRED = {version: _SCHEMA["required"] + [field for versions, fields in _SINCE if version in versions for field in fields]
             for version in _FIELDS["schema_version"]["enum"]}
TILE_TOKENS = 128  # of every staircase before version 3
MEMORY_FORMULAS = ("workspace_bytes", "peak_bytes")
HEADER_FIELDS = ("device", "git_revision", "git_dirty", "started_utc", "command_line")
# What makes a value the same quantity when it is measured again.
_POINT = tuple(_FIELDS)[2:list(_FIELDS).index("stage")]  # behind schema_version and run_id
IDENTITY = (*_POINT, "stage", "source", "metric", "device")
# What rows were before there was a field that says it.
IMPLIED = {"direction": "forward", "save": "none", "gradients": "none", "optimizer": "none", "ranks": 1, "placement": "none", "exchange": "none"}
EXPERT_STAGES = ("expert_scores", "expert_combine")  # a fused kernel reports one stage, `experts`


def __getattr__(name: str) -> str:
    """GPU: the device whose recorded rows notebooks read, a folder of results/ that scripts/record.sh made: that with most files,
    or the one that MOESCOPE_GPU names."""
    if name != "GPU" or ROOT is None:
        raise AttributeError(f"module 'moescope.rows' has no attribute {name!r}")
    return os.environ.get("MOESCOPE_GPU") or max(
        sorted(path.parent for path in (ROOT / "results").glob("*/ceilings.jsonl")), key=lambda folder: len(list(folder.iterdir()))).name


class RowError(ValueError):
    """A file of rows that cannot be read, or rows that do not answer the question."""


_PYTHON: dict = {"integer": int, "number": (int, float), "string": str, "null": type(None)}
_KINDS = {field: [rules["type"]] if isinstance(rules["type"], str) else rules["type"]
          for field, rules in _FIELDS.items() if "type" in rules}
_MOST_BYTES = 2 << 30  # of text in a file
_MOST_EXTENT = 1 << 31
_EXTENTS = tuple(field for field in _POINT if "integer" in _KINDS.get(field, []) and field != "seed")


def _check_version(line: dict, place: str) -> None:
    version = line.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version not in _REQUIRED:
        raise RowError(f"{place}: schema_version {version!r} is not one of {sorted(_REQUIRED)}")


def _check_field(field: str, value, place: str) -> None:
    """What the schema says of one field: type, range, words."""
    kinds = _KINDS.get(field, [])
    fits = any(isinstance(value, _PYTHON[kind]) and not isinstance(value, bool) for kind in kinds)
    if (kinds and not fits) or (isinstance(value, float) and not math.isfinite(value)):
        raise RowError(f"{place}: {field} {value!r} is not {'a finite number' if 'number' in kinds else ' or '.join(kinds)}")
    if isinstance(value, str) and len(value) < _FIELDS[field].get("minLength", 0):
        raise RowError(f"{place}: {field} {value!r} is not a name")
    if isinstance(value, (int, float)) and value < _FIELDS[field].get("minimum", value):
        raise RowError(f"{place}: {field} {value!r} is below {_FIELDS[field]['minimum']}")
    if field in _EXTENTS and value is not None and value >= _MOST_EXTENT:
        raise RowError(f"{place}: {field} {value!r} is not below 2^31")


def _check(row: dict, place: str) -> None:
    _check_version(row, place)
    for field in _REQUIRED[row["schema_version"]]:
        if field not in row:
            raise RowError(f"{place}: field {field} is missing")
    for field, allowed in _ALLOWED.items():
        if field in row and row[field] not in allowed:
            raise RowError(f"{place}: {field} {row[field]!r} is not one of {', '.join(map(str, allowed))}")
    for field in row:
        if field in _FIELDS:
            _check_field(field, row[field], place)
    if (row["value"] is not None) != (row["status"] == "ok"):
        raise RowError(f"{place}: value {row['value']!r} with status {row['status']}")
    if row["value"] == 0 and row["unit"] == "s" and row["source"] == "measured":
        raise RowError(f"{place}: value {row['value']!r}: a measured time is above 0")
    if row["status"] != "ok" and not row["reason"]:
        raise RowError(f"{place}: status {row['status']} without a reason")


def _header(line: dict, place: str) -> dict:
    _check_version(line, place)
    header = line["header"]
    if not isinstance(header, dict):
        raise RowError(f"{place}: header {header!r} is not an object")
    if not isinstance(line.get("run_id"), str):
        raise RowError(f"{place}: run_id {line.get('run_id')!r} is not a name")
    missing = [field for field in HEADER_FIELDS if field not in header]
    if missing:
        raise RowError(f"{place}: header has no {', '.join(missing)}")
    for field in HEADER_FIELDS:
        if not isinstance(header[field], bool if field == "git_dirty" else str):
            raise RowError(f"{place}: header.{field} {header[field]!r} is not {'true or false' if field == 'git_dirty' else 'a text'}")
    return {"run_id": line["run_id"], **{field: header[field] for field in HEADER_FIELDS}}


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} does not fit a number")
    return value


def _distinct(pairs: list) -> dict:
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return members


def _object(text: str, place: str) -> dict:
    """The JSON object that a text is."""
    try:
        line = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_distinct)
    except RecursionError:
        raise RowError(f"{place}: not JSON of ours: nests too deep") from None
    except ValueError as error:
        raise RowError(f"{place}: not JSON: {error}") from None
    if not isinstance(line, dict):
        raise RowError(f"{place}: not an object")
    return line


def _read(path: Path) -> str:
    """The text of a regular file, unpacked when it is a .gz. Opening a FIFO would wait for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RowError(f"{path}: not a regular file")
            unpacked = gzip.open(stream) if path.suffix == ".gz" else stream
            data = unpacked.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise RowError(f"{path}: more than {_MOST_BYTES} bytes of text")
        text = data.decode("utf-8")
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: not UTF-8, or a name with a zero byte
        if isinstance(error, RowError):
            raise
        raise RowError(f"{path}: cannot be read: {error}") from None
    if text.startswith("version https://git-lfs.github.com/spec/"):
        raise RowError(f"{path}: is a Git LFS pointer, not the data (git lfs pull fetches it)")
    return text


def _read_jsonl(path: Path) -> Iterator[dict]:
    header: dict | None = None
    waiting: list[dict] = []  # rows of a point whose end has not come
    for number, text in enumerate(_read(path).split("\n"), 1):
        place = f"{path}:{number}"
        if not text.strip():
            continue
        line = _object(text, place)
        if "header" in line:
            header, waiting = _header(line, place), []
            continue
        if header is None or line.get("run_id") != header["run_id"]:
            raise RowError(f"{place}: run_id {line.get('run_id')!r} has no header line before it")
        if isinstance(line.get("point"), dict):
            if line["point"].get("rows") != len(waiting):
                raise RowError(f"{place}: point ends with {line['point'].get('rows')} rows, "
                               f"{len(waiting)} stand before it")
            yield from waiting
            waiting = []
            continue
        _check(line, place)
        row = {**line, **header}
        if line.get("point"):
            waiting.append(row)
        else:
            yield row


def _cell(field: str, text: str, place: str):
    """A CSV cell as its JSON value: an empty cell is null where the schema allows null. Text that a spreadsheet would
    compute has an apostrophe before it."""
    kinds = ["integer"] if field == "schema_version" else _KINDS.get(field, ["string"])
    if "string" in kinds:
        return text[1:] if text[:1] == "'" else text
    if not text:
        return None
    number = (_INTEGER if "integer" in kinds else _NUMBER).fullmatch(text)
    if number is None or len(text) > 40:
        raise RowError(f"{place}: {field} {text!r} is not a number")
    return int(text) if "integer" in kinds else float(text)


_INTEGER = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")


def _read_csv(path: Path) -> Iterator[dict]:
    run = path.with_name("run.json")
    if not run.exists():
        raise RowError(f"{path}: needs run.json beside it, which says device and revision")
    line = _object(_read(run), str(run))
    if "header" not in line:
        raise RowError(f"{run}: header is missing")
    header = _header(line, str(run))
    reader = csv.reader(io.StringIO(_read(path), newline=""), strict=True)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise RowError(f"{path}:1: a column stands there twice")
        for cells in reader:
            place = f"{path}:{reader.line_num}"
            if not cells:
                continue
            if len(cells) != len(names):
                raise RowError(f"{place}: {len(cells)} cells under {len(names)} columns")
            row = {field: _cell(field, text, place) for field, text in zip(names, cells)}
            _check(row, place)
            yield {**row, **header}
    except csv.Error as error:
        raise RowError(f"{path}:{reader.line_num}: not CSV: {error}") from None


def load(*patterns: str | Path, root: str | Path | None = None) -> pd.DataFrame:
    """Rows of files (.jsonl, .csv, either also .gz), which may be globs, absolute or relative to `root`: where it is not given,
    the checkout, or the current folder where there is none."""
    root = Path(root or ROOT or Path.cwd())
    records: list[dict] = []
    for pattern in map(str, patterns):
        base, rest = (Path("/"), pattern[1:]) if pattern.startswith("/") else (root, pattern)
        try:
            files = sorted(base.glob(rest))
        except (ValueError, NotImplementedError, OSError) as error:
            raise RowError(f"{pattern}: {error}") from None
        if not files:
            raise RowError(f"{pattern}: no such file")
        for path in files:
            kind = path.name.removesuffix(".gz").rpartition(".")[2]
            if kind not in ("jsonl", "csv"):
                raise RowError(f"{path}: neither .jsonl nor .csv, nor one of them with .gz")
            name = str(path.relative_to(root)) if path.is_relative_to(root) else path.name
            for row in (_read_jsonl if kind == "jsonl" else _read_csv)(path):
                row["file"] = name
                records.append(row)
    if not records:
        raise RowError(f"{', '.join(map(str, patterns))}: no row counts yet")
    first = [*_FIELDS, *HEADER_FIELDS, "file"]
    frame = pd.DataFrame.from_records(records)
    frame = frame.reindex(columns=first + [column for column in frame.columns if column not in first])
    before = (frame["schema_version"] < 3) & frame["schedule"].str.match("staircase|auto$")
    frame.loc[before, "tile_tokens"] = TILE_TOKENS
    for field, value in IMPLIED.items():
        frame[field] = frame[field].astype(object).where(frame[field].notna(), value).astype(type(value))
    # Sums of what is allocated, which earlier revisions called measured.
    frame.loc[frame["metric"].isin(MEMORY_FORMULAS) & (frame["source"] == "measured"), "source"] = "analytic"
    integers = {field: "Int64" for field in _POINT if _KINDS.get(field) == ["integer", "null"]}
    return frame.astype({"value": float, "spread": float, **integers})


def _listed(value) -> list:
    return [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)


def select(rows: pd.DataFrame, **where) -> pd.DataFrame:
    """Rows whose columns equal what is given (or are in it, where a list is given). None left is an error."""
    chosen = rows
    for column, value in where.items():
        left = chosen[chosen[column].isin(_listed(value))]
        if left.empty:
            raise RowError(f"no row has {column} {value!r}; there are {sorted(map(str, chosen[column].unique()))}")
        chosen = left
    return chosen


def latest(rows: pd.DataFrame) -> pd.DataFrame:
    """Of every quantity the value that was recorded last."""
    order = rows.sort_values("started_utc", kind="stable")
    return order.drop_duplicates(subset=list(IDENTITY), keep="last").sort_index()


def fuse_experts(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with expert_scores and expert_combine replaced by their sum under stage `experts`, so that schedules with
    and without a fused kernel can stand side by side. Only for metrics that add up: times, bytes, FLOP."""
    apart = rows["stage"].isin(EXPERT_STAGES)
    bad = set(rows[apart]["unit"]) - {"s", "bytes", "flop"}
    if bad:
        raise RowError(f"values in {', '.join(sorted(bad))} do not add up over stages")
    parts = rows[apart].assign(stage="experts", spread=float("nan"))
    keys = [*IDENTITY, "run_id"]
    sums = parts.groupby(keys, dropna=False, sort=False)["value"].transform(lambda values: values.sum(skipna=False))
    return pd.concat([rows[~apart], parts.assign(value=sums).drop_duplicates(keys)], ignore_index=True)


def pivot(rows: pd.DataFrame, index, columns) -> pd.DataFrame:
    """Values by `index` and `columns` (a name or a list of names each), in order of first appearance. The rows must
    agree on the unit, which goes to `.attrs["unit"]`, and hold one value a cell."""
    units = sorted(set(rows["unit"]))
    if len(units) != 1:
        raise RowError(f"values in {' and '.join(units)} cannot stand in one table")
    keys = _listed(index) + _listed(columns)
    twice = rows[rows.duplicated(keys, keep=False)]
    if not twice.empty:
        one = twice.iloc[0]
        raise RowError(f"several values at {', '.join(f'{key} {one[key]}' for key in keys)}, in "
                       f"{', '.join(sorted(set(twice['file'])))}: select() more closely, or take latest()")
    table = rows.pivot(index=index, columns=columns, values="value")
    for axis, names in ((0, _listed(index)), (1, _listed(columns))):
        seen = rows[names].drop_duplicates()
        order = pd.Index(seen[names[0]]) if isinstance(index if axis == 0 else columns, str) else (
            pd.MultiIndex.from_frame(seen))
        table = table.reindex(order, axis=axis)
    table.attrs["unit"] = units[0]
    return table


def provenance(rows: pd.DataFrame) -> str:
    """Source, device, revision and date of rows in a line, for the caption of a figure."""
    parts = []
    for (source, device), group in rows.groupby(["source", "device"], sort=True):
        runs = group.sort_values("started_utc")
        marked = runs["git_revision"].str[:7] + runs["git_dirty"].map({True: "+", False: ""})
        days = runs["started_utc"].str[:10]
        dates = days.iloc[0] if days.iloc[0] == days.iloc[-1] else f"{days.iloc[0]} to {days.iloc[-1]}"
        parts.append(f"{source}, {device.removeprefix('modelled: ')}, revision {', '.join(marked.unique())}, {dates}")
    return "; ".join(parts)


def text(value: float, unit: str) -> str:
    """A value for reading, with a prefix of its unit: 0.00049 s is "490 us", 1.2e9 bytes "1.2 GB", a fraction per
    cent."""
    base = {"s": "s", "bytes": "B", "flop": "FLOP", "bytes_per_s": "B/s", "flop_per_s": "FLOP/s"}.get(unit)
    if unit == "fraction":
        return f"{100 * value:.3g} %"
    if base is None or value == 0:
        return f"{value:.4g} {base or unit}"
    prefixes = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "u"),
                (1e-9, "n")]
    scale, prefix = next((pair for pair in prefixes if abs(value) >= 0.9995 * pair[0]), prefixes[-1])
    return f"{value / scale:.3g} {prefix}{base}"
