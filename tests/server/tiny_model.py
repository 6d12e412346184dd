"""A model of random weights, so small that the server around it is what is measured.

usage: python tests/server/tiny_model.py FOLDER
Two lightning layers, a softmax layer and another lightning layer, 64 wide; the tokenizer of
models/nano and the chat template of this folder, which has a place for tools.
"""
import json
import pathlib
import shutil
import struct
import sys

import numpy

HERE = pathlib.Path(__file__).resolve().parent
NANO = HERE.parents[1] / "models/nano"
SIZES = dict(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
             head_dim=16, rotary_dim=8, intermediate_size=48, num_local_experts=4,
             num_experts_per_tok=2, attn_type_list=[0, 0, 1, 0])


def shapes(c):
    """Names and shapes of all tensors, as the original checkpoint has them."""
    d, f, v = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    q, kv = (c[n] * c["head_dim"] for n in ("num_attention_heads", "num_key_value_heads"))
    yield from (("model.embed_tokens.weight", [v, d]), ("model.norm.weight", [d]),
                ("lm_head.weight", [v, d]))
    for i, is_softmax in enumerate(c["attn_type_list"]):
        layer = f"model.layers.{i}."
        attention = {"q_proj": [q, d], "k_proj": [kv, d], "v_proj": [kv, d], "o_proj": [d, q]} \
            if is_softmax else {"qkv_proj": [3 * q, d], "output_gate": [q, d], "norm": [q],
                                "out_proj": [d, q]}
        yield layer + "input_layernorm.weight", [d]
        yield layer + "post_attention_layernorm.weight", [d]
        for name, shape in attention.items():
            yield f"{layer}self_attn.{name}.weight", shape
        yield layer + "block_sparse_moe.gate.weight", [c["num_local_experts"], d]
        for e in range(c["num_local_experts"]):
            for name, shape in {"w1": [f, d], "w2": [d, f], "w3": [f, d]}.items():
                yield f"{layer}block_sparse_moe.experts.{e}.{name}.weight", shape


def write(folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((NANO / "config.json").read_text()) | SIZES
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NANO / name, folder)
    shutil.copy(HERE / "chat_template.jinja", folder)
    random = numpy.random.default_rng(1)
    header, parts, at = {}, [], 0
    for name, shape in shapes(config):
        values = random.normal(size=shape) * (0.1 if len(shape) == 1 else shape[-1] ** -0.5)
        values = (values + (len(shape) == 1)).astype("float32")
        parts.append((values.view("uint32") >> 16).astype("uint16").tobytes())  # bf16
        header[name] = {"dtype": "BF16", "shape": shape,
                        "data_offsets": [at, at + len(parts[-1])]}
        at += len(parts[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(sys.argv[1])
