#!/usr/bin/env python3
"""Cuts the reference vectors of the transformers library down to what the tests need.

usage: make_goldens.py SOURCE TARGET

SOURCE holds text-tiny/, text-tiny-adamw/ and text-128/ as the library saved them (docs/data.md says
how they were made); TARGET is tests/goldens. text-tiny is copied as it is. text-128 loses the buffers
that the library computes from the configuration, and keeps the logits of every tenth position, whose
positions are in the tensor `logits_positions`. text-tiny-adamw keeps one final weight of each kind.
Nothing is rounded: what stays is bit for bit the source. Needs the packages of
tests/requirements.txt.
"""

import argparse
import pathlib
import shutil

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

BUFFERS = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
EVERY = 10
TEXT_FILES = ("config.json", "reference.json")
# One weight of each kind after the last step, from the first, a middle and the last layer.
FINAL = (
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.self_attn.qkv_proj.weight",
    "model.layers.0.mlp.gate.weight",
    "model.layers.3.self_attn.norm.weight",
    "model.layers.3.self_attn.output_gate.weight",
    "model.layers.3.mlp.experts.down_proj",
    "model.layers.6.self_attn.out_proj.weight",
    "model.layers.7.self_attn.q_proj.weight",
    "model.layers.7.self_attn.k_proj.weight",
    "model.layers.7.self_attn.v_proj.weight",
    "model.layers.7.self_attn.o_proj.weight",
    "model.layers.7.post_attention_layernorm.weight",
    "model.layers.7.mlp.experts.gate_up_proj",
)


def load(path):
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def copy_whole(source, target):
    for name in TEXT_FILES + ("model.safetensors", "reference.safetensors"):
        shutil.copyfile(source / name, target / name)


def copy_reduced(source, target):
    for name in TEXT_FILES:
        shutil.copyfile(source / name, target / name)

    weights, metadata = load(source / "model.safetensors")
    kept = {name: w for name, w in weights.items() if not name.endswith(BUFFERS)}
    save_file(kept, target / "model.safetensors", metadata)

    reference, metadata = load(source / "reference.safetensors")
    positions = np.arange(0, reference["logits"].shape[1], EVERY, dtype=np.int64)
    reference["logits"] = np.ascontiguousarray(reference["logits"][:, positions])
    reference["logits_positions"] = positions
    save_file(reference, target / "reference.safetensors", metadata)


def copy_training(source, target):
    shutil.copyfile(source / "reference.json", target / "reference.json")
    reference, metadata = load(source / "reference.safetensors")
    kept = {"final." + name for name in FINAL} | {"data", "losses", "grad_norms"}
    save_file({n: reference[n] for n in sorted(kept)}, target / "reference.safetensors", metadata)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    args = parser.parse_args()

    cases = {"text-tiny": copy_whole, "text-tiny-adamw": copy_training, "text-128": copy_reduced}
    for case, copy in cases.items():
        target = args.target / case
        target.mkdir(parents=True, exist_ok=True)
        copy(args.source / case, target)
        size = sum(file.stat().st_size for file in target.iterdir())
        print(f"{target}: {size:,} bytes")


if __name__ == "__main__":
    main()
