"""What check_docs.py must find. Usage: MOESCOPE=PROGRAM python3 -m unittest scripts/test_check_docs.py"""
import os
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))
import check_docs  # noqa: E402
import update_docs  # noqa: E402


class Page(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        root = Path(folder.name).resolve()
        for name in ("docs/guide", "results", "scripts"):
            (root / name).mkdir(parents=True)
        (root / "docs/index.md").write_text("# Home\n\n## Start\n", encoding="utf-8")
        (root / "README.md").touch()
        self.page = root / "docs/guide/page.md"
        self.enterContext(mock.patch.object(check_docs, "ROOT", root))

    def write(self, text: str) -> Path:
        self.page.write_text(text, encoding="utf-8")
        return self.page

    def commands(self, text: str, run: bool = True) -> list[str]:
        return check_docs.Commands(Path(os.environ["MOESCOPE"]).resolve(), run).check(self.write(text))

    def test_a_sentence_of_26_words_is_too_long(self):
        self.assertEqual(check_docs.long_sentences(self.write("word " * 24 + "word. Next one.\n")), [])
        self.assertEqual(len(check_docs.long_sentences(self.write("word " * 25 + "word. Next one.\n"))), 1)

    def test_code_tables_and_generated_parts_are_no_sentences(self):
        long = "word " * 30
        text = f"```\n{long}\n```\n\n| {long} |\n|---|\n\n<!-- fields: row -->\n{long}\n<!-- end -->\n"
        self.assertEqual(check_docs.long_sentences(self.write(text)), [])

    def test_links_need_file_heading_and_a_place_in_the_site(self):
        for target, wrong in (("../index.md", 0), ("../index.md#start", 0), ("../nowhere.md", 1), ("../index.md#nothing", 1),
                              ("../../README.md", 1), ("https://example.org", 0)):
            self.assertEqual(len(check_docs.broken_links(self.write(f"[x]({target})\n"))), wrong, target)

    def test_files_of_the_repository_are_there(self):
        self.assertEqual(check_docs.missing_files(self.write("`docs/index.md`, `docs/*.md`, `docs/NAME.md` and `other/thing`\n")), [])
        self.assertEqual(len(check_docs.missing_files(self.write("`docs/nowhere.md`\n"))), 1)

    def test_blocks_of_commands_say_how_they_are_checked(self):
        self.assertIn("no mark", self.commands("```sh\nmoescope doctor\n```\n")[0])
        self.assertEqual(self.commands("<!-- skip: because -->\n```sh\nmoescope whatever\n```\n"), [])
        self.assertIn("there is no scripts/nothing.sh", self.commands("<!-- skip: because -->\n```sh\nscripts/nothing.sh\n```\n")[0])

    def test_commands_run_and_end_as_the_page_says(self):
        self.assertEqual(self.commands("<!-- run -->\n```sh\nmoescope schema result | head -n 1\n```\n"), [])
        self.assertIn("exit code 3, not 0", self.commands("<!-- run -->\n```sh\nmoescope run --preset tiny -K 1000\n```\n")[0])
        self.assertEqual(self.commands("<!-- run, exit 3 -->\n```sh\nmoescope run --preset tiny -K 1000\n```\n"), [])

    def test_a_file_of_the_page_is_there_for_its_commands(self):
        text = "<!-- file: x.json -->\n```json\n{\"name\": \"x\"}\n```\n\n<!-- run -->\n```sh\ncat x.json\n```\n"
        self.assertEqual(self.commands(text), [])

    def test_parsing_knows_commands_options_and_numbers(self):
        for command, wrong in (("moescope compare --preset tiny", 0), ("moescope compare --pre-set tiny", 1), ("moescope compares", 1),
                               ("moescope compare --seed ten", 1), ("moescope report", 1), ("moescope compare --help", 0)):
            text = f"<!-- parse: minutes -->\n```sh\n{command}\n```\n"
            self.assertEqual(len(self.commands(text)), wrong, command)

    def test_commands_in_text_are_parsed(self):
        self.assertEqual(self.commands("`moescope claims` and `moescope run --preset tiny` are right.\n"), [])
        self.assertEqual(len(self.commands("`moescope run --presets tiny` is not.\n")), 1)


    def test_sources_name_pages_that_are_there(self):
        (check_docs.ROOT / "scripts/a.py").write_text("# docs/index.md, docs/DEVICE.md\n", encoding="utf-8")
        self.assertEqual(check_docs.stale_mentions(), [])
        (check_docs.ROOT / "scripts/b.sh").write_text("# docs/simulator/validation.md\n", encoding="utf-8")
        self.assertEqual(len(check_docs.stale_mentions()), 1)

    def test_a_recorded_device_has_its_pages(self):
        self.assertEqual(check_docs.devices_without_pages(), [])
        (check_docs.ROOT / "results/x1").mkdir()
        (check_docs.ROOT / "results/x1/ceilings.jsonl").touch()
        self.assertEqual(len(check_docs.devices_without_pages()), 2)


class Generated(unittest.TestCase):
    def test_a_part_without_its_marks_is_an_error(self):
        self.assertEqual(update_docs.between("a\n<!-- b -->\nold\n<!-- end -->\nc", "<!-- b -->", "<!-- end -->", "new", "page"),
                         "a\n<!-- b -->\nnew\n<!-- end -->\nc")
        with self.assertRaisesRegex(ValueError, "page has no <!-- b -->"):
            update_docs.between("a", "<!-- b -->", "<!-- end -->", "new", "page")

    def test_readme_is_measured(self):
        with mock.patch.object(check_docs, "README_BYTES", 100), mock.patch.object(check_docs, "README_WIDTH", 20):
            self.assertEqual(len(check_docs.readme_size()), 2)

    def test_metrics_without_a_line_are_named(self):
        with mock.patch.object(Path, "read_text", return_value="| `time_s` | hours | x |\n"):
            found = check_docs.uncovered_metrics()
        self.assertTrue(any("metric time_s has unit s, the page says hours" in line for line in found))
        self.assertTrue(any("metric relative_error" in line for line in found))


if __name__ == "__main__":
    unittest.main()
