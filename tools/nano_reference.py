#!/usr/bin/env python3
"""What a model computes, from the formulas in plain float32 PyTorch, for `mm01 compare`.

usage: nano_reference.py MODEL TEXT.txt OUT.safetensors

Reads the first 600 tokens of TEXT and writes input_ids, top_values, top_ids and logsumexp of each
position, nll, and 64 greedy tokens behind the first 200. Knows the shape of models/nano: half
rotation, DeepNorm, one expert network; attention is the sum of its definition, token by token of
the prefix and without a state. Needs torch, safetensors and tokenizers.
"""
import json
import math
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from weights import load_weights

TOKENS, TOP, PROMPT, GREEDY = 600, 32, 200, 64


def rms(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


class Model:
    def __init__(self, folder):
        with open(f"{folder}/config.json", encoding="utf-8") as file:
            self.config = json.load(file)
        self.weights = load_weights(folder)
        c = self.config
        self.heads, self.kv, self.dim = (c["num_attention_heads"], c["num_key_value_heads"],
                                         c["head_dim"])

    def slopes(self, layer):
        c = self.config
        base = torch.tensor([2 ** (-8 * (h + 1) / self.heads) for h in range(self.heads)])
        return base * (1 - layer / (c["num_hidden_layers"] - 1 + 1e-5) + 1e-5)

    def lightning(self, x, i, get):
        n = len(x)
        q, k, v = F.silu(x @ get("self_attn.qkv_proj").T).view(n, self.heads, 3, self.dim).permute(
            2, 1, 0, 3)
        distance = torch.arange(n)[:, None] - torch.arange(n)[None]
        decay = torch.exp(-self.slopes(i)[:, None, None] * distance.clamp(min=0))
        scores = (q @ k.transpose(1, 2)) * decay * (distance >= 0)
        out = (scores @ v).transpose(0, 1).reshape(n, -1)
        gate = torch.sigmoid(x @ get("self_attn.output_gate").T)
        return (gate * rms(out, get("self_attn.norm"), 1e-6)) @ get("self_attn.out_proj").T

    def rotate(self, x):  # [heads, n, dim]
        half = self.config["rotary_dim"] // 2
        inverse = self.config["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * inverse
        cos, sin = angle.cos().float(), angle.sin().float()
        a, b, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)

    def softmax(self, x, get):
        n = len(x)
        q, k, v = ((x @ get(f"self_attn.{p}_proj").T).view(n, -1, self.dim).transpose(0, 1)
                   for p in "qkv")
        q, k = self.rotate(q), self.rotate(k)
        k, v = (t.repeat_interleave(self.heads // self.kv, 0) for t in (k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(self.dim)
        scores = scores.masked_fill(torch.triu(torch.ones(n, n, dtype=torch.bool), 1), -math.inf)
        return (scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1) @ get("self_attn.o_proj").T

    def experts(self, x, get):
        c = self.config
        share = (x @ get("block_sparse_moe.gate").T).softmax(-1)
        share, chosen = share.topk(c["num_experts_per_tok"], -1)
        share = share / share.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for e in range(c["num_local_experts"]):
            w1, w2, w3 = (get(f"block_sparse_moe.experts.{e}.w{j}") for j in (1, 2, 3))
            y = (F.silu(x @ w1.T) * (x @ w3.T)) @ w2.T
            out += y * (share * (chosen == e)).sum(-1, keepdim=True)
        return out

    def logits(self, ids):
        c, eps = self.config, self.config["rms_norm_eps"]
        h = self.weights["model.embed_tokens.weight"][ids]
        for i, full in enumerate(c["attn_type_list"]):
            def get(name, prefix=f"model.layers.{i}."):
                return self.weights[f"{prefix}{name}.weight"]

            kind = "full" if full else "linear"
            x = rms(h, get("input_layernorm"), eps)
            branch = self.softmax(x, get) if full else self.lightning(x, i, get)
            h = (c[f"layernorm_{kind}_attention_alpha"] * x +
                 c[f"layernorm_{kind}_attention_beta"] * branch)
            x = rms(h, get("post_attention_layernorm"), eps)
            h = c["layernorm_mlp_alpha"] * x + c["layernorm_mlp_beta"] * self.experts(x, get)
        return rms(h, self.weights["model.norm.weight"], eps) @ self.weights["lm_head.weight"].T


@torch.no_grad()
def main():
    folder, text, out = sys.argv[1:]
    model = Model(folder)
    with open(text, encoding="utf-8") as file:
        tokens = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(
            file.read(20 * TOKENS), add_special_tokens=False).ids[:TOKENS]
    ids = torch.tensor(tokens)
    logits = model.logits(ids)
    values, top = logits.topk(TOP, -1)
    total = logits.logsumexp(-1)
    nll = total[:-1] - logits[:-1].gather(1, ids[1:, None])[:, 0]
    written = ids[:PROMPT]
    for _ in range(GREEDY):
        written = torch.cat([written, model.logits(written)[-1].argmax()[None]])
    save_file({"input_ids": ids[None], "top_values": values.contiguous(), "top_ids": top.contiguous(),
               "logsumexp": total, "nll": nll, "greedy_from_200": written[None, PROMPT:]}, out)
    print(f"{out}: {len(ids)} tokens, {nll.mean():.5f} nats a token")


if __name__ == "__main__":
    main()
