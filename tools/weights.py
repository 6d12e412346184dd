"""Tensors of a model folder as float32, int8 ones times their scales (docs/formats.md)."""
import glob

import torch
from safetensors.torch import load_file


def load_weights(folder):
    stored = {}
    for path in sorted(glob.glob(f"{folder}/model*.safetensors")):
        stored.update(load_file(path))
    weights = {}
    for name, value in stored.items():
        if name.endswith("_scale"):
            continue
        scale = stored.get(f"{name}_scale")
        value = value.float()
        if scale is not None:
            group = next(g for g in (128, 64, 32) if -(-value.shape[-1] // g) == scale.shape[-1])
            value = value * scale.float().repeat_interleave(group, -1)[..., :value.shape[-1]]
        weights[name] = value
    return weights
