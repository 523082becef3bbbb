"""A folder with a set-up that works, and one broken thing for each way in which it can be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
from scenario import SHAPE, row, write_jsonl
from transformers import AutoModelForSequenceClassification

from openrlhf_ext.models.tiny import build_tiny_model, build_tokenizer
from openrlhf_ext.track.checkpoints import CheckpointStore

CORPUS = ["the quick brown fox jumps over the lazy dog " * 20]
HEAD = "def reward_func(queries, prompts, labels, **kwargs):\n    "
REWARDS = {
    "good.py": f"{HEAD}return [0.0] * len(queries)\n",
    "syntax.py": "def reward_func(queries, prompts, labels)\n    return 0\n",
    "imports.py": "import no_such_module\n",
    "other_name.py": "def score(queries, prompts, labels):\n    return [0.0] * len(queries)\n",
    "two_arguments.py": "def reward_func(queries, labels):\n    return [0.0] * len(queries)\n",
    "raises.py": f"{HEAD}return [1 / 0 for query in queries]\n",
    "none.py": f"{HEAD}return None\n",
    "nan.py": f"{HEAD}return [float('nan')] * len(queries)\n",
    "sleeps.py": f"import time\n{HEAD}time.sleep(60)\n",
    "exits.py": f"import os\n{HEAD}os._exit(3)\n",
}


def prepare_broken(folder: Path) -> Path:
    """`model`, `train.jsonl` and `good.py` work; every other name is broken in one way."""
    model = build_tiny_model(folder / "model", SHAPE)
    for name, text in REWARDS.items():
        (folder / name).write_text(text)
    _data(folder)
    _models(folder, model)
    scorers = {"scorer": build_tiny_model(folder / "scorer", SHAPE)}
    scorers["other_scorer"] = build_tiny_model(folder / "other_scorer", _larger(), corpus=CORPUS)
    for path in scorers.values():
        AutoModelForSequenceClassification.from_pretrained(path, num_labels=1).save_pretrained(path)
    store = CheckpointStore(folder / "earlier/checkpoints")
    store.save(7, lambda partial: (partial / "policy").mkdir(), {})
    (folder / "a_file").write_text("")
    (folder / "broken.yaml").write_text("actor: [1\n")
    return folder


def _larger() -> object:
    return type(SHAPE)(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=128, vocab=300, max_positions=256)


def _data(folder: Path) -> None:
    rows = [row("train", i) for i in range(20)]
    lines = [json.dumps(values) for values in rows]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "held_out.jsonl", [row("held", i) for i in range(6)])
    (folder / "corrupt.jsonl").write_text("\n".join([*lines[:2], lines[2][:-1], lines[3]]) + "\n")
    (folder / "empty.jsonl").write_text("")
    write_jsonl(folder / "renamed.jsonl", [{"question": r["input"], "answer": r["answer"]} for r in rows])
    write_jsonl(folder / "long.jsonl", [*rows, {"input": "x" * 200, "answer": "1"}])
    write_jsonl(folder / "unlabelled.jsonl", [{**r, "answer": "" if i % 2 else "1"} for i, r in enumerate(rows)])
    write_jsonl(folder / "no_message.jsonl", [{"input": 7, "answer": "1"}])
    pq.write_table(pa.Table.from_pylist(rows), folder / "whole.parquet")
    (folder / "truncated.parquet").write_bytes((folder / "whole.parquet").read_bytes()[:-40])
    rubric = (
        "instructions: '{{ prompt }} {{ response }}'\ncriteria: [{name: correct, description: x, scale: boolean}]\n"
    )
    (folder / "rubric.yaml").write_text(rubric)
    (folder / "no_note.yaml").write_text(rubric.replace("{{ prompt }}", "{{ columns.note }}"))
    (folder / "no_scale.yaml").write_text(rubric.replace(", scale: boolean", ""))
    (folder / "no_agent.py").write_text("def play(): ...\n")
    pairs = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": str(i)} for i in range(8)]
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "same_pairs.jsonl", [{**p, "rejected": p["chosen"]} if i else p for i, p in enumerate(pairs)])


def _models(folder: Path, model: Path) -> None:
    for name in (
        "no_template",
        "no_eos",
        "more_tokens",
        "pickled",
        "index",
        "torn_index",
        "unknown",
        "bad_json",
        "half",
    ):
        shutil.copytree(model, folder / name)
    (folder / "no_template/chat_template.jinja").unlink()
    _edit(folder / "no_eos/tokenizer_config.json", eos_token=None)
    build_tokenizer(CORPUS, vocab=300).save_pretrained(folder / "more_tokens")
    (folder / "pickled/model.safetensors").rename(folder / "pickled/pytorch_model.bin")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "index/model.safetensors").rename(folder / "index" / shards["a"])
    (folder / "index/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    (folder / "torn_index/model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {"a": "mod')
    _edit(folder / "unknown/config.json", model_type="qwen99")
    (folder / "bad_json/config.json").write_text('{"model_type": "qwen3",')
    weights = folder / "half/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (folder / "adapters").mkdir()
    (folder / "adapters/adapter_config.json").write_text('{"base_model_name_or_path": "model", "peft_type": "LORA"}')


def _edit(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


@dataclass(frozen=True)
class Served:
    """URLs that exist: `broken` answers 500, `absent` 404, `good` as a reward server should."""

    broken: str
    absent: str
    good: str


@contextmanager
def reward_server() -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"rewards": [0.0] * len(request["query"])})
            self.send_response({"/good": 200, "/broken": 500}.get(self.path, 404))
            self.end_headers()
            self.wfile.write((body if self.path == "/good" else "out of order").encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield Served(*(f"http://127.0.0.1:{server.server_port}/{path}" for path in ("broken", "absent", "good")))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
