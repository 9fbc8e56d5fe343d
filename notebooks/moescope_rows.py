"""Recorded rows of moescope as a pandas DataFrame: the one loader of the notebooks.

    import moescope_rows as mr
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
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
_SCHEMA = json.loads((ROOT / "core" / "results" / "result.schema.json").read_text(encoding="utf-8"))["$defs"]["row"]
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
IDENTITY = ("system", "schedule", "stage", "backend", "L", "d", "Nr", "Nc", "K", "shared_size", "B", "tile_tokens", "dtype",
            "activation", "gates", "workload", "seed", "l2_state", "source", "metric", "device")
EXPERT_STAGES = ("expert_scores", "expert_combine")  # a fused kernel reports one stage, `experts`


class RowError(ValueError):
    """A file of rows that cannot be read, or rows that do not answer the question."""


def _check_version(line: dict, place: str) -> None:
    if line.get("schema_version") not in _REQUIRED:
        raise RowError(f"{place}: schema_version {line.get('schema_version')!r} is not one of {sorted(_REQUIRED)}")


def _check(row: dict, place: str) -> None:
    _check_version(row, place)
    for field in _REQUIRED[row["schema_version"]]:
        if field not in row:
            raise RowError(f"{place}: field {field} is missing")
    for field, allowed in _ALLOWED.items():
        if row[field] not in allowed:
            raise RowError(f"{place}: {field} {row[field]!r} is not one of {', '.join(map(str, allowed))}")
    for field in ("metric", "unit", "workload", "schedule"):
        if not isinstance(row[field], str) or not row[field]:
            raise RowError(f"{place}: {field} {row[field]!r} is not a name")
    is_number = isinstance(row["value"], (int, float)) and not isinstance(row["value"], bool)
    if is_number != (row["status"] == "ok"):
        raise RowError(f"{place}: value {row['value']!r} with status {row['status']}")
    if row["status"] != "ok" and not row["reason"]:
        raise RowError(f"{place}: status {row['status']} without a reason")


def _header(line: dict, place: str) -> dict:
    _check_version(line, place)
    missing = [field for field in HEADER_FIELDS if field not in line["header"]]
    if missing:
        raise RowError(f"{place}: header has no {', '.join(missing)}")
    return {"run_id": line["run_id"], **{field: line["header"][field] for field in HEADER_FIELDS}}


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not a JSON number")


def _open(path: Path):
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8", newline="")


def _read_jsonl(path: Path) -> Iterator[dict]:
    header: dict | None = None
    waiting: list[dict] = []  # rows of a point whose end has not come
    with _open(path) as stream:
        for number, text in enumerate(stream, 1):
            place = f"{path}:{number}"
            try:
                line = json.loads(text, parse_constant=_refuse_constant)
            except ValueError as error:
                raise RowError(f"{place}: not JSON: {error}") from None
            if not isinstance(line, dict):
                raise RowError(f"{place}: not an object")
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
    """A CSV cell as its JSON value: an empty cell is null where the schema allows null."""
    types = _FIELDS.get(field, {}).get("type", "string")
    numeric = int if field == "schema_version" or "integer" in types else float if "number" in types else None
    if numeric is None:
        return text
    try:
        return numeric(text) if text else None
    except (TypeError, ValueError):
        raise RowError(f"{place}: {field} {text!r} is not a number") from None


def _read_csv(path: Path) -> Iterator[dict]:
    run = path.with_name("run.json")
    if not run.exists():
        raise RowError(f"{path}: needs run.json beside it, which says device and revision")
    header = _header(json.loads(run.read_text(encoding="utf-8")), str(run))
    with _open(path) as stream:
        for number, cells in enumerate(csv.DictReader(stream), 2):
            place = f"{path}:{number}"
            row = {field: _cell(field, text, place) for field, text in cells.items()}
            _check(row, place)
            yield {**row, **header}


def load(*patterns: str | Path, root: Path = ROOT) -> pd.DataFrame:
    """Rows of files (.jsonl, .csv, either also .gz), which may be globs, relative to `root` or absolute."""
    records: list[dict] = []
    for pattern in map(str, patterns):
        base, rest = (Path("/"), pattern[1:]) if pattern.startswith("/") else (Path(root), pattern)
        files = sorted(base.glob(rest))
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
    first = [*_FIELDS, *HEADER_FIELDS, "file"]
    frame = pd.DataFrame.from_records(records)
    frame = frame.reindex(columns=first + [column for column in frame.columns if column not in first])
    before = (frame["schema_version"] < 3) & frame["schedule"].str.match("staircase|auto$")
    frame.loc[before, "tile_tokens"] = TILE_TOKENS
    # Sums of what is allocated, which earlier revisions called measured.
    frame.loc[frame["metric"].isin(MEMORY_FORMULAS) & (frame["source"] == "measured"), "source"] = "analytic"
    return frame.astype({"value": float, "spread": float, "shared_size": "Int64", "B": "Int64", "tile_tokens": "Int64"})


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
