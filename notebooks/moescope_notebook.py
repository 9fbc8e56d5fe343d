"""What the notebooks share beside the rows: running the program, one look for all figures, captions that say where a
figure comes from, and text whose numbers are computed."""
from __future__ import annotations

import os
import subprocess
import textwrap
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

from moescope_rows import ROOT, provenance

# Okabe and Ito (2008), told apart by colour-blind readers; colour and marker as in `moescope roofline`.
SCHEDULES = {
    "token_centric": ("#0072B2", "s"),
    "expert_centric": ("#D55E00", "o"),
    "staircase": ("#009E73", "^"),
    "staircase:atomics": ("#CC79A7", "v"),
    "dense_masked": ("#E69F00", "D"),
    "sparse_library": ("#56B4E9", "P"),
    "auto": ("#000000", "x"),
}
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
    places = [ROOT / "build" / kind / "experiments" / "moescope" for kind in ("cpu-run", "cpu")]
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


def workload_label(name: str) -> str:
    """A workload's name for an axis: the file's name alone where it is one."""
    family, _, rest = name.partition(":")
    return Path(rest).stem if family in ("snapshot", "trace") else name


def finish(figure: plt.Figure, title: str, rows: pd.DataFrame, name: str | None = None, note: str = "") -> None:
    """Gives a figure its title and, below it, where `rows` come from; shows it. With a `name`, and $MOESCOPE_FIGURES
    naming a folder, it also becomes NAME.svg there: scripts/notebooks.sh makes the README's figures so."""
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
