"""What the notebooks share beside the rows: running the program, one look for all figures, captions that say where a
figure comes from, and text whose numbers are computed."""
from __future__ import annotations

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
from moescope import figures  # noqa: E402
from moescope.figures import CHOSEN, SCHEDULES, STAGES, STYLE, legend, log_ticks, schedule_lines, workload_label  # noqa: E402, F401
from moescope.rows import RowError  # noqa: E402

BF16_ERROR = 4e-3  # what every layer is held to against the fp64 oracle, relative
mpl.rcParams.update(STYLE)


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


def finish(figure: plt.Figure, title: str, rows: pd.DataFrame, name: str | None = None, note: str = "") -> None:
    """Gives a figure its title and, below it, where `rows` come from; shows it. With a `name`, and $MOESCOPE_FIGURES
    naming a folder, it also becomes NAME.svg there: scripts/notebooks.sh makes docs/figures/ so."""
    figures.finish(figure, title, rows, note)
    folder = os.environ.get("MOESCOPE_FIGURES")
    if name and folder:
        figure.savefig(Path(folder) / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.show()
