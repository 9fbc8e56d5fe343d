"""Rows that Python writes are rows that everybody reads."""
import json
import pathlib
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python"))
sys.path.insert(0, str(ROOT / "experiments" / "peers"))
import row_writer  # noqa: E402

from moescope import rows as mr  # noqa: E402

POINT = {"schedule": "gather", "stage": "experts", "backend": "torch", "L": 64, "d": 1024, "Nr": 320, "Nc": 320, "K": 512,
         "dtype": "bf16", "workload": "gaussian:1", "l2_state": "cold", "metric": "time_s", "unit": "s"}


class RowWriterTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.folder.name, "run")
        self.rows = row_writer.RowWriter(self.path, "a_peer", "a GPU")

    def tearDown(self):
        self.rows.file.close()
        self.folder.cleanup()

    def test_what_is_written_is_read(self):
        self.rows.write(**POINT, value=1e-3, samples=21, spread=0.1, shared_size=1024)
        self.rows.write(**POINT, value=None, samples=0, reason="ran out of memory")
        frame = mr.load(self.path / "rows.jsonl")
        self.assertEqual(list(frame["value"].fillna(0)), [1e-3, 0])
        self.assertEqual(list(frame["status"]), ["ok", "failed"])
        self.assertEqual(frame["device"][0], "a GPU")

    def test_every_field_of_the_schema_is_there(self):
        self.rows.write(**POINT, value=1.0)
        row = json.loads((self.path / "rows.jsonl").read_text().splitlines()[-1])
        self.assertEqual(list(row), list(row_writer.SCHEMA["properties"]))
        self.assertIsNone(row["shared_size"])

    def test_what_would_mislead_is_refused(self):
        for fields in ({**POINT, "value": float("nan")}, {**POINT, "value": 1.0, "unknown": 1},
                       {**POINT, "value": None}, {**POINT, "value": 1.0, "l2_state": "lukewarm"},
                       {k: v for k, v in POINT.items() if k != "L"} | {"value": 1.0}):
            with self.assertRaises(ValueError):
                self.rows.write(**fields)

    def test_an_earlier_run_is_kept(self):
        with self.assertRaises(FileExistsError):
            row_writer.RowWriter(self.path, "a_peer", "a GPU")


if __name__ == "__main__":
    unittest.main()
