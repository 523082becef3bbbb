"""The shipped presets: each parses with its commands, names a known card, and is what its comment says it is."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from openrlhf_ext.cli.plan import main
from openrlhf_ext.config import COMMANDS, parse
from openrlhf_ext.config.presets import FOLDER, load_preset, preset_names
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.models.tiny import build_tiny_model
from openrlhf_ext.plan.cards import card_named

PRESETS = {name: load_preset(name) for name in preset_names()}
ITS_COMMANDS = [(name, command) for name, preset in PRESETS.items() for command in preset.commands]
OTHER_COMMANDS = [(name, command) for name in PRESETS for command in COMMANDS if (name, command) not in ITS_COMMANDS]
ON_GPUS = [name for name, preset in PRESETS.items() if preset.card]

# Parameters that are trained, counted by hand: rank x layers x (in + out of each adapted matrix), or all.
SEVEN_OF_27B = 62 * (2 * (5376 + 4096) + 2 * (5376 + 2048) + 3 * (5376 + 21504))
SEVEN_OF_4B = 34 * (2 * (2560 + 2048) + 2 * (2560 + 1024) + 3 * (2560 + 10240))
SEVEN_OF_2B = 26 * (2 * (2304 + 2048) + 2 * (2304 + 1024) + 3 * (2304 + 9216))
SEVEN_OF_7B = 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
QWEN3_4B, SCORE_HEAD = 4_022_468_096, 2560
FACTS = {
    "gemma-2-2b-qlora-12gb": {"effective_batch": 16, "trainable_params": 64 * SEVEN_OF_2B},
    "medgemma-4b-qlora-24gb": {"effective_batch": 32, "trainable_params": 128 * SEVEN_OF_4B},
    "medgemma-27b-qlora-48gb": {"effective_batch": 32, "trainable_params": 384 * SEVEN_OF_27B},
    "mistral-7b-dpo-12gb": {"effective_batch": 8, "trainable_params": 16 * SEVEN_OF_7B, "gpus": 1},
    "qwen3-4b-pm-8x24gb": {"effective_batch": 128, "gpus": 8, "trainable_params": QWEN3_4B + SCORE_HEAD},
    "qwen3-4b-pm-16x24gb": {"effective_batch": 256, "gpus": 16, "trainable_params": QWEN3_4B + SCORE_HEAD},
    "qwen3-4b-reinforce-96gb": {"gpus": 1, "trainable_params": QWEN3_4B},
    "rlt-mono": {"gpus": 1, "trainable_params": 7_615_616_512},
}
ROWS = "--plan.rows 10000 --plan.mean_tokens 250"


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str]) -> Any:
    def planned(line: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*shlex.split(line), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return planned


def comment_of(name: str) -> str:
    """What the file says about itself, in one line."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


@pytest.mark.parametrize(("name", "command"), ITS_COMMANDS)
def test_it_parses_with_each_of_its_commands(name: str, command: str):
    parsed = parse(command, ["--preset", name], planning=True)
    assert parsed.preset == PRESETS[name]
    assert parsed.preset.about and parsed.preset.settings
    section = "actor" if command == "rl" else "model"
    assert getattr(parsed.config, section).model_name_or_path


@pytest.mark.parametrize(("name", "command"), OTHER_COMMANDS)
def test_with_another_command_it_says_which_it_is_for(name: str, command: str):
    with pytest.raises(ConfigError) as raised:
        parse(command, ["--preset", name], planning=True)
    allowed = " and ".join(PRESETS[name].commands)
    assert str(raised.value) == f"--preset {name}: it is for {allowed}, not for {command}."


def test_a_preset_that_is_not_there():
    with pytest.raises(ConfigError, match=r"--preset cpu-tinny: there is no such preset; did you mean cpu-tiny\."):
        parse("sft", ["--preset", "cpu-tinny"])
    with pytest.raises(ConfigError, match="--preset 0123456789: there is no such preset; the presets are") as raised:
        parse("sft", ["--preset", "0123456789"])
    assert all(name in str(raised.value) for name in PRESETS)
    with pytest.raises(ConfigError, match="give one; further files go under --config"):
        parse("sft", ["--preset", "cpu-tiny", "gemma-2-2b-qlora-12gb"])


@pytest.mark.parametrize("name", ON_GPUS)
def test_its_card_is_known_and_its_gpus_are_those_it_asks_for(name: str):
    preset = PRESETS[name]
    assert card_named(preset.card).bytes > 12e9
    config = parse(preset.commands[0], ["--preset", name], planning=True).config
    if "rl" not in preset.commands:
        assert (config.model.num_nodes, config.model.num_gpus_per_node) == (preset.nodes, preset.count)


@pytest.mark.parametrize("name", ON_GPUS)
def test_it_fits_its_card_with_its_numbers(planned: Any, name: str):
    for command in PRESETS[name].commands:
        plan = planned(f"{command} --preset {name} {ROWS}")
        assert plan["fits"], plan["verdict"]
        assert plan["gpu_peak_gb"] < plan["gpu_limit_gb"] == round(card_named(PRESETS[name].card).bytes / 1e9, 3)
        assert {key: plan[key] for key in FACTS[name]} == FACTS[name]


def test_every_preset_for_gpus_has_its_facts():
    assert FACTS.keys() == set(ON_GPUS)


@pytest.mark.parametrize("name", ON_GPUS)
def test_the_command_in_its_comment_gives_a_plan_that_fits(planned: Any, name: str):
    (line,) = re.findall(r"\(openrlhf-ext plan ([^)]*)\)", comment_of(name))
    assert f"--preset {name}" in line
    assert planned(line)["fits"]


@pytest.mark.parametrize("name", PRESETS)
def test_the_numbers_in_its_comment_are_those_of_its_plan(planned: Any, name: str):
    comment = comment_of(name)
    products = re.findall(r"micro (\d+) x accumulation (\d+)(?: x (\d+) GPUs)? = (\d+)", comment)
    for micro, accumulation, gpus, batch in products:
        assert int(micro) * int(accumulation) * int(gpus or 1) == int(batch)
        config = parse(PRESETS[name].commands[0], ["--preset", name], planning=True).config
        assert (config.train.micro_batch_size, config.train.batch_size) == (int(micro), int(batch))
        assert planned(f"{PRESETS[name].commands[0]} --preset {name} {ROWS}")["gpus"] == int(gpus or 1)
    for trained in re.findall(r"([\d,]+) trained parameters", comment):
        assert int(trained.replace(",", "")) == FACTS[name]["trainable_params"]


@pytest.mark.parametrize(("name", "full", "last"), [("qwen3-4b-pm-8x24gb", 1256, 23), ("qwen3-4b-pm-16x24gb", 628, 23)])
def test_an_epoch_of_hh_rlhf(planned: Any, name: str, full: int, last: int):
    plan = planned(f"rm --preset {name} --plan.rows 160791 --plan.mean_tokens 250")
    assert (plan["steps_per_epoch"], plan["leftover_rows"], plan["steps_total"]) == (full, last, full + 1)
    assert plan["evals"] >= full // 100  # every hundred optimizer steps
    assert plan["saves"] >= full // 200


def test_638_prompts_are_ten_rollout_steps_with_a_checkpoint_on_the_way(planned: Any):
    plan = planned("rl --preset qwen3-4b-reinforce-96gb --plan.rows 638 --plan.mean_tokens 500")
    assert plan["steps_total"] == 10
    assert plan["saves"] >= 2


@pytest.mark.parametrize("command", PRESETS["cpu-tiny"].commands)
def test_the_tiny_one_fits_a_machine_without_a_gpu(
    planned: Any, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    build_tiny_model(tmp_path / "outputs" / "tiny")
    plan = planned(f"{command} --preset cpu-tiny --device.host_gb 8 {ROWS}")
    assert plan["fits"] and plan["gpus"] == 0 and plan["gpu_peak_gb"] == 0
    assert plan["host_peak_gb"] < 4
