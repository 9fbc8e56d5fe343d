#!/usr/bin/env python3
"""The report's page in headless Chromium: every interaction, by pointer and by keyboard, on recorded rows.

Usage: scripts/browser.sh, or tests/browser/report_test.py [--moescope PROGRAM] [--shots DIR]
--shots: pictures of what a person would look at, into DIR.
"""
import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build/cpu/experiments/moescope"
SHOTS = None
WORK = None

# What would run, end an element, a string or a comment, break a line or move a cursor.
HOSTILE = "</script><script>window.owned=1</script><img src=x onerror=window.owned=1>\"'`${owned}]]>-->&lt;\n\x1b[2J"
SHOWN = HOSTILE.replace("\n", "\\n").replace("\x1b", "\\x1b")


def moescope(*arguments, environment=None):
    done = subprocess.run([str(PROGRAM), *map(str, arguments)], capture_output=True, text=True, cwd=WORK,
                          env={**os.environ, "COLUMNS": "1000", **(environment or {})})
    if done.returncode != 0:
        raise RuntimeError(f"moescope {arguments}: {done.returncode}\n{done.stderr}")
    return done.stdout


def lines_of(file):
    data = Path(file).read_bytes()
    return (gzip.decompress(data) if str(file).endswith(".gz") else data).decode().splitlines()


def changed(file, name, change):
    """A recording with `change` made to each of its rows and headers."""
    rows = [json.loads(line) for line in lines_of(file)]
    for row in rows:
        change(row)
    (WORK / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return WORK / name


def browser(javascript=True):
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--window-size=1280,1000", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if not javascript:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    return webdriver.Chrome(service=Service("/usr/bin/chromedriver"), options=options)


class Page(unittest.TestCase):
    """Tests of one page, loaded anew for each."""

    name = ""

    @classmethod
    def setUpClass(cls):
        cls.driver = browser()

    @classmethod
    def tearDownClass(cls):
        cls.driver.quit()

    def setUp(self):
        self.driver.get((WORK / self.name).as_uri())

    def tearDown(self):
        messages = [entry for entry in self.driver.get_log("browser") if "favicon" not in entry["message"]]
        self.assertEqual(messages, [], "the page complains")
        self.assertEqual(self.js("return performance.getEntriesByType('resource').length"), 0, "something was fetched")
        self.assertIsNone(self.js("return window.owned ?? null"), "a name was run")

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, selector, within=None):
        return (within or self.driver).find_element(By.CSS_SELECTOR, selector)

    def all(self, selector, within=None):
        return (within or self.driver).find_elements(By.CSS_SELECTOR, selector)

    def until(self, condition, what):
        WebDriverWait(self.driver, 10).until(lambda _: condition(), what)

    def show(self, element):
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)

    def chart_of(self, figure):
        """The figure's first canvas, once it is drawn."""
        self.show(figure)
        canvas = self.find("canvas", self.find(".plot", figure))
        self.until(lambda: self.js("return !!Chart.getChart(arguments[0])", canvas), "not drawn")
        return canvas

    def place_of(self, canvas, series, point):
        """Where a point is, in pixels of the window."""
        return self.js("""const [canvas, s, i] = arguments, box = canvas.getBoundingClientRect();
            const {x, y} = Chart.getChart(canvas).getDatasetMeta(s).data[i];
            return [Math.round(box.left + x), Math.round(box.top + y)]""", canvas, series, point)

    def point_at(self, place):
        actions = ActionBuilder(self.driver)
        actions.pointer_action.move_to_location(*place)
        actions.perform()

    def tooltip(self, canvas):
        return self.js("""const {tooltip} = Chart.getChart(arguments[0]);
            return tooltip.opacity ? [...tooltip.title, ...tooltip.body.flatMap(one => one.lines)] : []""", canvas)

    def shot(self, name, element=None):
        if SHOTS:
            (element.screenshot if element else self.driver.save_screenshot)(str(SHOTS / f"{name}.png"))

    def column(self, table, index):
        return self.js("""const [table, index] = arguments;
            return [...table.tBodies].flatMap(body => [...body.rows]).filter(row => !row.matches('.layer, .stages'))
              .map(row => row.cells[index]).filter(cell => cell && cell.colSpan === 1)
              .map(cell => cell.dataset.value ?? cell.textContent)""", table, index)


class Report(Page):
    """Several recordings of an H100, with profiled stages."""

    name = "h100.html"

    def test_begins_with_what_the_rows_say(self):
        self.assertEqual(self.find("h2").text, "What the rows say")
        self.assertIn("the fastest of", self.find("section p b").text)
        self.assertLess(self.js("return document.querySelector('section p').getBoundingClientRect().top"), 400)
        self.shot("report-first-screen")
        self.driver.set_window_size(1680, 1000)
        self.shot("report-first-screen-wide")
        self.driver.set_window_size(1280, 1000)

    def test_contents_lead_into_what_is_folded(self):
        links = self.all("nav a[href^='#layers-']")
        self.assertGreater(len(links), 4)
        target = links[-1].get_attribute("href").split("#")[1]
        self.js("arguments[0].closest('details').open = true", links[-1])
        self.assertFalse(self.js(f"return document.getElementById('{target}').open"))
        links[-1].click()
        self.until(lambda: self.js(f"return document.getElementById('{target}').open"), "still folded")
        self.until(lambda: self.js(f"return Math.abs(document.getElementById('{target}').getBoundingClientRect().top) < 900"),
                   "not in sight")
        for link in self.all("nav a"):
            place = link.get_attribute("href").split("#")[1]
            self.assertTrue(self.all(f"[id='{place}']"), place)

    def test_a_head_sorts_by_pointer_and_by_keyboard(self):
        table = self.find("#fastest ~ table.sortable, section table.sortable")
        self.js("arguments[0].closest('details') && (arguments[0].closest('details').open = true)", table)
        head = self.all("th", table)[3]
        button = self.find("button", head)
        before = self.column(table, 3)
        numbers = lambda: [float(text.rstrip("x")) for text in self.column(table, 3)]
        self.show(button)
        button.click()
        self.assertEqual(head.get_attribute("aria-sort"), "ascending")
        self.assertEqual(numbers(), sorted(numbers()))
        button.send_keys(Keys.ENTER)
        self.assertEqual(head.get_attribute("aria-sort"), "descending")
        self.assertEqual(numbers(), sorted(numbers(), reverse=True))
        button.send_keys(Keys.SPACE)
        self.assertIsNone(head.get_attribute("aria-sort"))
        self.assertEqual(self.column(table, 3), before, "the third time it is as it was")

    def test_sorting_keeps_the_rows_of_a_layer_under_its_heading(self):
        section = self.find("#layers-1")
        self.js("arguments[0].open = true", section)
        table = self.find("table.sortable", section)
        bodies = self.js("""return [...arguments[0].tBodies].map(body => [body.rows[0].textContent,
            [...body.rows].filter(row => !row.matches('.layer, .stages')).map(row => row.textContent).sort().join()])""", table)
        self.assertGreater(len(bodies), 1)
        button = self.all("thead button", table)[1]
        self.show(button)
        button.click()
        after = self.js("""return [...arguments[0].tBodies].map(body => [body.rows[0].textContent,
            [...body.rows].filter(row => !row.matches('.layer, .stages')).map(row => row.textContent).sort().join()])""", table)
        self.assertEqual(sorted(map(tuple, after)), sorted(map(tuple, bodies)))
        times = self.js("""return [...arguments[0].tBodies].map(body => [...body.rows]
            .filter(row => !row.matches('.layer, .stages') && row.cells[1].colSpan === 1).map(row => Number(row.cells[1].dataset.value)))""", table)
        for body in times:
            self.assertEqual(body, sorted(body))
        self.assertEqual([body[0] for body in times], sorted(body[0] for body in times), "and layers by their fastest")

    def test_words_filter_rows(self):
        section = self.find("#layers-1")
        self.js("arguments[0].open = true", section)
        field = self.find("input[type=search]", section)
        self.show(field)
        shown = lambda: self.js("""return [...arguments[0].querySelector('table').tBodies].filter(body => !body.hidden)
            .flatMap(body => [...body.rows]).filter(row => !row.matches('.layer, .stages') && !row.hidden)
            .map(row => row.cells[0].textContent)""", section)
        everything = len(shown())
        field.send_keys("token_centric")
        self.assertTrue(0 < len(shown()) < everything)
        self.assertTrue(all("token_centric" in text for text in shown()), "auto names what it chose")
        self.assertIn(f"{len(shown())} of {everything} rows", self.find("output", section).text)
        field.send_keys(" nothing-has-this")
        self.assertEqual(shown(), [])
        field.clear()
        field.send_keys(" ", Keys.BACKSPACE)
        self.assertEqual(len(shown()), everything)

    def test_a_point_shows_the_row_behind_it(self):
        figure = self.find("figure.chart")
        canvas = self.chart_of(figure)
        self.point_at(self.place_of(canvas, 0, 1))
        self.until(lambda: self.tooltip(canvas), "no tooltip")
        label = self.js("return Chart.getChart(arguments[0]).data.datasets[0].label", canvas)
        text = " ".join(self.tooltip(canvas))
        for word in (label, "time: ", "spread: ", "workload: ", "device: NVIDIA H100"):
            self.assertIn(word, text)
        self.assertNotIn("again", text)
        self.shot("hover", figure)
        ActionChains(self.driver).click().perform()
        behind = self.find(".behind", figure)
        again = self.find("dd code", behind).text
        self.assertTrue(any(json.dumps(again) in line for line in RECORDED), f"{again} is of no row")
        self.find("button", behind).click()
        self.assertEqual(behind.text, "")

    def test_arrow_keys_walk_through_the_points(self):
        figure = self.find("figure.chart")
        canvas = self.chart_of(figure)
        plot = self.find(".plot", figure)
        seen = []
        self.js("arguments[0].focus()", plot)
        for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_LEFT):
            self.driver.switch_to.active_element.send_keys(key)
            seen.append((self.find(".behind b", figure).text, self.find(".behind dd", figure).text))
            self.assertTrue(self.tooltip(canvas))
        self.assertEqual(len(set(seen)), 4, seen)
        self.assertEqual(seen[0][0], seen[1][0])
        self.assertNotEqual(seen[1][0], seen[2][0])
        self.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
        self.assertEqual(self.find(".behind", figure).text, "")
        self.assertEqual(self.tooltip(canvas), [])

    def test_the_legend_hides_and_shows_lines_in_every_panel(self):
        figure = self.find("figure.chart")
        self.chart_of(figure)
        visible = lambda: self.js("""return [...arguments[0].querySelectorAll('.plot canvas')].map(canvas => {
            const chart = Chart.getChart(canvas);
            return chart.data.datasets.filter((set, s) => chart.isDatasetVisible(s)).map(set => set.label)})""", figure)
        before = visible()
        key = self.find(".legend button", figure)
        key.click()
        self.assertEqual(key.get_attribute("aria-pressed"), "false")
        self.assertEqual(visible(), [[label for label in panel if label != key.text] for panel in before])
        key.send_keys(Keys.ENTER)
        self.assertEqual(key.get_attribute("aria-pressed"), "true")
        self.assertEqual(visible(), before)

    def test_stages_stand_under_the_measured_roofs(self):
        figure = self.find("#rooflines ~ figure.chart")
        self.assertIn("roofline: ", self.find("figcaption", figure).text)
        canvas = self.chart_of(figure)
        self.assertEqual([head.text for head in self.all("h4", figure)], ["HBM", "L2"])
        series = self.js("return Chart.getChart(arguments[0]).data.datasets.findIndex(set => set.label)", canvas)
        self.point_at(self.place_of(canvas, series, 0))
        self.until(lambda: self.tooltip(canvas), "no tooltip")
        self.assertIn("of the HBM roof: ", " ".join(self.tooltip(canvas)))
        over = self.js("""const sets = Chart.getChart(arguments[0]).data.datasets, roof = sets.find(set => !set.label).data;
            return sets.filter(set => set.label).flatMap(set => set.data)
              .filter(({x, y}) => y > 1.3 * Math.max(...roof.filter(one => one.x <= x).map(one => one.y)))""", canvas)
        self.assertEqual(over, [], "no stage is faster than the machine")
        self.shot("roofline", figure)

    def test_paper_has_everything(self):
        folded = len(self.all("details:not([open])"))
        self.assertGreater(folded, 0)
        self.js("window.dispatchEvent(new Event('beforeprint'))")
        self.assertEqual(self.all("details:not([open])"), [])
        self.assertEqual(self.js("return [...document.querySelectorAll('.plot canvas')].filter(one => !Chart.getChart(one)).length"), 0)
        self.js("window.dispatchEvent(new Event('afterprint'))")
        self.assertEqual(len(self.all("details:not([open])")), folded)
        sheet = self.driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "pageRanges": "1-3"})
        self.assertGreater(len(sheet["data"]), 20_000)
        if SHOTS:
            import base64
            (SHOTS / "print.pdf").write_bytes(base64.b64decode(sheet["data"]))


class Diff(Page):
    """One recording against itself, with a schedule made slower."""

    name = "diff.html"

    def test_names_what_became_slower_and_nothing_else(self):
        said = DIFF.splitlines()[0]
        self.assertIn("B is slower beyond noise at 5 of 45 points: expert_centric on", said)
        self.assertEqual(self.find("section p b").text, said, "the page says what the command says")
        self.assertEqual(self.find("h2").text, "What the rows say")
        table = self.find("#baseline ~ .wide table")
        verdicts = list(zip(self.column(table, 0), self.column(table, 3)))
        self.assertEqual(len(verdicts), 45)
        self.assertEqual(verdicts[:5], [("SLOW", "expert_centric")] * 5, "what needs a look comes first")
        self.assertEqual({verdict for verdict, _ in verdicts[5:]}, {"SAME"})
        self.shot("diff-first-screen")

    def test_its_figure_shows_every_point_with_its_verdict(self):
        figure = self.find("#baseline ~ figure.chart")
        canvas = self.chart_of(figure)
        series = self.js("return Chart.getChart(arguments[0]).data.datasets.findIndex(set => set.label === 'expert_centric')", canvas)
        self.point_at(self.place_of(canvas, series, 0))
        self.until(lambda: self.tooltip(canvas), "no tooltip")
        self.assertIn("verdict: SLOW", " ".join(self.tooltip(canvas)))
        self.shot("diff-figure", figure)


class Hostile(Page):
    """Names of every field end elements, strings and lines."""

    name = "hostile.html"

    def test_names_are_shown_and_nothing_is_run(self):
        cells = self.js("return [...document.querySelectorAll('td, th, code, b, figcaption, summary')].map(one => one.textContent)")
        self.assertTrue(any(SHOWN in text for text in cells))
        self.assertEqual(len(self.all("script")), 3)
        self.assertEqual(self.all("img"), [])
        figure = self.find("figure.chart")
        canvas = self.chart_of(figure)
        self.assertIn(SHOWN, [key.get_attribute("textContent") for key in self.all(".legend button", figure)])
        series = self.js("return Chart.getChart(arguments[0]).data.datasets.findIndex(set => set.label === arguments[1])", canvas, SHOWN)
        self.js("arguments[0].focus()", self.find(".plot", figure))
        self.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT, *[Keys.ARROW_DOWN] * series)
        self.assertEqual(self.find(".behind b", figure).get_attribute("textContent"), SHOWN)
        self.assertIn(SHOWN, self.find(".behind dl", figure).get_attribute("textContent"))
        self.assertTrue(any("window.owned" in line for line in self.tooltip(canvas)))


class WithoutLibrary(Page):
    """Made on a machine without Chart.js."""

    name = "plain.html"

    def test_says_so_and_its_tables_sort(self):
        self.assertIn("apt-get install libjs-chart.js", self.find("#no-figures").text)
        self.assertFalse(any(figure.is_displayed() for figure in self.all("figure.chart")))
        head = self.find("table.sortable th")
        self.find("button", head).click()
        self.assertEqual(head.get_attribute("aria-sort"), "ascending")


class WithoutJavaScript(unittest.TestCase):
    def test_tables_are_plain_and_complete(self):
        driver = browser(javascript=False)
        try:
            driver.get((WORK / "h100.html").as_uri())
            self.assertIn("need JavaScript", driver.find_element(By.CSS_SELECTOR, "noscript").text)
            self.assertEqual(driver.find_elements(By.CSS_SELECTOR, "button, input"), [])
            tables = driver.find_elements(By.CSS_SELECTOR, "#layers-1 table")
            driver.find_element(By.CSS_SELECTOR, "#layers-1 > summary").click()
            self.assertTrue(tables[0].is_displayed())
            self.assertGreater(len(tables[0].find_elements(By.CSS_SELECTOR, "tr")), 5)
        finally:
            driver.quit()


class Everything(Page):
    """All that is recorded here."""

    name = "all.html"

    def test_loads_and_draws_every_figure(self):
        self.assertLess((WORK / self.name).stat().st_size, 12e6)
        loaded = self.js("const [entry] = performance.getEntriesByType('navigation'); return entry.domContentLoadedEventEnd")
        self.assertLess(loaded, 20_000, "milliseconds, on a busy machine")
        figures = self.all("figure.chart")
        self.assertGreater(len(figures), 24)
        for number, figure in enumerate(figures, 1):
            canvas = self.chart_of(figure)
            sizes = self.js("""return [...arguments[0].querySelectorAll('.plot canvas')].map(canvas => {
                const {chartArea, width, height} = Chart.getChart(canvas);
                return [(chartArea.right - chartArea.left) / width, (chartArea.bottom - chartArea.top) / height]})""", figure)
            for wide, high in sizes:
                self.assertGreater(min(wide, high), 0.4, f"figure {number}: names leave no room for points")
            self.shot(f"all-{number:02}", figure)


def main():
    global PROGRAM, SHOTS, WORK, RECORDED, DIFF
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moescope", type=Path, default=PROGRAM)
    parser.add_argument("--shots", type=Path)
    options, rest = parser.parse_known_args()
    PROGRAM = options.moescope.resolve()
    if options.shots:
        SHOTS = options.shots.resolve()
        SHOTS.mkdir(parents=True, exist_ok=True)
    results = ROOT / "results"
    with tempfile.TemporaryDirectory() as folder:
        WORK = Path(folder)
        files = [results / "h100" / name for name in ("scaling-tokens.jsonl.gz", "skew.jsonl.gz", "profile.jsonl", "ceilings.jsonl")]
        RECORDED = [line for file in files for line in lines_of(file)]
        moescope("report", *files, "--output", "h100.html")

        def slower(row):
            if row.get("metric") == "time_s" and row["value"] and row["schedule"] == "expert_centric":
                row["value"] *= 1.1

        before = results / "h100/compare-4096-512.jsonl.gz"
        DIFF = moescope("report", changed(before, "slower.jsonl", slower), "--baseline", before, "--output", "diff.html")

        def hostile(row):
            for key in ("run_id", "command_line", "device", "driver", "git_revision", "build", "workload", "backend", "repro"):
                if key in row:
                    row[key] = HOSTILE
            if row.get("schedule") == "staircase":
                row["schedule"] = HOSTILE

        moescope("report", changed(files[0], "hostile.jsonl", hostile), "--output", "hostile.html")
        moescope("report", files[0], "--output", "plain.html", environment={"XDG_DATA_DIRS": "/nowhere"})
        moescope("report", *sorted(results.glob("*/*.jsonl*")), "--output", "all.html")
        return unittest.main(argv=[sys.argv[0], *rest], verbosity=2, exit=False).result.wasSuccessful()


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
