"""Makes rules.npz beside it with NumPy alone: router logits, and which pairs run under rules for tokens, worked out on
dense [tokens, experts] matrices. Also the counts for ../traces/ffn64_unbalanced.npz. Run it here: python3 make.py"""

import math

import numpy as np

rng = np.random.default_rng(25)
TOKENS, EXPERTS, K = 96, 12, 3


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def chosen(ids, gates, experts):
    """Gates as a matrix, -1 where an expert was not chosen."""
    dense = np.full((len(ids), experts), -1.0)
    np.put_along_axis(dense, ids, gates, -1)
    return dense


def capacity(dense, factor, k):
    """GShard: one-hot masks of first choices, then second ones; places by cumulative sums over the tokens."""
    tokens, experts = dense.shape
    limit = min(math.ceil(factor * tokens * k / experts), tokens)
    order = np.argsort(-dense, -1, kind="stable")[:, :k]
    filled = np.zeros(experts, int)
    runs = np.zeros(dense.shape, bool)
    for choice in range(k):
        mask = np.eye(experts, dtype=int)[order[:, choice]]
        place = np.cumsum(mask, 0) - mask + filled
        runs |= (mask == 1) & (place < limit)
        filled += mask.sum(0)
    return limit, runs


def rounding(dense, probabilities, tile, how):
    """SonicMoE: columns sorted with what was chosen before what was not, the first so many taken."""
    loads = (dense >= 0).sum(0)
    wanted = {"nearest": np.round(loads / tile), "up": np.ceil(loads / tile), "down": loads // tile}[how] * tile
    order = np.argsort(-np.where(dense >= 0, dense, probabilities - 1), 0, kind="stable")
    place = np.argsort(order, 0)
    return place < wanted


arrays = {}
logits = rng.normal(size=(TOKENS, EXPERTS)) * 1.5 + np.linspace(2, -2, EXPERTS)
logits = logits.astype(np.float16).astype(np.float32)
ids = np.sort(np.argsort(-logits, -1, kind="stable")[:, :K], -1)
gates = softmax(np.take_along_axis(logits.astype(float), ids, -1))
probabilities = softmax(logits.astype(float))
dense = chosen(ids, gates, EXPERTS)
assert len(np.unique(gates)) == gates.size, "ties would leave the order open"
arrays |= {"logits": logits, "expert_ids": ids.astype(np.int32), "gates": gates.astype(np.float32)}
for factor in (0.5, 1, 1.25, 2):
    limit, runs = capacity(dense, factor, K)
    arrays[f"padded:{factor:g}"] = runs.astype(np.uint8)
    arrays[f"padded:{factor:g} capacity"] = np.int64(limit)
for tile in (8, 32):
    for how in ("nearest", "up", "down"):
        arrays[f"token_rounding:{how}:{tile}"] = rounding(dense, probabilities, tile, how).astype(np.uint8)
np.savez("rules.npz", **arrays)

trace = np.load("../traces/ffn64_unbalanced.npz")
ids, gates = trace["expert_ids"].astype(int), trace["gates"].astype(float)
for factor in (1, 1.25, 4):
    limit, runs = capacity(chosen(ids, gates, int(trace["num_experts"])), factor, ids.shape[1])
    print(f"padded:{factor:g}: capacity {limit}, {ids.size - runs.sum()} of {ids.size} pairs dropped, "
          f"{(~runs.any(1)).sum()} tokens without experts")
