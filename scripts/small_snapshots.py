#!/usr/bin/env python3
"""Cuts a recorded router down to what a repository can hold: the first tokens of its held-out text, and the
router's weights in bf16, to which every path rounds them anyway.

usage: small_snapshots.py TOKENS SNAPSHOT.safetensors OUT.safetensors

What the layer's metadata says of its source stays; what was cut is added to it. Biases stay in fp32.
"""
import json
import struct
import sys

KEPT = ("router.row.weight", "router.col.weight", "router.row.bias", "router.col.bias")


def read(path):
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        body = file.read()
    metadata = header.pop("__metadata__")
    return metadata, {
        name: (entry["dtype"], entry["shape"], body[entry["data_offsets"][0] : entry["data_offsets"][1]])
        for name, entry in header.items()
    }


def to_bf16(data):
    """fp32 to bf16, to nearest, ties to even. Trained weights are finite."""
    words = struct.unpack(f"<{len(data) // 4}I", data)
    return struct.pack(f"<{len(words)}H", *((word + 0x7FFF + ((word >> 16) & 1)) >> 16 for word in words))


def main(tokens, source, target):
    metadata, tensors = read(source)
    dtype, (recorded, hidden_size), data = tensors["hidden_states"]
    if dtype != "BF16" or not 0 < tokens <= recorded:
        sys.exit(f"{source}: {recorded} tokens in {dtype}, {tokens} in BF16 are asked for")
    small = {"hidden_states": (dtype, [tokens, hidden_size], data[: tokens * hidden_size * 2])}
    for name in KEPT:
        if name in tensors:
            dtype, shape, data = tensors[name]
            weight = name.endswith("weight") and dtype == "F32"
            small[name] = ("BF16", shape, to_bf16(data)) if weight else (dtype, shape, data)
    metadata["cut"] = (
        f"first {tokens} of {recorded} tokens, router weights rounded from F32 to BF16, by scripts/small_snapshots.py"
    )
    header, offset = {"__metadata__": dict(sorted(metadata.items()))}, 0
    for name in sorted(small):
        dtype, shape, data = small[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(small):
            file.write(small[name][2])


if __name__ == "__main__":
    if len(sys.argv) != 4 or not sys.argv[1].isdigit():
        sys.exit(__doc__)
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
