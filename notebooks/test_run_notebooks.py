"""What counts as the same figure, and where findings go: `python -m unittest discover -s notebooks`."""
import unittest

from run_notebooks import same_figure, with_finding

FIGURE = ('<path id="p3e99912ab0" d="M 1.25 2e-3 L 10 20"/><use href="#C0_0_b1e98765432"/>'
          '<text fill="#009e73">4 us, revision 6e907c7</text>')


class SameFigure(unittest.TestCase):
    def test_last_digits_and_names_may_differ(self):
        self.assertTrue(same_figure(FIGURE, FIGURE))
        self.assertTrue(same_figure(FIGURE, FIGURE.replace("b1e98765432", "bffff000000")))
        self.assertTrue(same_figure(FIGURE, FIGURE.replace("1.25", "1.250001").replace("p3e99912ab0", "p0123456789")))

    def test_anything_else_may_not(self):
        for old, new in (("1.25", "1.5"), ("L 10 20", ""), ("us", "ms"), ("4 us", "5 us"), ("L 10", "L -10"),
                         ("009e73", "009e74"), ("6e907c7", "6e907c8")):
            self.assertFalse(same_figure(FIGURE, FIGURE.replace(old, new)), new)


class Findings(unittest.TestCase):
    README = "a\n<!-- finding: skew -->\nold\n<!-- end -->\nb\n<!-- finding: shift -->\n<!-- end -->\n"

    def test_go_between_their_own_marks(self):
        updated = with_finding(self.README, "skew", "new")
        self.assertEqual(updated, self.README.replace("old", "new"))
        self.assertEqual(with_finding(updated, "skew", "new"), updated)
        self.assertIn("<!-- finding: shift -->\nother\n<!-- end -->", with_finding(self.README, "shift", "other"))

    def test_need_marks(self):
        with self.assertRaisesRegex(ValueError, "finding: scaling"):
            with_finding(self.README, "scaling", "new")


if __name__ == "__main__":
    unittest.main()
