"""Makes the files beside it, with NumPy alone: routing in the formats of engines, and small checkpoints with the
outputs of their layers in float64. Run it here: python3 make.py"""

import json
import os
import struct

import numpy as np

rng = np.random.default_rng(17)
LAYERS, TOKENS, EXPERTS, K, D, WIDTH, SHARED = 2, 16, 8, 3, 12, 5, 7


def bf16_bits(x):
    """Round to nearest even, as every framework does."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bf16(x):
    return from_bf16(bf16_bits(x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def top_k(logits, k):
    """Ids by descending logit; of equal ones the lower id first."""
    return np.argsort(-logits, axis=-1, kind="stable")[..., :k]


def routing_files():
    # Steps of 1/4: many ties.
    logits = (np.round(rng.normal(size=(LAYERS, TOKENS, EXPERTS)) * 4) / 4).astype(np.float16)
    wide = logits.astype(np.float64)
    ids = top_k(wide, K)
    chosen = np.take_along_axis(wide, ids, -1)
    scores = sigmoid(chosen)
    ordered = np.sort(wide, -1)[..., ::-1]
    np.savez("logits.npz", router_logits=logits)
    np.savez(
        "expected.npz",
        ids=ids.astype(np.int32),
        tied_rows=np.int64((ordered[..., K - 1] == ordered[..., K]).sum()),
        softmax=softmax(chosen),
        probability=np.take_along_axis(softmax(wide), ids, -1),
        sigmoid=scores,
        sigmoid_normalised=scores / scores.sum(-1, keepdims=True),
    )
    gates = softmax(chosen).astype(np.float32)
    np.savez("layers_first.npz", expert_ids=ids.astype(np.uint8), gates=gates, layers=np.array([1, 3]))
    np.savez("routed_experts.npz", routed_experts=ids.transpose(1, 0, 2).astype(np.int32))
    ids.transpose(1, 0, 2).astype(np.int32).tofile("flat.bin")
    packed = (ids.astype(np.uint32) << 16) | bf16_bits(gates).astype(np.uint32)
    np.save("packed.npy", packed.astype(np.int32))
    with open("rows.csv", "w") as file:
        file.write("layer,expert\n")
        for token in range(TOKENS):
            for layer in range(LAYERS):
                for expert in ids[layer, token]:
                    file.write(f"{layer},{expert}\n")
    with open("router_trace.json", "w") as file:
        json.dump({"expertsPerLayer": EXPERTS, "layers": LAYERS,
                   "selections": ids.transpose(1, 0, 2).tolist()}, file)
    # A NumPy text, and a scalar: what a trace says of itself.
    np.savez("trace.npz", expert_ids=ids.astype(np.uint8), gates=gates, layers=np.array([1, 3]),
             system="gshard", num_experts=np.int64(EXPERTS), grid_rows=np.int64(1), grid_cols=np.int64(EXPERTS))
    megatron(bf16(logits), ids)


def megatron(logits, ids):
    """Two ranks of data parallel, two steps: tokens 0-4 and 5-7 are rank 0's, 8-12 and 13-15 rank 1's."""
    os.makedirs("megatron", exist_ok=True)
    for rank in range(2):
        offset = 0
        with open(f"megatron/router_trace_rank{rank}.jsonl", "w") as trace, \
                open(f"megatron/logits_rank{rank}.bin", "wb") as sidecar:
            for step, (first, last) in enumerate([(0, 5), (5, 8)]):
                tokens = slice(8 * rank + first, 8 * rank + last)
                for layer in range(LAYERS):
                    part = bf16_bits(logits[layer, tokens])
                    # As the bool map of a training run gives them: ascending.
                    rows = np.sort(ids[layer, tokens], -1).tolist()
                    record = {"step": step, "stage": "pre_dispatch", "block": "decoder", "layer": layer + 4,
                              "rank": rank, "num_tokens": last - first, "topk": K, "top_indices": rows,
                              "logit_offset": offset, "logit_bytes": part.nbytes,
                              "logit_shape": list(part.shape)}
                    trace.write(json.dumps(record) + "\n")
                    sidecar.write(part.tobytes())
                    offset += part.nbytes
                mtp = {"step": step, "stage": "pre_dispatch", "block": "mtp", "mtp_idx": 0, "layer": 4, "rank": rank,
                       "num_tokens": 1, "topk": K, "top_indices": [[0, 1, 2]]}
                trace.write(json.dumps(mtp) + "\n")


def write_safetensors(path, tensors, metadata=None):
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, array) in tensors.items():
        raw = array.tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def silu(x):
    return x * sigmoid(x)


def ffn(x, gate, up, down):
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def checkpoint(folder, config, names, shared, renormalised, scale):
    """Layer 1 in two shards, and x, y of that layer."""
    os.makedirs(folder, exist_ok=True)
    draw = lambda *shape: bf16(rng.normal(size=shape) / np.sqrt(shape[-1]))
    x = bf16(rng.normal(size=(TOKENS, D)))
    router = bf16(rng.normal(size=(EXPERTS, D)))
    experts = [(draw(WIDTH, D), draw(WIDTH, D), draw(D, WIDTH)) for _ in range(EXPERTS)]
    tensors = {names["router"]: router}
    for e, (gate, up, down) in enumerate(experts):
        for part, value in zip(("gate", "up", "down"), (gate, up, down)):
            tensors[names[part].format(e)] = value
    y = np.zeros((TOKENS, D))
    wide = x.astype(np.float64)
    if shared:
        weights = (draw(SHARED, D), draw(SHARED, D), draw(D, SHARED))
        for part, value in zip(("shared_gate", "shared_up", "shared_down"), weights):
            tensors[names[part]] = value
        y += ffn(wide, *(w.astype(np.float64) for w in weights))
    logits = wide @ router.T.astype(np.float64)
    ids = top_k(logits, K)
    gates = np.take_along_axis(softmax(logits), ids, -1)
    if renormalised:
        gates = gates / gates.sum(-1, keepdims=True)
    for token in range(TOKENS):
        for expert, gate in zip(ids[token], gates[token]):
            y[token] += scale * gate * ffn(wide[token], *(w.astype(np.float64) for w in experts[expert]))
    # A tensor of another layer and one of attention lie among them, as in a real checkpoint.
    tensors["model.layers.0.self_attn.q_proj.weight"] = draw(D, D)
    tensors["model.layers.1.self_attn.q_proj.weight"] = draw(D, D)
    weight_map = {}
    for shard in range(2):
        file = f"model-{shard + 1:05d}-of-00002.safetensors"
        part = dict(list(tensors.items())[shard::2])
        write_safetensors(f"{folder}/{file}", {n: ("BF16", bf16_bits(v)) for n, v in part.items()}, {"format": "pt"})
        weight_map.update({n: file for n in part})
    with open(f"{folder}/model.safetensors.index.json", "w") as file:
        json.dump({"metadata": {"total_size": 0}, "weight_map": weight_map}, file, indent=1)
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config, file, indent=1)
    write_safetensors(f"{folder}/hidden.safetensors", {"hidden_states": ("BF16", bf16_bits(x))})
    np.savez(f"{folder}/expected.npz", y=y, ids=np.sort(ids, -1).astype(np.int32))


def main():
    routing_files()
    mixtral = "model.layers.1.block_sparse_moe."
    checkpoint("mixtral",
               {"architectures": ["MixtralForCausalLM"], "hidden_size": D, "intermediate_size": WIDTH,
                "num_local_experts": EXPERTS, "num_experts_per_tok": K, "num_hidden_layers": 2, "hidden_act": "silu"},
               {"router": mixtral + "gate.weight", "gate": mixtral + "experts.{}.w1.weight",
                "up": mixtral + "experts.{}.w3.weight", "down": mixtral + "experts.{}.w2.weight"},
               shared=False, renormalised=True, scale=1)
    mlp = "model.layers.1.mlp."
    checkpoint("deepseek",
               {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "hidden_size": D,
                "moe_intermediate_size": WIDTH, "n_routed_experts": EXPERTS, "n_shared_experts": None,
                "num_experts_per_tok": K, "num_hidden_layers": 2, "hidden_act": "silu", "first_k_dense_replace": 1,
                "norm_topk_prob": False, "routed_scaling_factor": 16.0, "scoring_func": "softmax",
                "topk_method": "greedy", "n_group": 1, "topk_group": 1},
               {"router": mlp + "gate.weight", "gate": mlp + "experts.{}.gate_proj.weight",
                "up": mlp + "experts.{}.up_proj.weight", "down": mlp + "experts.{}.down_proj.weight"},
               shared=False, renormalised=False, scale=16)
    checkpoint("qwen",
               {"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "hidden_size": D,
                "moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": SHARED, "num_experts": EXPERTS,
                "num_experts_per_tok": K, "num_hidden_layers": 2, "hidden_act": "silu", "norm_topk_prob": True,
                "decoder_sparse_step": 1, "mlp_only_layers": [0]},
               {"router": mlp + "gate.weight", "gate": mlp + "experts.{}.gate_proj.weight",
                "up": mlp + "experts.{}.up_proj.weight", "down": mlp + "experts.{}.down_proj.weight",
                "shared_gate": mlp + "shared_expert.gate_proj.weight",
                "shared_up": mlp + "shared_expert.up_proj.weight",
                "shared_down": mlp + "shared_expert.down_proj.weight"},
               shared=True, renormalised=True, scale=1)


main()
