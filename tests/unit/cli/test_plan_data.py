"""The size of a data set, as the loaders would find it, without loading it."""

from __future__ import annotations

import csv
import gzip
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openrlhf_ext.cli import plan_rows
from openrlhf_ext.cli.plan_data import BYTES_PER_TOKEN, data_size
from openrlhf_ext.config import COMMANDS, replaced
from openrlhf_ext.data.tables import load_rows
from openrlhf_ext.errors import ConfigError

Rows = list[dict[str, Any]]


def rows_of(count: int) -> Rows:
    return [{"input": f"{i} " + "prompt " * (i % 30), "output": "answer " * (1 + i % 50)} for i in range(count)]


def jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(command: str, **values: Any) -> Any:
    return replaced(COMMANDS[command](), {name.replace("__", "."): value for name, value in values.items()})


def sft(path: Path | str, **values: Any) -> Any:
    return config("sft", data__dataset=str(path), data__output_key="output", data__input_template=None, **values)


def write_gz(path: Path, rows: Rows) -> Path:
    path.write_bytes(gzip.compress(jsonl(path.with_suffix(""), rows).read_bytes()))
    return path


def write_csv(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([{**row, "output": row["output"] + "\nand, a line"} for row in rows])
    return path


def write_arrow(path: Path, rows: Rows) -> Path:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return path


def write_array(path: Path, rows: Rows) -> Path:
    path.write_text(json.dumps(rows, indent=1))
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    return path


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {
    "rows.jsonl": jsonl,
    "rows.json": write_array,
    "rows.jsonl.gz": write_gz,
    "rows.csv": write_csv,
    "rows.parquet": write_parquet,
    "rows.arrow": write_arrow,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("small", [True, False])
def test_rows_are_those_that_the_loader_reads(
    tmp_path: Path, name: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a file is too large to be read whole."""
    if not small:
        monkeypatch.setattr(plan_rows, "WHOLE", 0)
    path = WRITERS[name](tmp_path / name, rows_of(1237))
    size = data_size("sft", sft(path))
    loaded = load_rows(str(path))
    assert size.rows == len(loaded) == 1237
    assert size.how == "estimated"
    exact = fmean(len((row["input"] + row["output"]).encode()) / BYTES_PER_TOKEN + 1 for row in loaded)
    assert size.mean_tokens == pytest.approx(exact, rel=0.1)
    assert data_size("sft", sft(path, data__max_samples=700)).rows == len(load_rows(str(path), max_samples=700)) == 700


@pytest.mark.parametrize("text", ["a\n\n\nb\n", "\n\na\nb", "a\n \r\n\r\nb\n", "a\n\t\nb\n\n"])
def test_blank_lines_are_no_rows(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_rows, "WHOLE", 0)
    path = tmp_path / "rows.jsonl"
    path.write_text(text.replace("a", '{"input": "x", "output": "y"}').replace("b", '{"input": "z", "output": "w"}'))
    assert data_size("sft", sft(path)).rows == len(load_rows(str(path))) == 2


def test_what_is_too_large_to_count_is_estimated_from_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WHOLE": 0, "COUNTED": 0, "HEAD": 1_500_000, "BLOCK": 8000}.items():
        monkeypatch.setattr(plan_rows, name, value)
    draw = random.Random(1)
    rows = [{"input": draw.randbytes(draw.randrange(300)).hex(), "output": "x"} for _ in range(12_000)]
    for name, write in WRITERS.items():
        if name not in ("rows.parquet", "rows.arrow"):  # those say how many they are
            look = plan_rows.look_at(str(write(tmp_path / name, rows)), "train", 10**9)
            assert look is not None and not look.exact, name
            assert look.rows == pytest.approx(12_000, rel=0.1), name


def test_several_files_and_their_shares(tmp_path: Path) -> None:
    one, other = jsonl(tmp_path / "one.jsonl", rows_of(300)), jsonl(tmp_path / "other.jsonl", rows_of(100))
    both = f"{one}, {other}"
    assert data_size("sft", sft(both)).rows == len(load_rows(both)) == 400
    assert data_size("sft", sft(both, data__max_samples=350)).rows == len(load_rows(both, max_samples=350)) == 350
    assert data_size("sft", sft(both, data__max_samples=50)).rows == len(load_rows(both, max_samples=50)) == 50
    mixed = data_size("sft", sft(both, data__dataset_probs="0.5,0.5")).rows
    assert mixed == 600
    assert mixed == pytest.approx(len(load_rows(both, probs=[0.5, 0.5])), rel=0.1)


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    import datasets

    parts = {"train": rows_of(321), "test": rows_of(45)}
    datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in parts.items()}).save_to_disk(tmp_path / "both")
    datasets.Dataset.from_list(parts["train"]).save_to_disk(tmp_path / "one", num_shards=3)
    wanted = sft(tmp_path / "both", eval__dataset=str(tmp_path / "both"), eval__split="test")
    size = data_size("sft", wanted)
    assert (size.rows, size.eval_rows) == (321, 45)
    assert data_size("sft", sft(tmp_path / "one")).rows == 321


def test_a_folder_of_data_files(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", rows_of(30))
    jsonl(tmp_path / "test.jsonl", rows_of(7))
    size = data_size("sft", sft(tmp_path, eval__dataset=str(tmp_path), eval__split="test"))
    assert (size.rows, size.eval_rows) == (30, 7)
    assert size.rows == len(load_rows(str(tmp_path)))


def test_what_is_given_is_taken() -> None:
    size = data_size("rm", config("rm"), rows=160_791, mean_tokens=260.0)
    assert (size.rows, size.mean_tokens, size.max_tokens, size.how) == (160_791, 260.0, 512, "given")
    assert data_size("rm", config("rm", data__max_samples=1000), 160_791, 260.0).rows == 1000
    assert data_size("rm", config("rm"), 10, 5000.0).mean_tokens == 512


def test_rows_alone_are_given(tmp_path: Path) -> None:
    size = data_size("sft", config("sft"), rows=10)
    assert (size.rows, size.mean_tokens, size.how) == (10, None, "given")
    path = jsonl(tmp_path / "rows.jsonl", rows_of(50))
    size = data_size("sft", sft(path), rows=10)
    assert size.rows == 10 and size.mean_tokens


@pytest.mark.parametrize("dataset", [None, "nowhere.jsonl", "some/hub-name", "broken.jsonl", "notes.txt"])
def test_what_cannot_be_read_is_unknown(tmp_path: Path, dataset: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    Path("broken.jsonl").write_text('{"input": ')
    Path("notes.txt").write_text("a\n")
    size = data_size("sft", config("sft", data__dataset=dataset))
    assert (size.rows, size.mean_tokens, size.how, size.max_tokens) == (None, None, "unknown", 2048)


def test_hub_data_that_was_loaded_before_is_looked_at_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "datasets" / "some___hub-name" / "default" / "0.0.0" / "abc"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    write_arrow(folder / "hub-name-train.arrow", rows_of(77))
    write_arrow(folder / "hub-name-test.arrow", rows_of(7))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    assert data_size("sft", sft("some/hub-name")).rows == 77


def test_tokens_are_cut_where_rows_are(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"input": "a" * 4000, "output": "b"}, {"input": "a" * 39, "output": "b"}])
    assert data_size("sft", sft(path, data__max_len=100)).mean_tokens == pytest.approx((100 + 11) / 2)


def test_the_columns_of_each_command(tmp_path: Path) -> None:
    path = str(jsonl(tmp_path / "a.jsonl", [{"q": "p" * 40, "good": "c" * 80, "bad": "r" * 160}] * 3))
    pairs = {"data__dataset": path, "data__prompt_key": "q", "data__chosen_key": "good", "data__rejected_key": "bad"}
    for command in ("rm", "dpo"):
        size = data_size(command, config(command, **pairs))
        assert (size.rows, size.mean_tokens) == (3, (10 + 20 + 1 + 10 + 40 + 1) / 2)
    whole = {**pairs, "data__prompt_key": None}
    assert data_size("dpo", config("dpo", **whole)).mean_tokens == (21 + 41) / 2
    rl = config("rl", data__prompt_dataset=path, data__input_key="q", rollout__max_new_tokens=100)
    size = data_size("rl", rl)
    assert (size.mean_prompt_tokens, size.mean_tokens, size.max_tokens) == (10, 110, 2048)
    size = data_size("rl", rl, mean_tokens=60.0)
    assert (size.rows, size.mean_prompt_tokens, size.mean_tokens) == (3, 10, 60)
    plain = config(
        "sft", data__dataset=path, data__input_key="q", data__output_key="good", data__input_template="{}!!!!"
    )
    assert data_size("sft", plain).mean_tokens == 10 + 1 + 20 + 1


def test_conversations_count_their_turns(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "u" * 40}, {"role": "assistant", "content": "a" * 80}]
    path = jsonl(tmp_path / "a.jsonl", [{"input": turns}] * 2)
    assert data_size("sft", config("sft", data__dataset=str(path))).mean_tokens == 10 + 20 + 2 * 5 + 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from openrlhf_ext.models.tiny import build_tiny_model

    folder = tmp_path_factory.mktemp("model")
    build_tiny_model(folder)
    return folder


def test_counted_tokens_are_those_that_sft_trains_on(tmp_path: Path, model: Path) -> None:
    from openrlhf_ext.cli.supervised_rows import sft_settings
    from openrlhf_ext.data.sft import load_sft
    from openrlhf_ext.data.tokenizer import load_tokenizer

    path = jsonl(tmp_path / "rows.jsonl", [*rows_of(40), {"input": "no answer", "output": " "}])
    cfg = sft(path, model__model_name_or_path=str(model), data__max_len=64)
    examples = load_sft(sft_settings(cfg, str(path), "train", None), load_tokenizer(model)).examples
    lengths = [len(example.token_ids) for example in examples]
    size = data_size("sft", cfg, tokenize=True)
    assert (size.rows, size.max_tokens, size.how) == (len(examples), 64, "counted")
    assert size.mean_tokens == pytest.approx(fmean(lengths))


def test_counted_prompts_are_those_that_rl_samples_from(tmp_path: Path, model: Path) -> None:
    from openrlhf_ext.data.tokenizer import load_tokenizer

    path = jsonl(tmp_path / "rows.jsonl", [*rows_of(29), {"input": "much too long " * 500}])
    cfg = config(
        "rl",
        data__prompt_dataset=str(path),
        actor__model_name_or_path=str(model),
        rollout__max_new_tokens=10,
        data__max_len=400,
    )
    tokenizer = load_tokenizer(model)
    lengths = [len(tokenizer(row["input"], add_special_tokens=False)["input_ids"]) for row in rows_of(29)]
    size = data_size("rl", cfg, tokenize=True)
    assert (size.rows, size.max_tokens, size.how) == (29, max(lengths) + 10, "counted")
    assert size.mean_prompt_tokens == pytest.approx(fmean(lengths))


def test_counted_pairs(tmp_path: Path, model: Path) -> None:
    from openrlhf_ext.data.tokenizer import load_tokenizer

    path = jsonl(tmp_path / "rows.jsonl", [{"q": "ask ", "chosen": "yes " * 9, "rejected": "no"}] * 4)
    cfg = config("dpo", data__dataset=str(path), data__prompt_key="q", model__model_name_or_path=str(model))
    tokenizer = load_tokenizer(model)
    q, yes, no = (len(tokenizer(text)["input_ids"]) for text in ("ask ", "yes " * 9, "no"))
    size = data_size("dpo", cfg, tokenize=True)
    assert (size.rows, size.max_tokens, size.how) == (4, q + yes + 1, "counted")
    assert size.mean_tokens == q + 1 + (yes + no) / 2


def test_tokens_of_nothing_cannot_be_counted() -> None:
    with pytest.raises(ConfigError, match=r"--plan\.tokenize: there is nothing to tokenize"):
        data_size("dpo", config("dpo"), rows=10, tokenize=True)


def test_a_large_file_is_answered_in_under_a_second_without_torch(tmp_path: Path) -> None:
    """160,000 dialogues, 200 MB: as many as hh-rlhf has. Processor time, for other tests may be using the machine."""
    block = "".join(json.dumps({"chosen": "c" * 600, "rejected": "r" * 600}) + "\n" for _ in range(1600))
    path = tmp_path / "hh.jsonl"
    path.write_text(block * 100)
    code = (
        "import sys, time\n"
        "from openrlhf_ext.cli.plan_data import data_size\n"
        "from openrlhf_ext.config import parse\n"
        f"config = parse('rm', ['--model.model_name_or_path', 'm', '--data.dataset', {str(path)!r}]).config\n"
        "size = data_size('rm', config)\n"
        "assert (size.rows, size.mean_tokens) == (160000, 151.0), size\n"
        "assert not {'torch', 'transformers', 'datasets', 'ray'} & set(sys.modules)\n"
        "print(time.process_time())"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert float(done.stdout) < 1.0
    assert time.monotonic() - start < 30
