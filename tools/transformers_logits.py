#!/usr/bin/env python3
"""Logits of an exported model by the transformers library, for `mm01 compare MODEL OUT`.

usage: transformers_logits.py MODEL OUT.safetensors [TOKENS]

The library knows the architecture as `minimax`, with other names in config.json; weights are read as
they stand. It rotates whole heads, so MODEL must have rotary_dim = head_dim; half rotation, as in
the models that ship, it cannot compute. Needs torch, transformers (5.17 and 5.23 were tried) and
safetensors.
"""
import json
import shutil
import sys
import tempfile

import torch
from safetensors.torch import save_file
from transformers import MiniMaxConfig, MiniMaxForCausalLM


def translated(config):
    if config["rotary_dim"] != config["head_dim"]:
        sys.exit(f"rotary_dim is {config['rotary_dim']}, wanted head_dim, {config['head_dim']}")
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
            "num_local_experts", "num_experts_per_tok", "tie_word_embeddings", "eos_token_id")
    return MiniMaxConfig(
        **{name: config[name] for name in same},
        bos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
        layer_types=["full_attention" if softmax else "linear_attention"
                     for softmax in config["attn_type_list"]],
        full_attn_alpha_factor=config["layernorm_full_attention_alpha"],
        linear_attn_alpha_factor=config["layernorm_linear_attention_alpha"],
        mlp_alpha_factor=config["layernorm_mlp_alpha"])


def main():
    folder, out = sys.argv[1:3]
    tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 300
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        config = translated(json.load(file))
    with tempfile.TemporaryDirectory() as copy:
        config.save_pretrained(copy)
        shutil.copy(f"{folder}/model.safetensors", copy)
        model = MiniMaxForCausalLM.from_pretrained(copy, dtype=torch.float32,
                                                   attn_implementation="eager")
    torch.manual_seed(0)
    ids = torch.randint(config.vocab_size, (1, tokens))
    with torch.no_grad():
        logits = model(ids).logits
    save_file({"input_ids": ids, "logits": logits.contiguous()}, out)
    print(f"{out}: logits {list(logits.shape)}")


if __name__ == "__main__":
    main()
