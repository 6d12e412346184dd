"""A server for the tests of this folder: the real program with the small model.

The model's folder is a copy whose chat template is that of MiniMax-Text-01, which has a place for
tools. MM01 names the program (build/check/mm01).
"""
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MM01 = os.environ.get("MM01", str(ROOT / "build/check/mm01"))


class Server:
    def __init__(self, model, *flags):
        self.process = subprocess.Popen(
            [MM01, "serve", str(model), "--port", "0", "--context", "8192", "--kv", "float32", *flags],
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
