#!/usr/bin/env python3
"""Writes docs/measured/nano-training.json from what tools/train_nano.sh left behind.

usage: nano_record.py FOLDER RECORD.json

FOLDER holds NAME-needles-LENGTH.json of `mm01 eval needle --json` and NAME-losses.json of
tools/yardstick_losses.py; runs/NAME/metrics.jsonl is what the training wrote.
"""
import datetime
import glob
import json
import os
import re
import statistics
import subprocess
import sys

NANO_V0 = {"2048": 3.326, "8192": 3.4106, "32768": 3.3765}  # the yardstick's own losses


def device():
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True,
                              check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "CPU"


def lines_of(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def training(name):
    lines = lines_of(f"runs/{name}/metrics.jsonl")
    steps = [line for line in lines if "gradient_norm" in line]
    lengths = sorted({s["length"] for s in steps})
    return {
        "recipe": f"recipes/{name}.toml",
        "steps": len(steps),
        "tokens": steps[-1]["tokens"],
        "seconds_of_steps": round(sum(s["milliseconds"] for s in steps) / 1e3, 1),
        "skipped": steps[-1]["skipped"],
        "tokens_per_second": {
            str(n): round(statistics.median(s["tokens_per_second"] for s in steps
                                            if s["length"] == n)) for n in lengths},
        "validation_by_step": [{"step": v["step"] + 1, **v["validation"]}
                               for v in lines if "validation" in v],
        "needles_by_step": [{"step": v["step"] + 1, **v["needles"]}
                            for v in lines if v.get("needles")],
    }


def needles(folder, name):
    found = []
    for path in glob.glob(f"{folder}/{name}-needles-*.json"):
        length = int(re.search(r"-(\d+)\.json$", path)[1])
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        found.append({"length": length, "trials": report["trials"],
                      "questions": report["questions"], "seed": report["seed"],
                      "accuracy": report["accuracy"], "seconds": round(report["seconds"], 1)})
    return sorted(found, key=lambda f: f["length"])


def main():
    folder, record = sys.argv[1:]
    result = {"device": device(), "date": datetime.date.today().isoformat(), "models": {}}
    for name in ("nano", "nano-linear"):
        if not os.path.exists(f"{folder}/{name}/config.json"):
            continue
        model = training(name)
        model["bytes_int8"] = sum(os.path.getsize(p)
                                  for p in glob.glob(f"{folder}/{name}/*.safetensors"))
        model["needles"] = needles(folder, name)
        losses = f"{folder}/{name}-losses.json"
        if os.path.exists(losses):
            with open(losses, encoding="utf-8") as file:
                model["validation_of_an_independent_trainers_evaluate"] = json.load(file)
            model["nano_v0"] = NANO_V0
        result["models"][name] = model
    with open(record, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    print(f"{record}: {', '.join(result['models'])}")


if __name__ == "__main__":
    main()
