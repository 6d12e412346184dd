#!/usr/bin/env python3
"""Measures what others do on the same GPU, and puts it beside our rows.

usage: tools/gpu_peers.py docs/measured/gpu.json [models/nano]

Peers are taken where they are installed: torch (cuDNN attention, grouped matrix products),
flash-linear-attention, transformers. Each row of the receipt that has a peer gets `peer` and
`peer_value`, in the unit of the row.
"""
import json
import sys

import torch

FLOOR_UNIT = 64 * 128 * 2  # bytes a token of one of q, k, v, o at 64 heads of 128 in bf16


def median_ms(call, repeats=9):
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def bf16(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def cudnn_attention(gemm_tflops):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    found = {}
    for n in (8192, 32768):
        q, k, v = bf16(1, 64, n, 128), bf16(1, 8, n, 128), bf16(1, 8, n, 128)
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            ms = median_ms(lambda: torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=True))
        floor = 4 * n * n / 2 * 128 * 64 / (gemm_tflops * 1e9)
        found[f"softmax_prefill_x_floor_{n}"] = ("cuDNN through torch", ms / floor)
    return found


def grouped_moe():
    """Router, permutation, three grouped products and combine, written with torch."""
    import torch.nn.functional as F
    experts, d, f = 32, 6144, 9216
    w1, w3, w2 = (bf16(experts, d, f) * 0.01, bf16(experts, d, f) * 0.01, bf16(experts, f, d) * 0.01)
    router = torch.randn(d, experts, device="cuda") * 0.02
    found = {}
    for tokens in (4096, 16384):
        x = bf16(tokens, d)

        def layer():
            weight, chosen = (x.float() @ router).softmax(-1).topk(2)
            weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype)
            flat = chosen.flatten()
            order = flat.argsort(stable=True)
            ends = torch.bincount(flat, minlength=experts).cumsum(0).to(torch.int32)
            rows = x[order // 2]
            h = F.silu(torch._grouped_mm(rows, w1, ends)) * torch._grouped_mm(rows, w3, ends)
            y = torch._grouped_mm(h, w2, ends)
            out = torch.zeros_like(x)
            return out.index_add_(0, order // 2, y * weight.flatten()[order, None])

        ms = median_ms(layer)
        found[f"moe_share_{tokens}"] = ("torch grouped_mm", 2 * tokens * 2 * 3 * d * f / ms * 1e-9)
    return found


def fla_lightning(copy_tb_s):
    from fla.ops.simple_gla import chunk_simple_gla
    slopes = -torch.tensor([2 ** (-8 * (h + 1) / 64) for h in range(64)], device="cuda")
    found = {}
    for n in (8192, 65536):
        q, k, v = (bf16(1, n, 64, 128) for _ in range(3))
        g = slopes.expand(1, n, 64).contiguous()
        ms = median_ms(lambda: chunk_simple_gla(q, k, v, g=g, scale=1.0))
        floor = 4 * n * FLOOR_UNIT / (copy_tb_s * 1e9)
        found[f"lightning_prefill_x_floor_{n}"] = ("flash-linear-attention", ms / floor)
    return found


def transformers_nano(folder):
    import time

    from transformers import MiniMaxConfig, MiniMaxForCausalLM
    raw = json.load(open(f"{folder}/config.json"))
    same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "vocab_size", "intermediate_size", "num_local_experts",
            "num_experts_per_tok", "max_position_embeddings")
    kinds = {0: "linear_attention", 1: "full_attention"}
    config = MiniMaxConfig(**{name: raw[name] for name in same},
                           layer_types=[kinds[kind] for kind in raw["attn_type_list"]])
    model = MiniMaxForCausalLM(config).to("cuda", torch.bfloat16).eval()
    found = {}

    def seconds(call):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    with torch.no_grad():
        ids = torch.randint(0, config.vocab_size, (1, 32768), device="cuda")
        read = lambda: model.model(ids)
        read()
        found["nano_prefill_tokens_s"] = ("transformers", 32768 / seconds(read))
        for batch in (1, 16, 256):
            token = torch.randint(0, config.vocab_size, (batch, 1), device="cuda")
            cache = model.model(token.expand(batch, 2), use_cache=True).past_key_values

            def steps(count):
                for _ in range(count):
                    model.model(token, past_key_values=cache, use_cache=True)

            steps(3)
            found[f"nano_decode_tokens_s_b{batch}"] = ("transformers",
                                                       batch * 16 / seconds(lambda: steps(16)))
    return found


def main():
    path, nano = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "models/nano"
    receipt = json.load(open(path))
    rows = {row["name"]: row for row in receipt["rows"]}
    peers = {}
    for name, measure in (
        ("cuDNN", lambda: cudnn_attention(rows["gemm_tflops"]["value"])),
        ("grouped_mm", grouped_moe),
        ("flash-linear-attention", lambda: fla_lightning(rows["copy_tb_s"]["value"])),
        ("transformers", lambda: transformers_nano(nano)),
    ):
        try:
            peers.update(measure())
        except Exception as error:  # a peer that is not there, or does not run, is said and left out
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        torch.cuda.empty_cache()
    for name, (peer, value) in peers.items():
        print(f"{name:36} {value:12.4g}  {peer}")
        if name in rows:
            rows[name]["peer"], rows[name]["peer_value"] = peer, value
    with open(path, "w") as out:
        json.dump(receipt, out, indent=2)
        out.write("\n")


if __name__ == "__main__":
    main()
