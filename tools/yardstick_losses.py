#!/usr/bin/env python3
"""Validation losses of exported weights, by the evaluate() of the independent trainer.

usage: yardstick_losses.py TRAIN_NANO.py VAL.txt.xz MODEL_FOLDER [LENGTH...]

Runs that script's model and evaluate() as they stand, on a GPU, with the weights of MODEL_FOLDER
(of any type, of the shape of models/nano) and their RoPE base in the place of its own, and prints
JSON: the mean loss by length of window. Its windows begin anywhere and know no resets.
tokenizer.json is the one in MODEL_FOLDER.
"""
import json
import lzma
import os
import shutil
import sys
import tempfile

import numpy
import torch
from tokenizers import Tokenizer
from weights import load_weights

END_OF_DOCUMENT = 0
TOKENS = 65536  # of a batch
BATCHES = 6
PARTS = 64


def make_data(folder, texts, model_folder):
    """What the script reads as it starts; only the validation tokens are used."""
    shutil.copy(f"{model_folder}/tokenizer.json", folder)
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    with lzma.open(texts, "rt", encoding="utf-8", newline="") as file:
        documents = file.read().split("\0")
    ids = []
    for first in range(PARTS):  # the order in which its prep_data.py writes them
        for document in tokenizer.encode_batch(documents[first::PARTS], add_special_tokens=False):
            ids += document.ids + [END_OF_DOCUMENT]
    for name in ("train.bin", "val.bin"):
        numpy.array(ids, dtype=numpy.uint16).tofile(f"{folder}/{name}")
    with open(f"{folder}/keys.json", "w", encoding="utf-8") as file:
        json.dump([], file)


def set_weights(model, weights, experts):
    def put(parameter, value):
        assert parameter.shape == value.shape, (parameter.shape, value.shape)
        parameter.data.copy_(value)

    put(model.embed_tokens, weights["model.embed_tokens.weight"])
    put(model.norm.weight, weights["model.norm.weight"])
    put(model.lm_head, weights["lm_head.weight"])
    for i, layer in enumerate(model.layers):
        def get(name, prefix=f"model.layers.{i}."):
            return weights[f"{prefix}{name}.weight"]

        put(layer.input_layernorm.weight, get("input_layernorm"))
        put(layer.post_attention_layernorm.weight, get("post_attention_layernorm"))
        attention, moe = layer.self_attn, layer.block_sparse_moe
        if not layer.full:
            put(attention.norm.weight, get("self_attn.norm"))
        for name in (("q_proj", "k_proj", "v_proj", "o_proj") if layer.full else
                     ("qkv_proj", "output_gate", "out_proj")):
            put(getattr(attention, name), get(f"self_attn.{name}"))
        put(moe.gate, get("block_sparse_moe.gate"))
        for name in ("w1", "w2", "w3"):
            rows = [get(f"block_sparse_moe.experts.{e}.{name}") for e in range(experts)]
            put(getattr(moe, name), torch.stack(rows))


def main():
    script, texts, model_folder = sys.argv[1:4]
    lengths = [int(n) for n in sys.argv[4:]] or [2048, 8192, 32768]
    with open(script, encoding="utf-8") as file:
        source = file.read()
    # Its definitions, then its model, then evaluate(); what trains lies between and after.
    definitions, rest = source.split("model = Nano().to(dev)", 1)
    evaluate = rest[rest.index("@torch.no_grad()\ndef evaluate"):rest.index("done = 0.0")]
    with tempfile.TemporaryDirectory() as folder:
        make_data(folder, texts, model_folder)
        with open(f"{model_folder}/config.json", encoding="utf-8") as file:
            theta = json.load(file)["rope_theta"]
        sys.argv = [script, "--data", folder, "--out", os.devnull, "--compile", "0",
                    "--theta", str(theta)]
        names = {"__name__": "yardstick"}
        exec(compile(definitions + "\nmodel = Nano().to(dev)\n" + evaluate, script, "exec"), names)
        set_weights(names["model"], load_weights(model_folder), names["a"].experts)
        losses = {str(n): round(names["evaluate"](n, max(1, TOKENS // n), BATCHES), 4)
                  for n in lengths}
    print(json.dumps(losses))


if __name__ == "__main__":
    main()
