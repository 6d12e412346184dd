"""lm-eval scores through the server what `mm01 perplexity` computes."""
import json
import subprocess

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from conftest import MM01, ROOT

# Each text begins with a word that is one token: perplexity predicts all but the first.
FIRST = "The"


def passages():
    book = (ROOT / "data/the-iron-heel.txt").read_text()
    found = [p.replace("\n", " ").strip() for p in book.split("\n\n")]
    return [p for p in found if p.startswith(FIRST + " ") and 200 < len(p) < 1500][:8]


def nats(model, text, folder):
    (folder / "text").write_text(text)
    run = subprocess.run([MM01, "perplexity", str(model), str(folder / "text"), "--json", "--quiet"],
                         capture_output=True, text=True, check=True)
    out = json.loads(run.stdout)
    return out["nats_per_token"] * out["tokens"]


def test_same_log_likelihoods(server, model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    texts = passages()
    assert len(texts) == 8
    (tmp_path / "heel.jsonl").write_text(
        "".join(json.dumps({"context": FIRST, "rest": t[len(FIRST):]}) + "\n" for t in texts))
    task = (ROOT / "tests/server/tasks/heel.yaml").read_text()
    (tmp_path / "heel.yaml").write_text(task.replace("DATA", str(tmp_path / "heel.jsonl")))
    result = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={"model": "nano", "base_url": server.url + "/v1/completions",
                    "tokenizer": str(model_dir), "tokenizer_backend": "huggingface",
                    "num_concurrent": 2, "max_length": 4096},
        tasks=["heel"], log_samples=True, bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False))
    samples = sorted(result["samples"]["heel"], key=lambda s: s["doc_id"])
    for sample, text in zip(samples, texts, strict=True):
        scored = sample["resps"][0][0][0]
        assert scored == pytest.approx(-nats(model_dir, text, tmp_path), rel=1e-5)
