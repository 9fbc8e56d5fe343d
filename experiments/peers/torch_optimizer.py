#!/usr/bin/env python3
"""PyTorch's own AdamW over an OmniMoE layer's tables of experts, timed beside `moescope compare --optimizer touched|dense`.

PyTorch is no dependency of moescope: this script runs where torch with CUDA is installed and says so where it is not.
Its rows have moescope's result schema and `backend` "torch"; protocol and options are those of torch_peers.py.

  moescope compare --backend cuda --direction backward --optimizer dense --preset table-a-4096-512
  python3 experiments/peers/torch_optimizer.py --out results/optimizer

Peers (column `schedule`, stage experts_optimizer), all of them dense: the tables' gradients are dense tensors in autograd.
  adamw_fused_fp32    weights, gradients and state in fp32; then a copy of the weights to bf16, as the layer reads them
  adamw_fused_bf16    everything in bf16, moments too: half of the bytes, and steps below a bf16 unit are lost
  adamw_foreach_fp32  the first without the fused kernel
"""
import argparse
import pathlib
import statistics
import sys
import types

from torch_peers import Rows, Timer

PEERS = ("adamw_fused_fp32", "adamw_fused_bf16", "adamw_foreach_fp32")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for rows.jsonl")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--grid", default="320x320", metavar="ROWSxCOLS")
    parser.add_argument("--samples", type=int, default=11)
    parser.add_argument("--l2", choices=("cold", "warm"), default="cold")
    arguments = parser.parse_args()
    if arguments.samples < 10:
        parser.error("--samples: at least 10")
    return arguments


def work_of(torch, peer, experts, width):
    """What to time: a step on W and V, and the weights that the layer reads."""
    dtype = torch.bfloat16 if peer.endswith("bf16") else torch.float32
    tables = [torch.nn.Parameter(torch.randn(experts, width, device="cuda").to(dtype)) for _ in range(2)]
    for table in tables:
        table.grad = torch.randn(experts, width, device="cuda").to(dtype)
    rounded = [] if dtype == torch.bfloat16 else [torch.empty(experts, width, device="cuda", dtype=torch.bfloat16) for _ in tables]
    optimizer = torch.optim.AdamW(tables, lr=1e-3, weight_decay=0.01, fused="fused" in peer, foreach="foreach" in peer)

    def step():
        optimizer.step()
        for to, table in zip(rounded, tables):
            to.copy_(table.detach())

    return step, tables


def main():
    arguments = parse_arguments()
    try:
        import torch
    except ImportError:
        sys.exit("torch_optimizer: PyTorch is not installed")
    if not torch.cuda.is_available():
        sys.exit("torch_optimizer: PyTorch sees no GPU")
    rows_of_grid, cols = (int(side) for side in arguments.grid.split("x"))
    # A step of the optimizer knows no batch: L and K are those of nothing.
    point = types.SimpleNamespace(system="omnimoe", activation="none", gates_mode="none", num_tokens=0, top_k=0, rows=rows_of_grid,
                                  cols=cols, hidden_size=arguments.hidden_size, seed=0, workload="none", l2=arguments.l2, extents=dict)
    rows = Rows(arguments.out, torch)
    timer = Timer(torch, arguments.samples, arguments.l2)
    for peer in arguments.peers:
        try:
            step, tables = work_of(torch, peer, rows_of_grid * cols, arguments.hidden_size)
            times = timer.times(step)
        except (RuntimeError, torch.cuda.OutOfMemoryError) as failure:
            reason = str(failure).splitlines()[0]
            rows.row(point, peer, "experts_optimizer", "time_s", "s", None, samples=0, reason=reason, direction="backward", optimizer="dense")
            print(f"{peer}: failed: {reason}", flush=True)
            continue
        if not all(bool(torch.isfinite(table).all()) for table in tables):
            sys.exit(f"torch_optimizer: {peer}: weights are not finite")
        median = statistics.median(times)
        for metric, value in (("time_s", median), ("time_min_s", min(times)), ("time_max_s", max(times))):
            rows.row(point, peer, "experts_optimizer", metric, "s", value, len(times),
                     (max(times) - min(times)) / median if metric == "time_s" else None, direction="backward", optimizer="dense")
        print(f"{peer}: {median * 1e3:.4f} ms ({min(times) * 1e3:.4f} to {max(times) * 1e3:.4f}, n = {len(times)})", flush=True)
        del step, tables
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
