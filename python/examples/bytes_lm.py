"""A byte-level language model with OmniMoE layers: trains on one text file, and records how it routes as it learns.

    python bytes_lm.py TEXT --steps 200 --record my-run
    python bytes_lm.py TEXT --steps 200 --layer dense        # the same weights in plain PyTorch: every expert for every token
    python bytes_lm.py TEXT --device cuda --width 256 --experts 65536 --top-k 64 --batch 16 --autocast

Any file will do; Debian's libpython3.11-stdlib has /usr/lib/python3.11/pydoc_data/topics.py, 756 kB of English.
It prints loss and tokens per second. my-run/ then has a trace of all layers at the start, in the middle and at the end
(step0000.npz, ...) and a snapshot of the last layer (layer.safetensors):

    moescope inspect my-run/step0200.npz
    moescope compare --workload snapshot:my-run/layer.safetensors --gates softmax
"""
from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moescope import record
from moescope.torch import OmniMoE

CONTEXT = 128


class DenseOmniMoE(OmniMoE):
    """The same layer in plain PyTorch: all N scores, and every expert for every token behind a mask of gates."""

    def forward(self, hidden_states: Tensor, return_routing: bool = False):
        x = hidden_states.reshape(-1, self.hidden_size)
        rows, cols = self.router_logits(x)
        scores = (rows.log_softmax(-1)[:, :, None] + cols.log_softmax(-1)[:, None]).flatten(1)
        chosen, ids = scores.topk(self.top_k, dim=-1)
        gates = chosen.softmax(-1) if self.gates == "softmax" else chosen.exp()
        self.tell_routing(x, ids, gates)
        hidden = F.silu(x @ self.up_embed.weight.T)
        y = (torch.zeros_like(hidden).scatter(1, ids, gates.to(hidden.dtype)) * hidden) @ self.down_embed.weight
        y = y + self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y.reshape(hidden_states.shape)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, layer: type[OmniMoE], experts: int, top_k: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.moe = layer(width, 2 * width, experts, top_k, gates="softmax")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.moe(self.norm2(x))


@dataclass
class Size:
    width: int = 128
    blocks: int = 2
    experts: int = 1024
    top_k: int = 16


class BytesModel(nn.Module):
    def __init__(self, layer: type[OmniMoE], size: Size = Size()):
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, size.width), nn.Embedding(CONTEXT, size.width)
        self.blocks = nn.ModuleList(Block(size.width, 4, layer, size.experts, size.top_k) for _ in range(size.blocks))
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, 256, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.bytes(tokens) + self.places.weight[:tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def batch_of(text: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and the bytes that follow them, [size, CONTEXT] each."""
    starts = torch.randint(0, len(text) - CONTEXT - 1, (size, 1), generator=generator)
    piece = text[starts + torch.arange(CONTEXT + 1)].long()
    return piece[:, :-1], piece[:, 1:]


@dataclass
class Run:
    """How to train: what is the same for both layers."""

    steps: int = 200
    batch: int = 8
    seed: int = 0
    device: str = "cpu"
    size: Size = field(default_factory=Size)
    autocast: bool = False  #: to bfloat16


@dataclass
class History:
    """Of each step: bits a byte, and seconds from its batch to its loss on the host."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def tokens_per_s(self, tokens: int, warm_up: int = 10) -> float:
        """Of the steps after the first ones, which load kernels."""
        seconds = self.seconds[warm_up:] or self.seconds
        return tokens * len(seconds) / sum(seconds)


def train(text: Tensor, layer: type[OmniMoE], run: Run, folder: Optional[Path] = None) -> History:
    torch.manual_seed(run.seed)
    model = BytesModel(layer, run.size).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=run.device != "cpu")
    generator = torch.Generator().manual_seed(run.seed)
    held, _ = batch_of(text, run.batch, torch.Generator().manual_seed(1))
    tokens = held.numel()
    history = History()
    for step in range(run.steps + 1):
        if folder is not None and step in (0, run.steps // 2, run.steps):
            write_routing(model, held.to(run.device), folder, step, step == run.steps)
        if step == run.steps:
            break
        began = time.perf_counter()
        inputs, targets = (one.to(run.device) for one in batch_of(text, run.batch, generator))
        with torch.autocast(torch.device(run.device).type, torch.bfloat16, enabled=run.autocast):
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.losses.append(loss.item() / math.log(2))  # waits for the step
        history.seconds.append(time.perf_counter() - began)
        if step % 20 == 19 or step == run.steps - 1:
            print(f"step {step + 1}: {history.losses[-1]:.3f} bits a byte, {history.tokens_per_s(tokens):.0f} tokens/s", flush=True)
    return history


def write_routing(model: BytesModel, held: Tensor, folder: Path, step: int, last: bool) -> None:
    model.eval()
    with torch.no_grad(), record.Recorder(model, keep_hidden=last, source=f"bytes_lm, step {step}") as routing:
        model(held)
    model.train()
    folder.mkdir(parents=True, exist_ok=True)
    routing.save_trace(folder / f"step{step:04}.npz")
    for layer in routing.statistics():
        print(f"step {step}: {layer['name']}: {layer['used']} of {layer['experts']} experts, busiest {layer['max_over_mean']:.1f}x, "
              f"gini {layer['gini']:.2f}")
    if last:
        routing.save_snapshot(folder / "layer.safetensors", list(routing.layers)[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layer", choices=("ours", "dense"), default="ours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=Size.width)
    parser.add_argument("--blocks", type=int, default=Size.blocks)
    parser.add_argument("--experts", type=int, default=Size.experts, help="a square")
    parser.add_argument("--top-k", type=int, default=Size.top_k)
    parser.add_argument("--autocast", action="store_true", help="products in bfloat16")
    parser.add_argument("--record", type=Path, metavar="DIR")
    given = parser.parse_args()
    text = torch.frombuffer(bytearray(given.text.read_bytes()), dtype=torch.uint8)
    if len(text) < 2 * CONTEXT:
        parser.error(f"{given.text}: {len(text)} bytes are too few, at least {2 * CONTEXT} are needed")
    if given.steps < 1:
        parser.error(f"--steps {given.steps}: must be at least 1")
    run = Run(given.steps, given.batch, given.seed, given.device, Size(given.width, given.blocks, given.experts, given.top_k), given.autocast)
    train(text, OmniMoE if given.layer == "ours" else DenseOmniMoE, run, given.record)


if __name__ == "__main__":
    main()
