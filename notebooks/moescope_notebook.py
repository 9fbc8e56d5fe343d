"""What the notebooks share beside the rows: running the program, one look for all figures, captions that say where a
figure comes from, and text whose numbers are computed."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python"))  # the package as it lies in the checkout
from moescope.rows import RowError, provenance  # noqa: E402

# Colour and marker of every schedule, in the order of legends, and those that choose among the others: the table that
# every figure of moescope uses.
_LOOKS = json.loads((ROOT / "core" / "schedule" / "schedules.json").read_text(encoding="utf-8"))
SCHEDULES = {look["name"]: (look["colour"], look["marker"]) for look in _LOOKS}
CHOSEN = {look["name"] for look in _LOOKS if look["chosen"]}
BF16_ERROR = 4e-3  # what every layer is held to against the fp64 oracle, relative
STAGES = {
    "router_project": "#56B4E9",
    "router_select": "#0072B2",
    "schedule": "#CC79A7",
    "experts": "#E69F00",
    "shared_mlp": "#009E73",
}
mpl.rcParams.update({
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
})


def program(*arguments: str | Path) -> str:
    """What `moescope ARGUMENTS` prints, run in the repository's root. The program is $MOESCOPE, or what ./run.sh or
    cmake --preset cpu built. A failure raises and shows its message."""
    places = [ROOT / "build" / "cpu" / "experiments" / "moescope"]
    if os.environ.get("MOESCOPE"):  # an empty one names none, as in scripts/notebooks.sh
        places = [Path(os.environ["MOESCOPE"])]
    binary = next((path for path in places if path.exists()), None)
    if binary is None:
        raise FileNotFoundError(f"none of {', '.join(map(str, places))} is there: ./run.sh --help builds moescope")
    done = subprocess.run([binary, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"moescope {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def say(words: str) -> None:
    """Shows Markdown: text between figures whose numbers are computed from rows."""
    display(Markdown(textwrap.dedent(words).strip()))


def into_readme(name: str, text: str) -> None:
    """Shows Markdown that docs/results/h100.md has, too: scripts/notebooks.sh puts it between its marks, and compares."""
    folder = os.environ.get("MOESCOPE_FIGURES")
    if folder:
        (Path(folder) / f"{name}.md").write_text(text.strip() + "\n", encoding="utf-8")
    say(text)


def finding(name: str, words: str) -> None:
    """A sentence of what rows say, for docs/results/h100.md."""
    into_readme(name, " ".join(words.split()))


def milliseconds(seconds: float) -> str:
    """Three digits, "-" for none."""
    value = 1e3 * seconds
    return "-" if pd.isna(value) else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.9995 else f"{value:.3f}"


def times(ratio: float) -> str:
    """Two digits: "0.87x", "3.3x", "152x"."""
    return f"{ratio:.0f}x" if ratio >= 9.95 else f"{ratio:.1f}x" if ratio >= 0.995 else f"{ratio:.2f}x"


def markdown_table(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines))


def held_to_oracle(rows: pd.DataFrame) -> str:
    """That every measured layer of `rows` was compared with the fp64 oracle and is within the error of bf16, in words.
    One that was not, or is not, is a RowError."""
    layers = rows[(rows["stage"] == "layer") & (rows["status"] == "ok")]
    keys = ["file", "run_id", "point", "schedule"]
    timed = layers[layers["metric"] == "time_s"][[*keys, "dtype"]]
    errors = layers[layers["metric"] == "relative_error"][[*keys, "value"]]
    both = timed.merge(errors, on=keys, how="left")
    wrong = both[~(both["value"] <= BF16_ERROR)]
    if both.empty or not wrong.empty or set(both["dtype"]) != {"bf16"}:
        raise RowError(f"{len(wrong)} of {len(both)} layers without an error of at most {BF16_ERROR}: {wrong.head(1).to_dict('records')}")
    missing = rows[rows["status"].isin(["failed", "skipped"])].drop_duplicates(["schedule", "reason"])
    reasons = "; ".join(f"{row.schedule}: {row.reason}" for row in missing.itertuples())
    return (f"{len(both)} layers, each held against the fp64 oracle: largest relative error {both['value'].max():.1e}, "
            f"limit {BF16_ERROR:g}." + (f" Not measured: {reasons}." if reasons else ""))


def schedule_lines(axis: plt.Axes, table: pd.DataFrame, x=None) -> None:
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


def finish(figure: plt.Figure, title: str, rows: pd.DataFrame, name: str | None = None, note: str = "") -> None:
    """Gives a figure its title and, below it, where `rows` come from; shows it. With a `name`, and $MOESCOPE_FIGURES
    naming a folder, it also becomes NAME.svg there: scripts/notebooks.sh makes docs/figures/ so."""
    width = int(figure.get_figwidth() * 17)
    source = provenance(rows)
    caption = textwrap.fill(". ".join(part for part in (note, source[0].upper() + source[1:]) if part), width)
    height = figure.get_figheight()
    lines = caption.count("\n") + 1
    figure.suptitle(title, fontsize=11)
    figure.tight_layout(rect=(0, (0.16 * lines + 0.08) / height, 1, 1))
    figure.text(0.01, 0.06 / height, caption, fontsize=7.5, color="#444444", va="bottom")
    folder = os.environ.get("MOESCOPE_FIGURES")
    if name and folder:
        figure.savefig(Path(folder) / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.show()
