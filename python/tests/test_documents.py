"""The Python blocks of docs/python/, page by page, as they stand there. Above each block a comment says what it needs, or why it
is not run."""
import contextlib
import importlib.util
import io
import os
import re
import tempfile
import unittest
from pathlib import Path

import moescope

PAGES = next((folder for folder in (Path(__file__).resolve().parents[1] / "docs" / "python",
                                    Path(__file__).resolve().parents[2] / "docs" / "python") if folder.is_dir()), None)
BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```python\n(?P<body>.*?)^```", re.M | re.S)


def missing(needs):
    for name in needs:
        if name == "program":
            try:
                moescope.program_path()
            except FileNotFoundError:
                return name
        elif importlib.util.find_spec(name) is None:
            return name
    return None


@unittest.skipIf(PAGES is None, "docs/python is not beside the tests")
class Documents(unittest.TestCase):
    def test_python_blocks_run(self):
        ran = 0
        here = os.getcwd()
        for page in sorted(PAGES.glob("*.md")):
            names = {}
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                os.chdir(folder)
                try:
                    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
                        mark = block["mark"] or ""
                        self.assertRegex(mark, r"^(needs: [\w ]+|not run: \S.*)$", f"{page.name}: what a block needs")
                        if mark.startswith("not run") or missing(mark.removeprefix("needs: ").split()):
                            continue
                        exec(compile(block["body"], f"{page.name}: {mark}", "exec"), names)
                        ran += 1
                finally:
                    os.chdir(here)
        self.assertGreater(ran, 0)


if __name__ == "__main__":
    unittest.main()
