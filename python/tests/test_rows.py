"""The reader of rows on good and on broken ones."""
import csv
import gzip
import json
import os
import tempfile
import unittest
from pathlib import Path

try:
    from moescope import rows as mr
except ModuleNotFoundError as missing:
    raise unittest.SkipTest(str(missing)) from None

HEADER = {"schema_version": 2, "run_id": "r1", "header": {
    "device": "a GPU", "git_revision": "0123456789abcdef", "git_dirty": False, "started_utc": "2026-01-02T03:04:05Z",
    "command_line": "moescope run"}}
ROW = {"schema_version": 2, "run_id": "r1", "system": "omnimoe", "schedule": "staircase", "stage": "experts",
       "backend": "cuda", "L": 4, "d": 8, "Nr": 2, "Nc": 2, "K": 1, "shared_size": 0, "B": None, "dtype": "bf16",
       "activation": "silu", "gates": "softmax", "workload": "gaussian:1", "seed": 0, "l2_state": "cold",
       "source": "measured", "metric": "time_s", "value": 0.5, "unit": "s", "samples": 11, "spread": 0.01, "status": "ok",
       "reason": "", "point": "", "repro": "moescope run"}


def row(**changes):
    return {**ROW, **changes}


def without(field):
    return {key: value for key, value in ROW.items() if key != field}


class Loader(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def load(self, *lines, name="rows.jsonl"):
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        path = self.folder / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return mr.load(path)

    def refused(self, words, *lines, **options):
        with self.assertRaisesRegex(mr.RowError, words):
            self.load(*lines, **options)

    def test_values_keep_unit_and_origin(self):
        for name in ("rows.jsonl", "rows.jsonl.gz"):
            rows = self.load(HEADER, row(), row(stage="layer", value=0.75), name=name)
            self.assertEqual(list(rows["value"]), [0.5, 0.75])
            self.assertEqual(set(rows["unit"]), {"s"})
            self.assertEqual(mr.provenance(rows), "measured, a GPU, revision 0123456, 2026-01-02")

    def test_memory_is_analytic_though_older_rows_call_it_measured(self):
        rows = self.load(HEADER, row(), row(metric="workspace_bytes", unit="bytes", value=8.0),
                         row(metric="peak_bytes", unit="bytes", value=9.0), row(metric="hbm_read_bytes", unit="bytes", value=7.0))
        self.assertEqual(dict(zip(rows["metric"], rows["source"])), {
            "time_s": "measured", "workspace_bytes": "analytic", "peak_bytes": "analytic", "hbm_read_bytes": "measured"})

    def test_csv_equals_jsonl(self):
        lines = self.load(HEADER, row(), row(metric="l1_bytes", unit="bytes", value=None, status="unavailable",
                                             reason="no counters", spread=None, B=64))
        (self.folder / "run.json").write_text(json.dumps(HEADER))
        table = lines.drop(columns=[*mr.HEADER_FIELDS, "file"]).astype(object)
        table.where(table.notna(), "").to_csv(self.folder / "rows.csv", index=False)
        again = mr.load(self.folder / "rows.csv")
        self.assertTrue(again.drop(columns="file").equals(lines.drop(columns="file")))

    def test_csv_text_that_a_spreadsheet_would_compute(self):
        names = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "'quoted"]
        (self.folder / "run.json").write_text(json.dumps(HEADER))
        with open(self.folder / "rows.csv", "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, ROW)
            writer.writeheader()
            for name in names:
                writer.writerow(row(workload="'" + name, value=0.5, B=""))
        rows = mr.load(self.folder / "rows.csv")
        self.assertEqual(list(rows["workload"]), names)
        self.assertEqual(set(rows["value"]), {0.5})

    def test_csv_needs_its_run(self):
        with self.assertRaisesRegex(mr.RowError, "run.json"):
            (self.folder / "rows.csv").write_text(",".join(ROW) + "\n")
            mr.load(self.folder / "rows.csv")

    def test_fields_of_later_versions_of_the_program_are_kept(self):
        self.assertEqual(list(self.load(HEADER, row(colour="blue"))["colour"]), ["blue"])

    def test_a_point_counts_whole_or_not_at_all(self):
        end = {"schema_version": 2, "run_id": "r1",
               "point": {"id": "p1", "rows": 1, "status": "ok", "reason": "", "elapsed_s": 1.0}}
        self.assertEqual(len(self.load(HEADER, row(point="p1"), end, row(point="p2"))), 1)
        self.refused(":4: point ends with 1 rows, 2 stand before it", HEADER, row(point="p1"), row(point="p1"), end)

    def test_broken_rows_are_refused_by_place_and_field(self):
        self.refused(r"rows\.jsonl:2: not JSON", HEADER, json.dumps(ROW)[:-9])
        self.refused(":2: not JSON: NaN", HEADER, json.dumps(row(value=float("nan"))))
        self.refused(":2: not an object", HEADER, "[1]")
        self.refused(":2: schema_version 9 is not one of", HEADER, row(schema_version=9))
        self.refused(":1: schema_version 9 is not one of", {**HEADER, "schema_version": 9})
        self.refused(":2: field unit is missing", HEADER, without("unit"))
        self.refused(":2: unit '' is not a name", HEADER, row(unit=""))
        self.refused(":2: source 'guessed' is not one of analytic", HEADER, row(source="guessed"))
        self.refused(":2: value None with status ok", HEADER, row(value=None))
        self.refused(":2: status failed without a reason", HEADER, row(value=None, status="failed"))
        self.refused(":1: run_id 'r1' has no header", ROW)
        self.refused("neither .jsonl nor .csv", HEADER, name="rows.txt")

    def test_what_cannot_be_a_value_is_refused(self):
        self.refused(":2: not JSON: NaN", HEADER, json.dumps(row(spread=float("nan"))))
        self.refused(":2: not JSON: -Infinity", HEADER, json.dumps(row(value=float("-inf"))))
        self.refused(":2: not JSON: 1e999", HEADER, json.dumps(row()).replace("0.5", "1e999"))
        self.refused(":2: not JSON: key 'L' stands there twice", HEADER, json.dumps(row()).replace('"L"', '"L": 1, "L"'))
        self.refused(":2: not JSON", HEADER, json.dumps(row()).replace("0.5", "[" * 100_000))
        self.refused(":2: not JSON", HEADER, json.dumps(row()).replace(" 4,", " " + "9" * 5000 + ","))
        self.refused(":2: value -0.5 is below 0", HEADER, row(value=-0.5))
        self.refused(":2: value 0: a measured time is above 0", HEADER, row(value=0))
        self.refused(":2: value -1 is below 0", HEADER, row(value=-1, unit="bytes", metric="hbm_read_bytes"))
        self.refused(":2: spread -0.1 is below 0", HEADER, row(spread=-0.1))
        for field, value in {"L": "4", "d": 1.5, "K": -1, "Nr": 1 << 40, "B": 0, "seed": -1, "samples": None, "value": "0.5",
                             "spread": [], "workload": 7, "unit": None, "system": "", "status": [], "source": {}, "reason": 0,
                             "shared_size": True, "schema_version": True, "point": 3}.items():
            self.refused(f":2: {field} ", HEADER, row(**{field: value}))
        self.assertEqual(len(self.load(HEADER, row(value=0, source="modelled"))), 1)

    def test_headers_are_checked(self):
        self.refused(":1: header None is not an object", {**HEADER, "header": None})
        self.refused(":1: run_id None is not a name", {key: HEADER[key] for key in ("schema_version", "header")})
        self.refused(":1: header has no device", {**HEADER, "header": {"git_dirty": False}})
        self.refused(":1: header.device 7 is not", {**HEADER, "header": {**HEADER["header"], "device": 7}})
        self.refused("no row counts yet", HEADER)

    def test_empty_lines_are_passed_over(self):
        self.assertEqual(len(self.load("", HEADER, "  ", row(), "")), 1)

    def test_files_that_cannot_be_read_are_refused_at_once(self):
        def refused(name, content=None):
            if content is not None:
                (self.folder / name).write_bytes(content)
            with self.assertRaisesRegex(mr.RowError, name):
                mr.load(self.folder / name)
        text = (json.dumps(HEADER) + "\n" + json.dumps(ROW) + "\n").encode()
        whole = gzip.compress(text)
        refused("cut.jsonl.gz", whole[:-9])
        refused("damaged.jsonl.gz", whole[:20] + b"\xff\xff\xff" + whole[23:])
        refused("plain.jsonl.gz", text)
        refused("latin.jsonl", text.replace(b"moescope run", b"moescope r\xfcn"))
        refused("pointer.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        os.mkfifo(self.folder / "fifo.jsonl")
        refused("fifo.jsonl")
        (self.folder / "folder.jsonl").mkdir()
        refused("folder.jsonl")
        (self.folder / "full.jsonl").symlink_to("/dev/full")
        refused("full.jsonl")
        (self.folder / "gone.jsonl").symlink_to("nowhere")
        refused("gone.jsonl")
        (self.folder / "self.jsonl").symlink_to("self.jsonl")
        refused("self.jsonl")
        for pattern in ("", "a\0b.jsonl"):
            with self.assertRaises(mr.RowError):
                mr.load(pattern, root=self.folder)

    def test_broken_csv_is_refused(self):
        (self.folder / "run.json").write_text(json.dumps(HEADER))
        names = ",".join(ROW)
        cells = ["" if value is None else str(value) for value in ROW.values()]

        def refused(words, *lines):
            (self.folder / "rows.csv").write_text("\n".join(lines) + "\n")
            with self.assertRaisesRegex(mr.RowError, words):
                mr.load(self.folder / "rows.csv")

        def changed(field, text):
            return ",".join(text if name == field else cell for name, cell in zip(ROW, cells))
        for text in ("nan", "inf", "-inf", "1e999", "0x1", "1_0", " 1", "None", "-1", "0"):
            refused(r"rows.csv:2: value", names, changed("value", text))
        for text in ("1.5", "1e3", "\u0663", "x", "", "-1", "9" * 5000):
            refused(r"rows.csv:2: L ", names, changed("L", text))
        refused("rows.csv:2: 28 cells under", names, ",".join(cells[:-1]))
        refused("rows.csv:2: 30 cells under", names, ",".join(cells) + ",x")
        refused("rows.csv:1: a column stands there twice", names + ",L", ",".join(cells) + ",4")
        refused("rows.csv:2: not CSV", names, ",".join(cells[:-1]) + ',"open')
        refused("rows.csv:2: field unit is missing", ",".join(key for key in ROW if key != "unit"),
                ",".join(cell for key, cell in zip(ROW, cells) if key != "unit"))
        for run in ("", "[]", "{}", '{"schema_version": 2, "run_id": "r"}'):
            (self.folder / "run.json").write_text(run)
            refused("run.json", names, ",".join(cells))

    def test_a_pattern_without_files_is_refused(self):
        with self.assertRaisesRegex(mr.RowError, "no such file"):
            mr.load(self.folder / "*.jsonl")

    def test_select_never_returns_nothing(self):
        rows = self.load(HEADER, row())
        with self.assertRaisesRegex(mr.RowError, "no row has schedule 'auto'; there are .'staircase'."):
            mr.select(rows, schedule="auto")

    def test_pivot_mixes_no_units_and_picks_no_value(self):
        rows = self.load(HEADER, row(), row(stage="layer", value=2), row(metric="hbm_read_bytes", unit="bytes", value=3))
        table = mr.pivot(mr.select(rows, unit="s"), "stage", "schedule")
        self.assertEqual(table.loc["layer", "staircase"], 2)
        self.assertEqual(table.attrs["unit"], "s")
        with self.assertRaisesRegex(mr.RowError, "bytes and s cannot stand in one table"):
            mr.pivot(rows, "stage", "metric")
        twice = self.load(HEADER, row(), row(value=1))
        with self.assertRaisesRegex(mr.RowError, "several values at stage experts, schedule staircase"):
            mr.pivot(twice, "stage", "schedule")

    def test_latest_value_of_a_quantity(self):
        later = {"schema_version": 2, "run_id": "r2", "header": {**HEADER["header"], "started_utc": "2026-01-03T00:00:00Z"}}
        rows = self.load(later, row(run_id="r2", value=7), HEADER, row(), row(stage="layer"))
        self.assertEqual(list(mr.latest(rows)["value"]), [7, 0.5])

    def test_tiles_of_the_only_size_there_was_are_the_default_ones(self):
        now = {"schema_version": 3, "run_id": "r3", "header": {**HEADER["header"], "started_utc": "2026-01-03T00:00:00Z"}}
        tiles = [row(schema_version=3, run_id="r3", value=tokens, tile_tokens=tokens) for tokens in (128, 64)]
        rows = mr.latest(self.load(HEADER, row(), row(schedule="token_centric", value=2), now, *tiles))
        self.assertEqual(sorted(rows["value"]), [2, 64, 128])
        self.refused(":2: field tile_tokens is missing", now, row(schema_version=3, run_id="r3"))

    def test_expert_stages_add_up(self):
        rows = self.load(HEADER, row(stage="expert_scores", value=1), row(stage="expert_combine", value=2),
                         row(schedule="dense_masked", value=4), row(stage="layer", value=9))
        table = mr.pivot(mr.fuse_experts(rows), "stage", "schedule")
        self.assertEqual(list(table.loc["experts", ["staircase", "dense_masked"]]), [3, 4])
        with self.assertRaisesRegex(mr.RowError, "fraction do not add up"):
            mr.fuse_experts(self.load(HEADER, row(stage="expert_scores", metric="occupancy", unit="fraction")))

    def test_text_of_values(self):
        self.assertEqual(mr.text(0.00049, "s"), "490 us")
        self.assertEqual(mr.text(0.0009999, "s"), "1 ms")
        self.assertEqual(mr.text(1.2e9, "bytes"), "1.2 GB")
        self.assertEqual(mr.text(0.5, "fraction"), "50 %")
        self.assertEqual(mr.text(0, "bytes"), "0 B")

    @unittest.skipIf(mr.ROOT is None, "recorded rows lie in the checkout")
    def test_every_recorded_row_loads(self):
        rows = mr.load("results/*/*.jsonl*")
        self.assertTrue((rows["unit"] != "").all())
        self.assertTrue(rows[rows["status"] == "ok"]["value"].notna().all())


if __name__ == "__main__":
    unittest.main()
