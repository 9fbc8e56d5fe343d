"""Figures of rows as the notebooks draw them: the same names, order, colours and captions. Needs matplotlib and pandas.

    import moescope
    from moescope import figures
    rows = moescope.compare(preset="tiny", workload=["uniform", "zipf:1"])
    figures.times(rows).savefig("times.svg")               # the layer's time over workloads, a line a schedule
    figures.stages(rows, workload="zipf:1").savefig("stages.svg")      # where it goes, a bar a schedule

The helpers below them (schedule_lines, log_ticks, legend, finish) are what the notebooks make theirs of.
"""
from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any, Optional

try:
    import matplotlib as mpl
    import matplotlib.pyplot as plt
except ModuleNotFoundError:
    raise ModuleNotFoundError("moescope's figures need matplotlib: pip install matplotlib", name="matplotlib") from None
import pandas as pd

from moescope import rows as mr

# Colour and marker of every schedule, in the order of legends, and those that choose among the others: the table that every figure of
# moescope uses.
_LOOKS = json.loads((mr.ROOT / "core" / "schedule" / "schedules.json" if mr.ROOT else Path(__file__).with_name("schedules.json")).read_text(
    encoding="utf-8"))
SCHEDULES = {look["name"]: (look["colour"], look["marker"]) for look in _LOOKS}
CHOSEN = {look["name"] for look in _LOOKS if look["chosen"]}
STAGES = {
    "router_project": "#56B4E9",
    "router_select": "#0072B2",
    "schedule": "#CC79A7",
    "experts": "#E69F00",
    "shared_mlp": "#009E73",
}
STYLE = {
    "svg.hashsalt": "moescope",  # the same figure is the same file
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.dpi": 96,
}


def schedule_lines(axis: plt.Axes, table: pd.DataFrame, x: Any = None) -> None:
    """A line per column of `table`, a schedule each, over `x` (default: 0, 1, 2, ...), in the schedule's colour; where a
    schedule has no value its line goes on to the next."""
    x = pd.Series(range(len(table)) if x is None else list(x), index=table.index)
    for schedule, (colour, marker) in SCHEDULES.items():
        values = table[schedule].dropna() if schedule in table else ()
        if len(values) > 0:
            axis.plot(x[values.index], values, color=colour, marker=marker, linewidth=1, markersize=5, label=schedule,
                      linestyle=":" if schedule in CHOSEN else "-")


def log_ticks(axis: mpl.axis.Axis, digits: str = "25", unit: str = "") -> None:
    """A logarithmic axis with plain numbers, those beginning with one of `digits` between the powers of ten, too."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
    axis.set_minor_formatter(lambda value, _: f"{value:g}{unit}" if f"{value:e}"[0] in digits else "")


def legend(figure: plt.Figure, columns: int) -> None:
    """One legend above all panels, below the title (end the title with a newline a line of the legend)."""
    handles = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels())}
    top = 1 - 0.27 / figure.get_figheight()
    figure.legend(handles.values(), handles.keys(), loc="upper center", bbox_to_anchor=(0.5, top), ncols=columns, fontsize=8)


def workload_label(name: str) -> str:
    """A workload's name for an axis: the file's name alone where it is one."""
    family, _, rest = name.partition(":")
    return Path(rest).stem if family in ("snapshot", "trace") else name


def finish(figure: plt.Figure, title: str, rows: pd.DataFrame, note: str = "") -> plt.Figure:
    """Gives a figure its title and, below it, where `rows` come from."""
    width = int(figure.get_figwidth() * 17)
    source = mr.provenance(rows)
    caption = textwrap.fill(". ".join(part for part in (note, source[0].upper() + source[1:]) if part), width)
    height = figure.get_figheight()
    lines = caption.count("\n") + 1
    figure.suptitle(title, fontsize=11)
    figure.tight_layout(rect=(0, (0.16 * lines + 0.08) / height, 1, 1))
    figure.text(0.01, 0.06 / height, caption, fontsize=7.5, color="#444444", va="bottom")
    return figure


def _points(rows: pd.DataFrame, over: str, where: dict[str, Any]) -> pd.DataFrame:
    """Latest times of omnimoe's layers, or of what `where` says."""
    times = mr.latest(mr.select(rows, metric="time_s", status="ok", **where))
    apart = [field for field in ("system", "direction", "L", "d", "Nr", "Nc", "K", "dtype", "gates", "backend", "device")
             if field != over and times[field].nunique() > 1]
    if apart:
        raise mr.RowError(f"rows of several {', '.join(apart)}: a figure has one; say which, as in {apart[0]}={times[apart[0]].iloc[0]!r}")
    return times


def _shape(rows: pd.DataFrame, over: str) -> str:
    first = rows.iloc[0]
    return ", ".join(f"{field} {first[field]}" for field in ("L", "K", "d") if field != over) + f", N {first['Nr']} x {first['Nc']}"


def times(rows: pd.DataFrame, over: str = "workload", **where: Any) -> plt.Figure:
    """The layer's median time in ms over `over` (a column: workload, L, K, ...), a line a schedule. where: columns and their values, where
    rows have several."""
    found = _points(rows, over, {"stage": "layer", **where})
    table = 1e3 * mr.pivot(found, over, "schedule")
    numbers = over != "workload"
    table = table.sort_index() if numbers else table
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(max(5.4, 0.5 * len(table) + 3), 4.2))
        schedule_lines(axis, table, table.index if numbers else None)
        log_ticks(axis.yaxis)
        if numbers:
            log_ticks(axis.xaxis)
            axis.set_xlabel(over)
        else:
            axis.set_xticks(range(len(table)), [workload_label(name) for name in table.index], rotation=35, ha="right", fontsize=8)
        axis.set_ylabel("median time of the layer (ms)")
        legend(figure, 4)
        return finish(figure, f"Time of the layer, {_shape(found, over)}\n\n", found)


def stages(rows: pd.DataFrame, workload: Optional[str] = None, **where: Any) -> plt.Figure:
    """Where each schedule's time goes, stage by stage, in ms; expert_scores and expert_combine count as experts."""
    chosen = mr.fuse_experts(mr.select(rows, metric="time_s", status="ok"))
    found = _points(chosen, "schedule", {"stage": [*STAGES], **where, **({} if workload is None else {"workload": workload})})
    if found["workload"].nunique() > 1:
        raise mr.RowError(f"rows of several workloads: say which, as in workload={found['workload'].iloc[0]!r}")
    table = 1e3 * mr.pivot(found, "schedule", "stage")
    table = table.reindex([name for name in SCHEDULES if name in table.index]).reindex(columns=[name for name in STAGES if name in table])
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.2, 0.42 * len(table) + 1.9))
        left = pd.Series(0.0, index=table.index)
        for stage in table:
            values = table[stage].fillna(0)
            axis.barh(range(len(table)), values, left=left, color=STAGES[stage], label=stage, height=0.7)
            left += values
        axis.set_yticks(range(len(table)), table.index)
        axis.invert_yaxis()
        axis.set_xlabel("median time of a stage (ms)")
        legend(figure, 5)
        return finish(figure, f"Stages on {workload_label(found['workload'].iloc[0])}, {_shape(found, '')}\n\n", found)
