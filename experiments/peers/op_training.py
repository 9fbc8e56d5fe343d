#!/usr/bin/env python3
"""The example's loss curves and tokens a second: our layer beside the dense masked one in plain PyTorch, the same weights and text.

  PYTHONPATH=python python3 experiments/peers/op_training.py TEXT --out results/op-training --device cuda
  PYTHONPATH=python python3 experiments/peers/op_training.py TEXT --out results/op-training --device cuda --record my-run \\
      --sizes 128,2,1024,16,8 256,2,65536,64,16 256,2,65536,64,16,autocast

A size is width, blocks, experts, K and batch (of 128 bytes each); `autocast`: products in bfloat16. Every seed trains both layers.
Rows have moescope's result schema; `backend` is moescope.torch or torch, L the tokens of a step, workload the text's name.
  loss_bits      a byte, at the step that column `schedule` names (step0000, ...): the mean of the --every steps up to it
  final_bits     a byte, the mean of the last tenth of the steps
  tokens_per_s   of the steps after the first ten; step_s their median
  torch_peak_bytes  most that PyTorch had allocated at once
--record DIR keeps the routing of the first size and seed as the example does.
"""
import argparse
import pathlib
import statistics
import sys

import row_writer

ROOT = pathlib.Path(__file__).resolve().parents[2]
WARM_UP = 10


def mean(values):
    return sum(values) / len(values)


class Rows:
    def __init__(self, folder, torch, device, libraries):
        if device == "cpu":
            name, driver, machine = "CPU", "unavailable: no GPU was asked for", {}
        else:
            import torch_peers

            properties = torch.cuda.get_device_properties(torch.device(device))
            name, driver = properties.name, torch_peers.query_nvidia_smi("driver_version") or "unavailable: nvidia-smi gave no answer"
            machine = {"gpu_multiprocessors": properties.multi_processor_count, "gpu_memory_bytes": properties.total_memory}
        self.writer = row_writer.RowWriter(folder, "op_training", name, driver=driver, libraries=libraries, machine=machine)

    def row(self, backend, run, workload, metric, unit, value, samples=1, spread=None, schedule="none"):
        size = run.size
        side = round(size.experts**0.5)
        self.writer.write(
            backend=backend, direction="backward", L=run.batch * 128, d=size.width, Nr=side, Nc=side, K=size.top_k, shared_size=2 * size.width,
            dtype="bf16" if run.autocast else "fp32", activation="silu", gates="softmax", workload=workload, seed=run.seed, l2_state="none",
            stage="layer", metric=metric, value=value, unit=unit, samples=samples, spread=spread, schedule=schedule)


def size_of(example, text):
    words = text.split(",")
    autocast = words[-1] == "autocast"
    width, blocks, experts, top_k, batch = map(int, words[:5])
    return example.Size(width, blocks, experts, top_k), batch, autocast


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for rows.jsonl")
    parser.add_argument("--sizes", nargs="+", default=["128,2,1024,16,8", "256,2,65536,64,16", "256,2,65536,64,16,autocast"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--record", type=pathlib.Path, metavar="DIR")
    given = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("op_training: PyTorch is not installed")
    if given.device != "cpu" and not torch.cuda.is_available():
        sys.exit("op_training: PyTorch sees no CUDA device")
    sys.path.insert(0, str(ROOT / "python" / "examples"))
    import bytes_lm
    import moescope

    rows = Rows(given.out, torch, given.device, {"torch": torch.__version__, "moescope": moescope.library_version()})
    text = torch.frombuffer(bytearray(given.text.read_bytes()), dtype=torch.uint8)
    folder = given.record
    for described in given.sizes:
        size, batch, autocast = size_of(bytes_lm, described)
        for seed in given.seeds:
            run = bytes_lm.Run(given.steps, batch, seed, given.device, size, autocast)
            for backend, layer in (("moescope.torch", bytes_lm.OmniMoE), ("torch", bytes_lm.DenseOmniMoE)):
                print(f"== {described}, seed {seed}, {backend}", flush=True)
                if given.device != "cpu":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats(given.device)
                history = bytes_lm.train(text, layer, run, folder)
                folder = None
                put(rows, backend, run, given.text.name, history, given.every)
                if given.device != "cpu":
                    rows.row(backend, run, given.text.name, "torch_peak_bytes", "bytes", torch.cuda.max_memory_allocated(given.device))


def put(rows, backend, run, workload, history, every):
    losses, seconds = history.losses, history.seconds[WARM_UP:] or history.seconds
    rows.row(backend, run, workload, "loss_bits", "bits", losses[0], schedule="step0000")
    for step in range(every, len(losses) + 1, every):
        rows.row(backend, run, workload, "loss_bits", "bits", mean(losses[step - every:step]), every, schedule=f"step{step:04}")
    last = losses[-max(1, len(losses) // 10):]
    rows.row(backend, run, workload, "final_bits", "bits", mean(last), len(last))
    rows.row(backend, run, workload, "tokens_per_s", "tokens_per_s", history.tokens_per_s(run.batch * 128, WARM_UP), len(seconds))
    median = statistics.median(seconds)
    rows.row(backend, run, workload, "step_s", "s", median, len(seconds), (max(seconds) - min(seconds)) / median)


if __name__ == "__main__":
    main()
