#!/usr/bin/env python3
"""Checks README.md, CONTRIBUTING.md, CHANGELOG.md and docs/: sizes, sentences, links, generated parts, and every command in them.

Usage: scripts/check_docs.py [--moescope PROGRAM] [--no-run] [FILE...]
--no-run parses commands without running any. FILE: some pages alone, without the generated parts.

Above each ```sh block stands how its commands are checked:
  <!-- run -->            each is run, in a folder of its own per page, and must end with 0
  <!-- run, exit N -->    ... with N
  <!-- parse: WHY -->     moescope must know command, options and numbers; it is not run, WHY says why not
  <!-- skip: WHY -->      scripts and files that it names must be there; nothing is run
A ```json block below <!-- file: NAME --> becomes that file. Commands between backticks in text and tables are parsed.
Generated blocks (between <!-- x --> and <!-- end --> or <!-- x: begin --> and <!-- x: end -->) are not read for style.
"""
import argparse
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import update_docs  # noqa: E402

ROOT = update_docs.ROOT
README_LINES, README_BYTES, README_WIDTH = 150, 12_000, 140
SENTENCE_WORDS = 25
LOGS = ("docs/performance/", "docs/simulator/validation.md", "docs/simulator/studies.md")  # numbers in passing, on purpose
SECONDS_OF_A_COMMAND = 240  # of a machine that others use, too; on a quiet one all of them take half a minute
UNKNOWN = "--not-an-option-of-moescope"  # what must be the only thing that parsing refuses


def pages() -> list[Path]:
    named = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [*named, *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ---- text

FENCE = re.compile(r"^ *```.*?^ *```[ \t]*$", re.M | re.S)
GENERATED = re.compile(r"<!-- ([a-z-]+): ([\w-]+) -->.*?<!-- (?:end|\1: end) -->", re.S)


def blank(match: re.Match) -> str:
    """As many lines, without what they say."""
    return "\n" * match.group(0).count("\n")


def prose(text: str) -> str:
    """Without code blocks, generated parts and comments; lines stay where they are."""
    for pattern in (FENCE, GENERATED, re.compile(r"<!--.*?-->", re.S)):
        text = pattern.sub(blank, text)
    return text


def paragraphs(text: str):
    """(line, words joined) of every paragraph and list item; tables, headings and pictures are left out."""
    number, kept = 0, []
    for index, line in enumerate([*prose(text).split("\n"), ""], 1):
        item = re.match(r"\s*(?:[*-]|\d+\.)\s+", line)
        if not line.strip() or item or re.match(r"\s*(\||#|!\[)", line):
            if kept:
                yield number, " ".join(kept)
            number, kept = index, []
            if re.match(r"\s*(\||#|!\[)", line):
                continue
        if line.strip():
            kept.append(line[item.end():].strip() if item else line.strip())


def long_sentences(path: Path) -> list[str]:
    if name_of(path).startswith(LOGS):
        return []
    found = []
    for line, text in paragraphs(path.read_text(encoding="utf-8")):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "code", text))
        for sentence in re.split(r"(?<=[.!?:])[*)\"]*\s+", text):
            words = [word for word in sentence.split() if re.search(r"\w", word)]
            if len(words) > SENTENCE_WORDS:
                found.append(f"{name_of(path)}:{line}: a sentence of {len(words)} words: {' '.join(words[:8])} ...")
    return found


def readme_size() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    size = {"lines": (len(lines), README_LINES), "bytes": (len(text.encode()), README_BYTES),
            "characters in a line": (max(map(len, lines)), README_WIDTH)}
    return [f"README.md: {is_now} {what}, at most {most}" for what, (is_now, most) in size.items() if is_now > most]


# ---- links

def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading; headings that MkDocs sees otherwise are refused where they are linked."""
    heading = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    text = FENCE.sub(blank, path.read_text(encoding="utf-8"))
    return {slug(heading) for heading in re.findall(r"^#+\s+(.*)$", text, re.M)}


def broken_links(path: Path) -> list[str]:
    found = []
    text = FENCE.sub(blank, path.read_text(encoding="utf-8"))
    for match in re.finditer(r"!?\[[^]]*\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        target = match.group(1)
        if re.match(r"(https?|mailto):", target):
            continue
        name, _, anchor = target.partition("#")
        goal = (path.parent / name).resolve() if name else path
        if not goal.is_file():
            found.append(f"{name_of(path)}: {target}: there is no such file")
        elif anchor and (anchor not in anchors(goal) or "--" in anchor):
            found.append(f"{name_of(path)}: {target}: there is no such heading")
        elif (ROOT / "docs") in path.parents and (ROOT / "docs") not in goal.parents:
            found.append(f"{name_of(path)}: {target}: lies outside docs/, the site has no such page")
    return found


# Folders of results/ that are part of the repository: what .gitignore does not ignore.
RECORDED = re.findall(r"^!/results/(\w+)/", (ROOT / ".gitignore").read_text(encoding="utf-8"), re.MULTILINE)
WINGS = "capi|cmake|core|data|docs|experiments|kernels|notebooks|profiler|python|reference|scripts|tests"


def missing_files(path: Path) -> list[str]:
    """Files of the repository that a page names between backticks and that are not there; NAME in capitals stands for anything."""
    found = []
    text = FENCE.sub(blank, GENERATED.sub(blank, path.read_text(encoding="utf-8")))
    for name in sorted(set(re.findall(rf"`((?:(?:{WINGS})/|results/(?:{'|'.join(RECORDED)})/)[\w./*@{{}},-]*)`", text))):
        if re.search(r"[A-Z]{3,}", name.replace("README.md", "")) or name.startswith("data/devices/NAME"):
            continue
        if not any(ROOT.glob(name.rstrip("/"))):
            found.append(f"{name_of(path)}: `{name}`: there is no such file")
    return found


def stale_mentions() -> list[str]:
    """Pages and figures that sources name and that are not there."""
    found = []
    for folder in (*WINGS.split("|"), ".ci"):
        for file in sorted((ROOT / folder).rglob("*")):
            if folder != "docs" and file.suffix in (".cpp", ".hpp", ".cu", ".cuh", ".inc", ".py", ".sh", ".json", ".ipynb", ".txt", ""):
                if file.is_file() and file.name != "test_check_docs.py":
                    text = file.read_text(encoding="utf-8", errors="replace")
                    found += [f"{name_of(file)}: {name}: there is no such page" for name in re.findall(r"\bdocs/[\w/-]+\.(?:md|svg)\b", text)
                              if "DEVICE" not in name and not (ROOT / name).exists()]
    return found


# ---- commands

class Commands:
    """Runs and parses the commands of pages with one program."""

    def __init__(self, program: Path, run: bool):
        self.program, self.run, self.counts, self.seconds = program, run, {"run": 0, "parsed": 0, "skipped": 0}, 0.0
        self.parsed: dict[tuple, str | None] = {}
        self.known = update_docs.subcommands(program)

    def check(self, path: Path) -> list[str]:
        text = path.read_text(encoding="utf-8")
        found = []
        with tempfile.TemporaryDirectory() as folder:
            self.furnish(Path(folder))
            blocks = re.compile(r"(?:^ *<!-- (?P<mark>[^\n]*?) -->\n)?^ *```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^ *```[ \t]*$", re.M | re.S)
            for block in blocks.finditer(text):
                place = f"{name_of(path)}:{text.count(chr(10), 0, block.start('body')) + 1}"
                mark, body = block["mark"] or "", block["body"]
                if block["language"] == "json" and mark.startswith("file: "):
                    (Path(folder) / mark.removeprefix("file: ")).write_text(body, encoding="utf-8")
                elif block["language"] == "sh":
                    found += [f"{place}: {line}: {what}" for line, what in self.block(mark, body, Path(folder)) if what]
        inline = [span for span in re.findall(r"`([^`\n]+)`", prose(text))
                  if re.match(r"(moescope|\./run\.sh) [a-z]", span) and not re.search(r"\.\.\.|\b[A-Z]{3,}\b.*\.\.\.", span)]
        for span in inline:
            words = [word for word in shlex.split(span)[1:]]
            if words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
                what = self.parse(words, in_text=True)
                found += [f"{name_of(path)}: `{span}`: {what}"] if what else []
        return found

    def furnish(self, folder: Path) -> None:
        """What a clone has, but for results of its own; `moescope` and ./run.sh are the program."""
        for name in ("data", "experiments", "tests", "core"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "results").mkdir()
        for recorded in sorted((ROOT / "results").iterdir()):
            if recorded.name in RECORDED:
                (folder / "results" / recorded.name).symlink_to(recorded)
        (folder / "bin").mkdir()
        (folder / "bin" / "moescope").symlink_to(self.program)
        (folder / "run.sh").symlink_to(self.program)

    def block(self, mark: str, body: str, folder: Path):
        how = re.fullmatch(r"run(?:, exit (?P<code>\d+))?|(?P<kind>parse|skip): \S.*", mark)
        lines = [line.strip() for line in body.replace("\\\n", " ").split("\n")]
        lines = [line for line in lines if line and not line.startswith("#")]
        if not how:
            yield lines[0] if lines else "", "no mark above the block says how it is checked (scripts/check_docs.py)"
            return
        for line in lines:
            words = shlex.split(line, comments=True)
            if how["kind"] == "skip":
                self.counts["skipped"] += 1
                missing = [word for word in words if re.match(r"(\./)?(scripts|experiments|run\.sh|test\.sh|data)", word)
                           and not (ROOT / word).exists()]
                yield line, f"there is no {missing[0]}" if missing else None
            elif how["kind"] == "parse" or not self.run:
                yield line, self.parse(words[1:]) if words[0] in ("moescope", "./run.sh") else None
            else:
                yield line, self.run_line(line, int(how["code"] or 0), folder)

    def run_line(self, line: str, expected: int, folder: Path) -> str | None:
        begin = time.monotonic()
        environment = {"PATH": f"{folder}/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(folder),
                       "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}  # beside other tests
        try:
            done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], cwd=folder, env=environment, capture_output=True, text=True,
                                  timeout=SECONDS_OF_A_COMMAND, check=False)
        except subprocess.TimeoutExpired:
            return f"takes more than {SECONDS_OF_A_COMMAND} s"
        took = time.monotonic() - begin
        self.seconds += took
        self.counts["run"] += 1
        if took > 5:
            print(f"{took:5.1f} s  {line}")
        if done.returncode not in (expected, 141 if "| head" in line else expected):
            return f"exit code {done.returncode}, not {expected}: {(done.stderr.strip() or done.stdout.strip())[-300:]}"
        return None

    def parse(self, words: list[str], in_text: bool = False) -> str | None:
        """What is wrong with the words behind `moescope`, by its own parser: with an unknown option behind them that one alone must be
        refused, before anything runs."""
        if words[0] not in self.known and not words[0].startswith("-"):
            return "there is no such command"
        if "--help" in words:
            done = subprocess.run([self.program, *words], capture_output=True, text=True, timeout=SECONDS_OF_A_COMMAND, check=False)
            return None if done.returncode == 0 else done.stderr.strip()
        key = (in_text, *words)
        if key not in self.parsed:
            self.counts["parsed"] += 1
            done = subprocess.run([self.program, *words, UNKNOWN], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_OF_A_COMMAND, check=False)
            said = done.stderr
            unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] in re.findall(r"-[\w-]+", said)]
            named_alone = in_text and len(words) == 1 and "is required" in said  # `moescope claims` in a sentence
            right = done.returncode == 2 and (named_alone or UNKNOWN in said and not unknown and "is required" not in said)
            self.parsed[key] = None if right else (said.strip() or f"exit code {done.returncode} without a word")
        return self.parsed[key]


def uncovered_metrics() -> list[str]:
    """Metrics of recorded rows that docs/reference/rows.md does not name, or gives another unit."""
    import gzip
    import json
    text = (ROOT / "docs/reference/rows.md").read_text(encoding="utf-8")
    units = {}
    for line in text.split("\n"):
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3:
            for name in re.findall(r"`(\w+)`", cells[1]):
                units[name] = cells[2]
    found = set()
    for file in sorted((ROOT / "results").glob("*/*.jsonl*")):
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as rows:
            for line in rows:
                row = json.loads(line)
                if "metric" not in row or "__" in row["metric"] or row["metric"].endswith("_over_known") or row["schema_version"] < 4:
                    continue
                stated = units.get(row["metric"])
                if stated is None or row["unit"] not in stated.split(", "):
                    found.add(f"docs/reference/rows.md: metric {row['metric']} has unit {row['unit']}, the page says {stated}")
    return sorted(found)


def stale_quotes() -> list[str]:
    """Errors of the simulator that pages quote by hand, against the tables of docs/simulator/validation.md."""
    text = (ROOT / "docs/simulator/validation.md").read_text(encoding="utf-8")
    errors = {}
    for draw in ("points", "shapes"):
        part = text.partition(f"<!-- validation: {draw} -->")[2].partition("<!-- end -->")[0]
        for metric in ("time_s", "hbm_bytes"):
            line = re.search(rf"^\| {metric} \| all \| \d+ \| ([\d.]+ %) \| ([\d.]+ %) \|", part, re.M)
            if not line:
                return [f"docs/simulator/validation.md: no line of {metric} over all held-out {draw}"]
            errors[draw, metric] = line.groups()
    times, shapes, bytes_ = errors["points", "time_s"], errors["shapes", "time_s"], errors["points", "hbm_bytes"]
    quotes = {
        "README.md": [f"off by {times[0]} in the median"],
        "docs/simulator/index.md": [f"| time, points | {times[0]} | {times[1]} |", f"| time, whole shapes | {shapes[0]} | {shapes[1]} |",
                                    f"| HBM bytes, points | {bytes_[0]} | {bytes_[1]} |"],
        "docs/simulator/validation.md": [f"off by {times[0]} in the median, and by {times[1]}", f"it is {shapes[0]} and {shapes[1]}",
                                         f"off by {bytes_[0]} in the median"],
    }
    return [f"{name}: the tables of docs/simulator/validation.md want it to say: {quote}" for name, wanted in quotes.items()
            for quote in wanted if quote not in (ROOT / name).read_text(encoding="utf-8")]


def devices_without_pages() -> list[str]:
    """Recorded GPUs (each has ceilings) that docs/results does not have."""
    return [f"docs/results/{page}.md: {ceilings.parent.name} is recorded and has no such page"
            for ceilings in sorted((ROOT / "results").glob("*/ceilings.jsonl"))
            for page in (ceilings.parent.name, f"claims-{ceilings.parent.name}") if not (ROOT / f"docs/results/{page}.md").exists()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moescope", type=Path, default=ROOT / "build/cpu/experiments/moescope")
    parser.add_argument("--no-run", action="store_true")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    program = options.moescope.resolve()
    if not program.is_file():
        parser.error(f"{program} is not there: ./run.sh --version builds it")
    commands = Commands(program, not options.no_run)
    found = []
    for path in [file.resolve() for file in options.files] or pages():
        found += long_sentences(path) + broken_links(path) + missing_files(path) + commands.check(path)
    if not options.files:
        found += readme_size() + uncovered_metrics() + stale_quotes() + devices_without_pages() + stale_mentions()
        found += [f"{name}: a generated part is stale; scripts/update_docs.py writes it" for name in update_docs.stale(program)]
        words = len(prose((ROOT / "README.md").read_text(encoding="utf-8")).split())
        print(f"README: {words} words beside code and tables' marks, {words / 230:.1f} minutes to read")
    print(f"{len(options.files) or len(pages())} pages; commands: {commands.counts['run']} run in {commands.seconds:.0f} s, "
          f"{commands.counts['parsed']} parsed, {commands.counts['skipped']} only looked at")
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
