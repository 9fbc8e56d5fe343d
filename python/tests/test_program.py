"""The program's commands from Python, with a program where there is one."""
import os
import tempfile
import unittest
from pathlib import Path

import moescope
from moescope import program

try:
    moescope.program_path()
except FileNotFoundError as missing:
    raise unittest.SkipTest(str(missing)) from None
try:
    import pandas  # noqa: F401
    HAVE_PANDAS = True
except ModuleNotFoundError:
    HAVE_PANDAS = False

QUICK = {"min_samples": 3, "max_time": 0.02}


class Options(unittest.TestCase):
    def test_words_of_the_command_line(self):
        words = program._options({"K": 8, "min_samples": 3, "schedule": ["a", "b"], "device": ["c", "d"], "full": True, "quiet": False, "seed": None,
                                  "workload": "zipf:1", "output": Path("x y")})
        self.assertEqual(words, ["-K", "8", "--min-samples", "3", "--schedule", "a", "--schedule", "b", "--device", "c,d", "--full",
                                 "--workload", "zipf:1", "--output", "x y"])


class Commands(unittest.TestCase):
    def test_version(self):
        self.assertIn(moescope.__version__, moescope.command("--version").stdout)

    def test_errors_carry_code_and_message(self):
        with self.assertRaises(moescope.ProgramError) as caught:
            moescope.command("run", "--preset", "tiny", "-K", 1000)
        self.assertEqual(caught.exception.exit_code, 3)
        self.assertIn("1000", str(caught.exception))
        self.assertEqual(moescope.command("run", "--preset", "tiny", "-K", 1000, check=False).returncode, 3)

    def test_inspect(self):
        self.assertIn("experts", moescope.inspect(preset="tiny"))

    @unittest.skipUnless(HAVE_PANDAS, "pandas is not installed")
    def test_commands_are_frames(self):
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder) / "run"
            rows = moescope.run(preset="tiny", output=kept, **QUICK)
            self.assertTrue({"time_s", "relative_error"} <= set(rows["metric"]))
            again = moescope.load_rows(kept / "rows.jsonl")
            self.assertEqual(len(rows), len(again))
            here = os.getcwd()
            try:
                os.chdir(folder)
                self.assertEqual(len(moescope.load_rows("run/*.jsonl")), len(rows))
            finally:
                os.chdir(here)
        compared = moescope.compare(preset="tiny", workload="zipf:1", **QUICK)
        self.assertGreater(compared["schedule"].nunique(), 3)
        modelled = moescope.simulate(preset="tiny", device="h100-sxm")
        self.assertEqual(set(modelled["source"]) - {"modelled", "analytic"}, set())


if __name__ == "__main__":
    unittest.main()
