"""Servers for the tests of this folder: the real program with the small model, or a tiny one.

The small model's folder is a copy whose chat template is that of MiniMax-Text-01, which has a place
for tools. MM01 names the program (build/check/mm01). Where MM01_MEASURED names a file, figures that
tests see are written there.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

import tiny_model

ROOT = pathlib.Path(__file__).resolve().parents[2]
MM01 = os.environ.get("MM01", str(ROOT / "build/check/mm01"))

# What needs a machine of its own for minutes.
stress = pytest.mark.skipif("MM01_STRESS" not in os.environ, reason="MM01_STRESS is not set")


class Server:
    def __init__(self, model, *flags, context=8192):
        self.process = subprocess.Popen(
            [MM01, "serve", str(model), "--port", "0", "--context", str(context), "--kv",
             "float32", *flags],
            stderr=subprocess.PIPE, text=True)
        self.notes = ""
        for line in self.process.stderr:
            self.notes += line
            found = re.match(r"ready: (http://[\d.:]+)/", line)
            if found:
                self.url = found[1]
                return
        raise RuntimeError(f"no server: {self.notes}")

    def stop(self):
        self.process.terminate()
        return self.process.wait(40)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu_ms(self):
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(t.read_text().split()[0]) for t in tasks) / 1e6

    def resident_mib(self, what="VmRSS"):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return round(int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) / 1024, 1)

    def forget_peak(self):  # VmHWM begins anew
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


def measured(name, figures):
    if path := os.environ.get("MM01_MEASURED"):
        file = pathlib.Path(path)
        known = json.loads(file.read_text()) if file.exists() else {}
        known.setdefault("results", {})[name] = figures
        file.write_text(json.dumps(known, indent=2) + "\n")
    print(name, json.dumps(figures))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "nano"
    shutil.copytree(ROOT / "models/nano", folder)
    # transformers 5 splits text by rules of its own for the class that the original model names.
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(
        (ROOT / "tests/server/chat_template.jinja").read_text())
    return folder


@pytest.fixture(scope="session")
def server(model_dir):
    server = Server(model_dir)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def stress_server(tiny_dir):
    """Starts servers of the tiny model with the flags given; they must end with exit code 0."""
    servers = []

    def start(*flags, **settings):
        servers.append(Server(tiny_dir, *flags, **settings))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            assert server.stop() == 0
