"""Runs every notebook of this folder from top to bottom, in their pinned environment (scripts/notebooks.sh makes it).

Usage: run_notebooks.py [--update] FOLDER
Executed notebooks, figures and findings go to FOLDER. With --update, also into notebooks/, docs/figures/ and
docs/results/h100.md; without it, what stands there must be what the recorded rows give: text alike, figures alike but for the last
digits of their coordinates. Exit code 1 when a cell fails, writes to standard error, or what is committed is stale.
"""
import argparse
import os
import re
import shutil
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parent / "docs" / "figures"
FINDINGS = HERE.parent / "docs" / "results" / "h100.md"
NUMBER = re.compile(r"(?<![#\w.])-?\d+\.?\d*(?:e-?\d+)?(?!\w)")  # not in names and colours
IDENTIFIER = re.compile(r"(?:\b|_)[a-z]?[0-9a-f]{10}\b")  # matplotlib's: hashes of what they name
TOLERANCE = 0.05  # of a coordinate, in pixels or points


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs and nothing in it that would differ on the next run."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    # The kernel's own log would say on every start that it listens on the local machine unencrypted.
    NotebookClient(notebook, kernel_name="python3", timeout=240, resources={"metadata": {"path": str(HERE)}},
                   record_timing=False, extra_arguments=["--log-level=ERROR"]).execute()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if output.get("name") == "stderr":
                raise RuntimeError(f"a cell wrote to standard error:\n{output['text']}")
        if "live" in cell.metadata.get("tags", []):  # what this machine measured
            cell.outputs = []
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def words(notebook: nbformat.NotebookNode) -> list[str]:
    """Source and outputs but for images, which are compared as the SVG files they also become."""
    found = []
    for cell in notebook.cells:
        found.append(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", "")})
            found += [text for kind, text in sorted(data.items()) if kind.startswith("text/")]
    return found


def same_figure(one: str, two: str) -> bool:
    """Equal but for the last digits of numbers, which libraries of other machines may round elsewhere."""
    one, two = IDENTIFIER.sub("id", one), IDENTIFIER.sub("id", two)
    return NUMBER.sub("", one) == NUMBER.sub("", two) and all(
        abs(float(a) - float(b)) <= TOLERANCE for a, b in zip(NUMBER.findall(one), NUMBER.findall(two)))


def with_finding(document: str, name: str, words: str) -> str:
    """`document` with `words` between the marks of that finding. Throws ValueError without them."""
    begin, end = f"<!-- finding: {name} -->", "<!-- end -->"
    head, mark, rest = document.partition(begin)
    _, tail_mark, tail = rest.partition(end)
    if not mark or not tail_mark:
        raise ValueError(f"{FINDINGS.name} has no {begin} ... {end}")
    return f"{head}{begin}\n{words.strip()}\n{end}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    figures = options.folder.resolve() / "figures"
    shutil.rmtree(figures, ignore_errors=True)
    figures.mkdir(parents=True)
    os.environ["MOESCOPE_FIGURES"] = str(figures)
    wrong = []
    for path in sorted(HERE.glob("*.ipynb")):
        begin = time.monotonic()
        try:
            notebook = run(path)
        except (CellExecutionError, RuntimeError) as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            wrong.append(path.name)
            continue
        target = options.folder / path.name
        nbformat.write(notebook, target)
        if options.update:
            shutil.copyfile(target, path)
        elif words(notebook) != words(nbformat.read(path, as_version=4)):
            wrong.append(path.name)
            print(f"{path.name}: its outputs are not what the rows give", file=sys.stderr)
        print(f"{path.name}: {time.monotonic() - begin:.1f} s", flush=True)
    for figure in sorted(figures.glob("*.svg")):
        committed = FIGURES / figure.name
        if options.update:
            shutil.copyfile(figure, committed)
        elif not committed.exists() or not same_figure(figure.read_text(), committed.read_text()):
            wrong.append(figure.name)
            print(f"docs/figures/{figure.name} is not what the rows give", file=sys.stderr)
    for path in sorted(figures.glob("*.md")):
        document = FINDINGS.read_text(encoding="utf-8")
        updated = with_finding(document, path.stem, path.read_text(encoding="utf-8"))
        if options.update:
            FINDINGS.write_text(updated, encoding="utf-8")
        elif updated != document:
            wrong.append(path.name)
            print(f"{FINDINGS.name}: finding {path.stem} is not what the rows give", file=sys.stderr)
    if wrong:
        print(f"{len(wrong)} wrong: {', '.join(wrong)}. Stale outputs: scripts/notebooks.sh --update", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
