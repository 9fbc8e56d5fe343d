"""rows.jsonl in moescope's result schema, for programs in Python that measure: the one writer.

    rows = RowWriter(folder, program="torch_peers", device="NVIDIA H200", libraries={"torch": "2.11"})
    rows.write(system="omnimoe", schedule="gather", stage="experts", backend="torch", L=64, d=1024, Nr=320, Nc=320, K=512,
               dtype="bf16", workload="gaussian:1", l2_state="cold", metric="time_s", value=1e-3, unit="s", samples=21)

Fields, defaults and what is required come from core/results/result.schema.json: a field that a later version of the
schema brings needs no change here. What a call leaves out is null where the schema allows null, otherwise the value
that stands for "does not apply"; a field that has none must be given. Nothing but the standard library is needed.
"""
import hashlib
import json
import math
import os
import pathlib
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "core" / "results" / "result.schema.json").read_text(encoding="utf-8"))["$defs"]["row"]
SCHEMA_VERSION = SCHEMA["properties"]["schema_version"]["enum"][-1]
# What stands in a field that does not apply, where null is not allowed.
DEFAULTS = {"direction": "forward", "save": "none", "gradients": "none", "optimizer": "none", "ranks": 1, "placement": "none",
            "exchange": "none", "schedule": "none", "activation": "none", "gates": "none",
            "seed": 0, "source": "measured", "samples": 1, "reason": "", "point": "", "system": "omnimoe"}


def git(*words):
    """What git says of this checkout, or None where there is none."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def may_be_null(rule):
    return isinstance(rule.get("type"), list) and "null" in rule["type"]


def complete(fields, run_id):
    """A row of the newest version with every field of the schema: those given, and what stands for the others."""
    fields = dict(fields)
    row = {"schema_version": SCHEMA_VERSION, "run_id": run_id}
    value = fields.get("value")
    if value is not None and not math.isfinite(value):
        raise ValueError(f"value {value}: rows hold finite numbers; pass None and a reason")
    fields.setdefault("status", "failed" if value is None else "ok")
    for field, rule in SCHEMA["properties"].items():
        if field in row:
            continue
        if field in fields:
            row[field] = fields.pop(field)
        elif may_be_null(rule):
            row[field] = None
        elif field in DEFAULTS:
            row[field] = DEFAULTS[field]
        else:
            raise ValueError(f"row without {field}")
        if "enum" in rule and row[field] not in rule["enum"]:
            raise ValueError(f"{field} {row[field]!r} is not one of {', '.join(map(str, rule['enum']))}")
    if fields:
        raise ValueError(f"no such field: {', '.join(fields)}")
    if row["status"] != "ok" and not row["reason"]:
        raise ValueError(f"status {row['status']} without a reason")
    return row


class RowWriter:
    """A header line, then one value per line, flushed as they come. `folder` is made; rows.jsonl in it must not exist.

    The revision is $MOESCOPE_REVISION where that is set: of what was built, where it runs without a checkout."""

    def __init__(self, folder, program, device, driver="unavailable: not asked for", libraries=None, machine=None,
                 revision=None):
        self.command_line = shlex.join(sys.argv)
        now = time.gmtime()
        digest = hashlib.sha256(self.command_line.encode()).hexdigest()[:8]
        self.run_id = time.strftime("%Y%m%dT%H%M%SZ", now) + "-" + digest
        revision = revision or os.environ.get("MOESCOPE_REVISION")
        known = revision or git("rev-parse", "HEAD")
        dirty = not known or (revision is None and git("status", "--porcelain", "--untracked-files=no") != "")
        header = {
            "command_line": self.command_line, "git_revision": known or "unknown", "git_dirty": dirty, "version": program,
            "build": "python " + sys.version.split()[0], "device": device, "driver": driver, "libraries": libraries or {},
            "machine": machine or {}, "started_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", now), "experiment": "",
        }
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "rows.jsonl").open("x", encoding="utf-8")
        self._put({"schema_version": SCHEMA_VERSION, "run_id": self.run_id, "header": header})

    def write(self, **fields):
        """One row. `value` None is a value that there is not: its status is `failed` unless another is given."""
        fields.setdefault("repro", self.command_line)
        self._put(complete(fields, self.run_id))

    def _put(self, line):
        self.file.write(json.dumps(line, allow_nan=False) + "\n")
        self.file.flush()
