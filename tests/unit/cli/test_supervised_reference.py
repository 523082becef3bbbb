"""Where dpo's reference comes from, as far as flags and files tell."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig

from openrlhf_ext.cli.launch import Launch
from openrlhf_ext.cli.supervised_model import check_reference, reference_digest
from openrlhf_ext.config import parse
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model

TWO = ["--model.num_gpus_per_node", "2"]
HERE = Launch(0, 2, 0, 2, "127.0.0.1", 1, served=False)


def config(*flags: str):
    return parse("dpo", ["--model.model_name_or_path", "m", "--data.dataset", "d", *flags]).config


@pytest.mark.parametrize(
    "flags", [["--ref.strategy", "model"], ["--ref.offload"], ["--ref.model_name_or_path", "another"]]
)
def test_a_second_model_beside_ranks_of_ray_is_refused(flags):
    with pytest.raises(ConfigError, match="a second model needs one rank, or ranks that torchrun or srun started"):
        check_reference(config(*TWO, *flags), None)
    check_reference(config(*TWO, *flags), HERE)
    check_reference(config(*flags), None)


def test_log_probs_of_one_model_are_cached_on_any_ranks():
    check_reference(config(*TWO), None)
    check_reference(config(*TWO, "--ds.lora.rank", "4"), None)


def test_the_cache_tells_revisions_of_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    of = config("--model.model_name_or_path", "org/name")
    digests = [reference_digest(of)]
    for commit in ("a" * 40, "b" * 40):
        files = tmp_path / "models--org--name" / "snapshots" / commit
        files.mkdir(parents=True)
        (files / "config.json").write_text("{}")
        (files / "model.safetensors").write_text(commit)
        ref = tmp_path / "models--org--name" / "refs" / "main"
        ref.parent.mkdir(exist_ok=True)
        ref.write_text(commit)
        digests.append(reference_digest(of))
    assert len(set(digests)) == 3


def test_the_cache_tells_adapters_from_their_base(tmp_path: Path):
    build_tiny_model(tmp_path / "model", TinyShape(hidden=32, layers=1, heads=2, kv_heads=1, intermediate=32))

    def adapters(name: str, weights: bytes) -> str:
        of = LoraConfig(r=2, target_modules=["q_proj"], base_model_name_or_path=str(tmp_path / "model"))
        of.save_pretrained(str(tmp_path / name))
        (tmp_path / name / "adapter_model.safetensors").write_bytes(weights)
        return str(tmp_path / name)

    paths = [str(tmp_path / "model"), adapters("one", b"1"), adapters("two", b"2")]
    digests = [reference_digest(config("--model.model_name_or_path", path)) for path in paths]
    assert len(set(digests)) == 3
    assert reference_digest(config("--ref.model_name_or_path", paths[1])) == digests[1]
