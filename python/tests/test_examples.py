"""The example trains, and our layer gives the losses of the same model in plain PyTorch."""
import contextlib
import importlib.util
import io
import sys
import tempfile
import unittest
from pathlib import Path

try:
    import torch
except ModuleNotFoundError:
    raise unittest.SkipTest("PyTorch is not installed") from None

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "bytes_lm.py"


@unittest.skipUnless(EXAMPLE.is_file(), "the example is not beside the tests")
class BytesLm(unittest.TestCase):
    def test_losses_are_those_of_the_dense_layer(self):
        spec = importlib.util.spec_from_file_location("bytes_lm", EXAMPLE)
        example = importlib.util.module_from_spec(spec)
        sys.modules["bytes_lm"] = example  # dataclasses look their module up
        spec.loader.exec_module(example)
        text = torch.frombuffer(bytearray(EXAMPLE.read_bytes()), dtype=torch.uint8)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            run = example.Run(steps=4, batch=2)
            ours, dense = (example.train(text, layer, run, folder).losses
                           for layer, folder in ((example.OmniMoE, Path(folder)), (example.DenseOmniMoE, None)))
            self.assertEqual({path.name for path in Path(folder).iterdir()},
                             {"step0000.npz", "step0002.npz", "step0004.npz", "layer.safetensors"})
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(dense), rtol=1e-3, atol=1e-3)
        self.assertLess(ours[-1], ours[0])


if __name__ == "__main__":
    unittest.main()
