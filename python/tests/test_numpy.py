"""moescope.numpy against formulas that know nothing of it."""
import ctypes
import itertools
import math
import unittest

try:
    import numpy as np
except ModuleNotFoundError:
    raise unittest.SkipTest("NumPy is not installed") from None

import formulas
import moescope
import moescope.numpy as mn
from moescope import _library

L, D, NR, NC, K, F = 6, 5, 3, 4, 5, 3
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}


def arrays(dtype="float64", seed=0, tokens=L):
    random = np.random.default_rng(seed)
    draw = lambda *shape: random.standard_normal(shape).astype(dtype)  # noqa: E731
    return {"x": draw(tokens, D), "row_logits": draw(tokens, NR), "col_logits": draw(tokens, NC), "w_in": draw(NR * NC, D),
            "w_out": draw(NR * NC, D), "shared": (draw(F, D), draw(F, D), draw(D, F))}


def near(test, made, expected, dtype):
    test.assertEqual(str(made.dtype), dtype)
    scale = max(np.abs(expected).max(), 1)
    test.assertLess(np.abs(made - expected).max() / scale, TOLERANCE[dtype])


class Select(unittest.TestCase):
    def test_every_mode_picks_what_a_full_sort_picks(self):
        random = np.random.default_rng(1)
        cases = itertools.product(("float32", "float64"), ((3, 4, 5), (1, 40, 7), (40, 1, 40), (16, 16, 200), (8, 8, 1)),
                                  ("softmax", "probability", "score", "relu"), ("log_softmax", "as_given"))
        for dtype, (rows, cols, top_k), mode, marginals in cases:
            row_logits = random.standard_normal((9, rows)).astype(dtype)
            col_logits = random.standard_normal((9, cols)).astype(dtype)
            found = mn.select(row_logits, col_logits, top_k, gates=mode, marginals=marginals)
            # In the dtype itself: which of two sums is larger is decided by their rounded values.
            values = formulas.scores(row_logits, col_logits, marginals).astype(dtype)
            ids = formulas.best(formulas.scores(row_logits.astype(float), col_logits.astype(float), marginals), top_k)
            with self.subTest(dtype=dtype, grid=(rows, cols), top_k=top_k, mode=mode, marginals=marginals):
                if dtype == "float64":
                    np.testing.assert_array_equal(found.ids, ids)
                chosen = np.take_along_axis(values, found.ids, axis=-1)
                near(self, found.scores, chosen, dtype)
                self.assertTrue((np.diff(found.scores, axis=-1) <= 0).all())
                self.assertLess(np.abs(np.sort(chosen)[:, ::-1] - np.take_along_axis(values, ids, -1)).max(), 1e-5)
                near(self, found.gates, formulas.gates(chosen.astype(float), mode), dtype)

    def test_equal_scores_go_to_the_lowest_ids(self):
        random = np.random.default_rng(2)
        for seed in range(20):
            # Few values, exact sums: many ties at the threshold.
            row_logits, col_logits = random.integers(0, 3, (8, 6)).astype(float), random.integers(0, 3, (8, 7)).astype(float)
            found = mn.select(row_logits, col_logits, 11, marginals="as_given", gates="score")
            expected = formulas.best(formulas.scores(row_logits, col_logits, "as_given"), 11)
            np.testing.assert_array_equal(found.ids, expected, err_msg=f"draw {seed}")

    def test_backward(self):
        random = np.random.default_rng(3)
        for mode, marginals in itertools.product(("softmax", "probability", "score", "relu"), ("log_softmax", "as_given")):
            row_logits, col_logits = random.standard_normal((L, NR)), random.standard_normal((L, NC))
            given = random.standard_normal((L, K))
            ids = mn.select(row_logits, col_logits, K, gates=mode, marginals=marginals).ids
            made = mn.select_backward(row_logits, col_logits, ids, given, gates=mode, marginals=marginals)
            expected = formulas.gradients(
                lambda r, c: formulas.gates(np.take_along_axis(formulas.scores(r, c, marginals), ids, -1), mode),
                (row_logits, col_logits), given)
            for one, other in zip(made, expected):
                near(self, one, other, "float64")


class Experts(unittest.TestCase):
    def test_forward_and_backward_with_repeated_ids(self):
        random = np.random.default_rng(4)
        for dtype, id_dtype, activation in itertools.product(("float32", "float64"), (np.int32, np.int64), ("silu", "relu")):
            a = arrays(dtype)
            ids = random.integers(0, NR * NC, (L, K)).astype(id_dtype)  # some stand there twice
            gates = random.standard_normal((L, K)).astype(dtype)
            inputs = (a["x"], a["w_in"], a["w_out"])
            near(self, mn.experts(*inputs, ids, gates, activation=activation),
                 formulas.experts(*(one.astype(float) for one in inputs), ids, gates.astype(float), activation), dtype)
            given = random.standard_normal((L, D)).astype(dtype)
            made = mn.experts_backward(*inputs, ids, gates, given, activation=activation)
            expected = formulas.gradients(lambda x, w, v, g: formulas.experts(x, w, v, ids, g, activation),
                                          [one.astype(float) for one in (*inputs, gates)], given.astype(float))
            for one, other in zip(made, expected):
                near(self, one, other, dtype)

    def test_gelu_is_the_erf_form(self):
        x = np.linspace(-4, 4, 33)[:, None]
        ones, ids = np.ones((1, 1)), np.zeros((33, 1), np.int32)
        expected = np.array([[0.5 * v * (1 + math.erf(v / math.sqrt(2)))] for v in x[:, 0]])
        near(self, mn.experts(x, ones, ones, ids, np.ones((33, 1)), activation="gelu"), expected, "float64")
        slope = [[0.5 * (1 + math.erf(v / math.sqrt(2))) + v * math.exp(-v * v / 2) / math.sqrt(2 * math.pi)] for v in x[:, 0]]
        made = mn.experts_backward(x, ones, ones, ids, np.ones((33, 1)), np.ones((33, 1)), activation="gelu")
        near(self, made.x, np.array(slope), "float64")

    def test_more_pairs_than_experts(self):
        x, w = np.ones((2, 3)), np.full((1, 3), 0.5)
        y = mn.experts(x, w, w, np.zeros((2, 4), np.int32), np.ones((2, 4)))
        near(self, y, 4 * formulas.silu(1.5) * w.repeat(2, 0), "float64")


class Layer(unittest.TestCase):
    def test_forward_and_backward(self):
        for dtype, mode in itertools.product(("float32", "float64"), ("softmax", "probability")):
            a = arrays(dtype, seed=5)
            shared = a.pop("shared")
            output = mn.layer(**a, top_k=K, shared=shared, gates=mode)
            exact = [one.astype(float) for one in (*a.values(), *shared)]
            if dtype == "float64":
                np.testing.assert_array_equal(output.ids, formulas.best(formulas.scores(exact[1], exact[2]), K))
            near(self, output.y, formulas.layer(*exact, output.ids, mode), dtype)
            given = np.random.default_rng(6).standard_normal((L, D)).astype(dtype)
            made = mn.layer_backward(**a, output=output, y_gradient=given, shared=shared, gates=mode)
            expected = formulas.gradients(lambda *inputs: formulas.layer(*inputs, output.ids, mode), exact, given.astype(float))
            for one, other in zip((*made[:5], *made.shared[1:]), expected):
                near(self, one, other, dtype)

    def test_without_a_shared_mlp_and_with_any_number_of_threads(self):
        a = arrays(tokens=64)
        a.pop("shared")
        output = mn.layer(**a, top_k=K, num_threads=1)
        near(self, output.y, formulas.experts(a["x"], a["w_in"], a["w_out"], output.ids, output.gates), "float64")
        given = np.random.default_rng(7).standard_normal((64, D))
        one = mn.layer_backward(**a, output=output, y_gradient=given, num_threads=1)
        for threads in (2, 3, 5):
            np.testing.assert_array_equal(mn.layer(**a, top_k=K, num_threads=threads).y, output.y)
            again = mn.layer_backward(**a, output=output, y_gradient=given, num_threads=threads)
            for left, right in zip(one[:5], again[:5]):
                np.testing.assert_array_equal(left, right)
        self.assertIsNone(one.shared)

    def test_a_large_batch_takes_several_threads_and_gives_the_same_bits(self):
        random = np.random.default_rng(8)
        draw = lambda *shape: random.standard_normal(shape).astype("float32")  # noqa: E731
        a = {"x": draw(300, 64), "row_logits": draw(300, 8), "col_logits": draw(300, 8), "w_in": draw(64, 64), "w_out": draw(64, 64)}
        shared = (draw(96, 64), draw(96, 64), draw(64, 96))
        output = mn.layer(**a, top_k=16, shared=shared, num_threads=1)
        np.testing.assert_array_equal(mn.layer(**a, top_k=16, shared=shared, num_threads=4).y, output.y)
        expected = formulas.layer(*(one.astype(float) for one in (*a.values(), *shared)), output.ids, "softmax")
        self.assertLess(np.linalg.norm(output.y - expected) / np.linalg.norm(expected), 1e-6)

    def test_no_token(self):
        a = arrays(tokens=0)
        shared = a.pop("shared")
        output = mn.layer(**a, top_k=K, shared=shared)
        self.assertEqual(output.y.shape, (0, D))
        made = mn.layer_backward(**a, output=output, y_gradient=np.empty((0, D)), shared=shared)
        self.assertEqual(np.abs(made.w_in).max() + np.abs(made.shared.down).max(), 0)

    def test_arrays_that_are_not_contiguous(self):
        a = arrays()
        shared = a.pop("shared")
        expected = mn.layer(**a, top_k=K, shared=shared).y
        a["x"] = np.asfortranarray(a["x"])
        a["w_in"] = np.repeat(a["w_in"], 2, axis=0)[::2]
        np.testing.assert_array_equal(mn.layer(**a, top_k=K, shared=shared).y, expected)

    def test_mlp(self):
        a = arrays()
        given = np.random.default_rng(9).standard_normal((L, D))
        near(self, mn.mlp(a["x"], *a["shared"]), formulas.mlp(a["x"], *a["shared"]), "float64")
        made = mn.mlp_backward(a["x"], *a["shared"], given)
        for one, other in zip(made, formulas.gradients(formulas.mlp, (a["x"], *a["shared"]), given)):
            near(self, one, other, "float64")


class Interface(unittest.TestCase):
    def test_structs_are_those_of_the_header(self):
        sizes = [ctypes.sizeof(one) for one in (_library.Shape, _library.Execution, _library.LayerInputs, _library.LayerGradients)]
        self.assertEqual(sizes, [80, 80, 88, 72])  # capi/checks.hpp
        self.assertEqual(moescope.library_version(), moescope.__version__)


class Errors(unittest.TestCase):
    def refuses(self, words, function, *arguments, **options):
        with self.assertRaises(ValueError) as caught:
            function(*arguments, **options)
        self.assertIsInstance(caught.exception, moescope.MoescopeError)
        self.assertIn(words, str(caught.exception))

    def test_errors_name_argument_and_value(self):
        a = arrays()
        a.pop("shared")
        layer = lambda **changes: mn.layer(**{**a, "top_k": K, **changes})  # noqa: E731
        self.refuses("top_k: 13 must be in [1, 12]", layer, top_k=13)
        self.refuses("w_in: shape [3, 5] must be [12, 5]", layer, w_in=a["w_in"][:3])
        self.refuses("col_logits: dtype float32 must be float64", layer, col_logits=a["col_logits"].astype("float32"))
        self.refuses("x: dtype float16 must be", layer, x=a["x"].astype("float16"))
        self.refuses("gates: 'exp' is not one of softmax, probability", layer, gates="exp")
        self.refuses("activation: 'tanh'", layer, activation="tanh")
        self.refuses("shared[1] (up): shape", layer, shared=(np.ones((3, D)), np.ones((2, D)), np.ones((D, 3))))
        bad = a["row_logits"].copy()
        bad[2, 1] = np.nan
        self.refuses("row_logits[2, 1]: nan must be finite", layer, row_logits=bad)
        ids = np.full((L, K), -1, np.int32)
        self.refuses("ids[0, 0]: -1 must be in [0, 12)", mn.experts, a["x"], a["w_in"], a["w_out"], ids, np.ones((L, K)))
        self.refuses("ids: dtype float64", mn.experts, a["x"], a["w_in"], a["w_out"], np.ones((L, K)), np.ones((L, K)))


if __name__ == "__main__":
    unittest.main()
