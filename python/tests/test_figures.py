"""Figures of rows: what is drawn is what the rows say. Skips where matplotlib or pandas is not installed."""
import unittest
from pathlib import Path

try:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    import pandas  # noqa: F401
except ModuleNotFoundError as missing:
    raise unittest.SkipTest(f"{missing.name} is not installed") from None

from moescope import figures
from moescope import rows as mr

RECORDED = mr.ROOT and Path(mr.ROOT) / "results" / "h200" / "compare-4096-512.jsonl.gz"


@unittest.skipUnless(RECORDED and RECORDED.is_file(), "recorded rows are not beside the tests")
class Figures(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.rows = mr.load(RECORDED)

    def tearDown(self):
        plt.close("all")

    def test_times(self):
        figure = figures.times(self.rows)
        lines = {line.get_label(): line for line in figure.axes[0].lines}
        found = mr.select(self.rows, metric="time_s", stage="layer", status="ok")
        self.assertEqual(set(lines), set(found["schedule"]))
        self.assertEqual([*lines], [name for name in figures.SCHEDULES if name in lines])  # in the order of legends
        own = found[found["schedule"] == "staircase"].set_index("workload")["value"]
        self.assertEqual([*lines["staircase"].get_ydata()], [1e3 * own[name] for name in found["workload"].unique()])
        self.assertEqual(lines["staircase"].get_color(), figures.SCHEDULES["staircase"][0])
        self.assertIn("NVIDIA H200", figure.texts[-1].get_text())

    def test_stages(self):
        figure = figures.stages(self.rows, workload="gaussian:1")
        found = mr.select(mr.fuse_experts(mr.select(self.rows, metric="time_s", status="ok")), workload="gaussian:1", stage=[*figures.STAGES])
        widths = sum(bar.get_width() for container in figure.axes[0].containers for bar in container)
        self.assertAlmostEqual(widths, 1e3 * found["value"].sum(), places=9)

    def test_one_figure_is_of_one_shape(self):
        both = mr.load(RECORDED, RECORDED.with_name("compare-1024-512.jsonl.gz"))
        with self.assertRaisesRegex(mr.RowError, "rows of several L: .* say which"):
            figures.times(both)
        self.assertEqual(len(figures.times(both, L=1024).axes[0].lines), len(figures.times(self.rows).axes[0].lines))
        with self.assertRaisesRegex(mr.RowError, "rows of several workloads"):
            figures.stages(self.rows)
        over = figures.times(both, over="L", workload="gaussian:1").axes[0].lines[0]
        self.assertEqual([*over.get_xdata()], [1024, 4096])


if __name__ == "__main__":
    unittest.main()
