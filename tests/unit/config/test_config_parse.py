"""Flags, files and old names become one checked tree."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_ext.config import RLConfig, SFTConfig, dump, flags_of, get, parse, replaced, write_yaml
from openrlhf_ext.errors import ConfigError

RL = "--actor.model_name_or_path m --data.prompt_dataset d --reward.remote_url r.py --actor.num_gpus_per_node 1"
SFT = "--model.model_name_or_path m --data.dataset d"


def rl(text: str = "", *more: str) -> RLConfig:
    return parse("rl", [*RL.split(), *text.split(), *more]).config


def complaint(text: str, command: str = "rl", *more: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(command, [*(RL if command == "rl" else SFT).split(), *text.split(), *more])
    return str(caught.value).splitlines()


# --- flags -----------------------------------------------------------------------------------------------


def test_the_path_is_the_flag():
    config = rl("--algo.kl.init_coef 1e-3 --actor.adam.betas 0.8 0.99 --reward.clip_range -10 5 --ds.zero_stage 3")
    assert config.algo.kl.init_coef == 1e-3
    assert config.actor.adam.betas == (0.8, 0.99)
    assert config.reward.clip_range == (-10.0, 5.0)
    assert config.ds.zero_stage == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [("--ds.packing_samples", True), ("--ds.packing_samples true", True), ("--ds.packing_samples False", False),
     ("--ds.packing_samples=true", True), ("--ds.packing_samples --ds.no_packing_samples", False), ("", False)],
)  # fmt: skip
def test_booleans(text: str, value: bool):
    assert rl(text).ds.packing_samples is value


def test_a_real_no_flag_is_not_a_negation():
    assert rl("--algo.advantage.no_std_norm").algo.advantage.no_std_norm is True


def test_values_that_look_like_flags():
    assert rl("", "--rollout.stop", "---", "-x", "</answer>").rollout.stop == ("---", "-x", "</answer>")
    assert rl("", "--data.input_template=--{}--").data.input_template == "--{}--"
    assert rl("--eval.steps -1").eval.steps == -1


def test_lists_may_be_empty_and_none_unsets():
    config = rl("--rollout.stop --actor.eps_clip_low_high None --data.label_key None")
    assert config.rollout.stop == ()
    assert config.actor.eps_clip_low_high is None
    assert config.data.label_key is None


def test_the_last_flag_wins():
    assert rl("--train.seed 1 --train.seed 2").train.seed == 2


def test_device_is_short_for_its_type():
    parsed = parse("rl", [*RL.split(), "--device", "cpu"])
    assert parsed.config.device.type == "cpu"
    assert "device.type" in parsed.explicit


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--train.bach_size 3", "--train.bach_size: there is no such flag; did you mean --train.batch_size"),
        ("--n_sample_per_prompt 3", "--rollout.n_samples_per_prompt"),
        ("--algo.kl.init-coef 3", "--algo.kl.init_coef"),
        ("--train 3", "it is a section"),
        ("--actor.adam.betas 0.9 x", "--actor.adam.betas 0.9 x: it takes 2 values: float float"),
        ("--actor.adam.betas 0.9", "it takes 2 values"),
        ("--train.batch_size", "--train.batch_size without a value: it takes int"),
        ("--train.batch_size 8 9", "--train.batch_size 8 9: it takes int"),
        ("--train.batch_size None", "it takes int"),
        ("--train.colocate_all maybe", "it takes one of true|false"),
        ("--ds.zero_stage 4", "it takes one of 0|1|2|3"),
        ("--device tpu", "--device tpu: it takes one of auto|cpu|cuda"),
        ("--local_rank 0", "deepspeed launcher"),
    ],
)
def test_a_wrong_flag_is_named_with_what_to_do(text: str, words: str):
    lines = complaint(text)
    assert len(lines) == 1
    assert words in lines[0]


def test_a_stray_value():
    with pytest.raises(ConfigError, match="'rl' is not a flag"):
        parse("rl", ["rl", "--train.seed", "1"])


def test_all_wrong_flags_are_named_at_once():
    assert len(complaint("--zzz 1 --train.seed x --perf --ds.zero_stage 9")) == 4


def test_a_secret_is_not_repeated():
    assert "sk-1" not in "".join(complaint("--logger.wandb.key sk-1 sk-2"))


# --- files -----------------------------------------------------------------------------------------------


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_flags_over_later_files_over_earlier(tmp_path: Path):
    a = write(tmp_path, "a.yaml", "train: {seed: 1, max_epochs: 1}\nrollout: {top_k: 5}\nactor.eps_clip: 0.1\n")
    b = write(tmp_path, "b.yaml", "train:\n  seed: 2\n  max_epochs: 2\n")
    config = rl(f"--train.max_epochs 3 --config {a} {b}")
    assert (config.train.seed, config.train.max_epochs, config.rollout.top_k) == (2, 3, 5)
    assert config.actor.eps_clip == 0.1


def test_a_file_means_what_a_flag_with_the_same_text_means(tmp_path: Path):
    text = (
        "algo: {advantage: {is_correction_level: off}}\nactor:\n  adam: {lr: 1e-5, betas: [0.9, 0.99]}\n"
        "data: {input_key: yes, label_key: null}\nckpt: {max_mem: .inf, path: 2024-01-01}\n"
        "train: {colocate_actor_ref: on}\nref: {num_gpus_per_node: 1}\nrollout: {stop: []}\nray:\n"
    )
    config = rl("--config " + write(tmp_path, "a.yaml", text))
    assert config.algo.advantage.is_correction_level == "off"
    assert (config.actor.adam.lr, config.actor.adam.betas) == (1e-5, (0.9, 0.99))
    assert (config.data.input_key, config.data.label_key) == ("yes", None)
    assert (config.ckpt.max_mem, config.ckpt.path) == (math.inf, "2024-01-01")
    assert config.train.colocate_actor_ref is True
    assert config.rollout.stop == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "train: {bach_size: 3}",
            r"train.bach_size \(in .*a.yaml\): there is no such flag; did you mean --train.batch",
        ),
        ("train: {batch_size: x}", r"train.batch_size \(in .*a.yaml\) x: it takes int"),
        ("train: {batch_size: }", "without a value: it takes int"),
        ("train: 3", "it is a section"),
        ("train: {colocate_all: }", "it takes one of true|false"),
        ("train: {seed: 1, seed: 2}", "line 1: not valid YAML .*the key 'seed' is given twice"),
        ("train: {seed: 1", "line .*: not valid YAML"),
        ("- 3", "must hold sections and flags"),
        ("rollout: {stop: [[1]]}", "the list rollout.stop may hold plain values only"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, words: str):
    path = write(tmp_path, "a.yaml", text)
    with pytest.raises(ConfigError, match=words):
        rl(f"--config {path}")


def test_a_missing_file():
    with pytest.raises(ConfigError, match=r"--config /no/such.yaml does not exist, nor does its folder /no"):
        rl("--config /no/such.yaml")
    with pytest.raises(ConfigError, match="--config takes"):
        rl("--config")


def test_explicit_is_what_was_asked_for(tmp_path: Path):
    path = write(tmp_path, "a.yaml", "ds: {attn_implementation: flash_attention_2, zero_stage: 3}\n")
    explicit = parse("rl", [*RL.split(), "--config", path, "--vllm.sync_backend", "nccl"]).explicit
    assert {"ds.zero_stage", "vllm.sync_backend", "actor.model_name_or_path"} <= explicit
    # A resolved file spells out every default; that does not make them demands.
    assert "ds.attn_implementation" not in explicit
    assert "train.seed" not in explicit


# --- written and read back -------------------------------------------------------------------------------


def test_a_written_config_comes_back(tmp_path: Path):
    config = replaced(
        rl("--actor.eps_clip_low_high 0.2 0.28 --reward.weights 0.5 --ds.zero_stage 0 --actor.adam.lr 3e-7"),
        {"rollout.stop": ("no", "---", " a: b\n"), "data.input_template": "Q: {}\nA: 'é' ", "ckpt.output_dir": "1"},
    )
    write_yaml(config, tmp_path / "deep" / "config.yaml")
    assert parse("rl", ["--config", str(tmp_path / "deep" / "config.yaml")]).config == config


TEXT = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=8).filter(lambda text: text != "None")


@settings(max_examples=40, deadline=None)
@given(
    text=TEXT,
    stop=st.lists(TEXT, max_size=3).map(tuple),
    lr=st.floats(0, 1),
    seed=st.integers(0, 2**63),
    flag=st.booleans(),
)
def test_any_value_comes_back(
    tmp_path_factory: pytest.TempPathFactory, text: str, stop: tuple, lr: float, seed: int, flag: bool
):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    config = replaced(
        rl(),
        {
            "data.input_key": text,
            "rollout.stop": stop,
            "actor.adam.lr": lr,
            "train.seed": seed,
            "ds.overlap_comm": flag,
        },
    )
    write_yaml(config, path)
    assert parse("rl", ["--config", str(path)]).config == config


def test_secrets_are_not_written(tmp_path: Path):
    config = rl("--logger.wandb.key sk-123 --ray.address h:1 --data.prompt_dataset https://u:pw9@host/x.jsonl")
    assert config.logger.wandb.key == "sk-123"
    write_yaml(config, tmp_path / "c.yaml")
    written = (tmp_path / "c.yaml").read_text()
    assert "sk-123" not in written
    assert "pw9" not in written
    assert "https://host/x.jsonl" in written
    assert json.loads(json.dumps(dump(config)))["train"]["seed"] == 42


@pytest.mark.parametrize("tree", [RLConfig, SFTConfig])
def test_every_flag_says_what_it_is_for(tree: type):
    for flag in flags_of(tree).values():
        assert flag.help
        assert flag.help[-1] != "."
        assert get(tree(), flag.path) == flag.default


# --- old names -------------------------------------------------------------------------------------------


def test_an_old_script_is_taken_and_answered_with_the_new_names():
    argv = (
        "--pretrain m --prompt_data d --remote_rm_url r.py --actor_num_gpus_per_node 1 --ref_num_gpus_per_node 1 "
        "--micro_train_batch_size 4 --colocate_all_models --vllm_gpu_memory_utilization 0.6 "
        "--advantage_estimator rloo --n_samples_per_prompt 4 --init_kl_coef 1e-3 --bf16 --flash_attn --max_norm 0.5 "
        "--ref_reward_offload --actor_learning_rate 5e-7 --adam_betas 0.9 0.98 --save_path out"
    )
    config, explicit, notes = (parsed := parse("rl", argv.split())).config, parsed.explicit, parsed.notes
    assert config.actor.model_name_or_path == "m"
    assert config.train.micro_batch_size == 4
    assert config.train.colocate_all
    assert config.vllm.gpu_memory_utilization == 0.6
    assert config.algo.advantage.estimator == "rloo"
    assert (config.actor.max_norm, config.critic.max_norm) == (0.5, 1.0)
    assert (config.ref.offload, config.reward.offload) == (True, False)
    assert config.actor.adam.betas == (0.9, 0.98)
    assert {"ds.param_dtype", "ds.attn_implementation"} <= explicit
    assert "--micro_train_batch_size is now --train.micro_batch_size" in notes
    assert "--bf16 is now --ds.param_dtype bf16" in notes
    assert len(notes) == len([token for token in argv.split() if token.startswith("--")])


def test_an_old_flag_of_several_roles_sets_those_that_are_there():
    config = rl("--max_norm 0.5 --advantage_estimator gae --reward_pretrain r --ref_reward_offload")
    assert (config.actor.max_norm, config.critic.max_norm) == (0.5, 0.5)
    assert (config.ref.offload, config.reward.offload) == (True, True)
    assert complaint("--max_norm 0.5 --advantage_estimator rloo --n_samples_per_prompt 2 --critic.max_norm 0.5") == [
        "--critic.max_norm 0.5: it has no effect without --algo.advantage.estimator gae."
    ]


def test_the_old_corrections():
    tis = rl("--enable_vllm_is_correction --vllm_is_correction_type tis --vllm_is_truncated_threshold 0.5 2").algo
    assert (tis.advantage.is_correction_level, tis.advantage.is_correction_mode) == ("token", "clip")
    assert tis.advantage.is_correction_threshold == (0.5, 2.0)


def test_the_old_prompt_and_answer_lengths_are_one_length():
    config = rl("--prompt_max_len 1000 --generate_max_len 500")
    assert (config.data.max_len, config.rollout.max_new_tokens) == (1500, 500)
    assert rl("--prompt_max_len 1000").data.max_len == 2024  # the old default answer: 1024


def test_old_names_of_sft():
    argv = "--pretrain m --dataset d --learning_rate 1e-4 --l2 0.1 --max_norm 2 --pretrain_mode"
    parsed = parse("sft", argv.split())
    assert parsed.config.model.model_name_or_path == "m"
    assert parsed.config.model.pretrain_mode_enable
    assert (parsed.config.adam.lr, parsed.config.adam.weight_decay, parsed.config.max_norm) == (1e-4, 0.1, 2.0)
    assert "--max_norm" not in "".join(parsed.notes)  # it is the present name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--perf", "OpenRLHF has it no longer"),
        ("--ptx_coef 0.1", "OpenRLHF has it no longer"),
        ("--custom_configs x", "a fork's flag"),
        ("--bf16 false", "--bf16 false: it is a switch"),
        ("--vllm_is_correction_type tis", "--algo.advantage.is_correction_mode clip: it has no effect without"),
        ("--vllm_is_correction_type seq-mask-tis", "write --algo.advantage.is_correction_level seq instead"),
        ("--micro_train_batch_size x", "--micro_train_batch_size x: it takes int"),
        ("--actor_learning_rate 1 2", "--actor_learning_rate 1 2: it takes float"),
    ],
)
def test_old_flags_that_cannot_be_taken(text: str, words: str):
    lines = complaint(text)
    assert len(lines) == 1
    assert words in lines[0]


def test_old_names_in_a_file(tmp_path: Path):
    path = write(tmp_path, "old.yaml", "micro_train_batch_size: 2\nbf16: true\n")
    parsed = parse("rl", [*RL.split(), "--config", path])
    assert parsed.config.train.micro_batch_size == 2
    assert any("old.yaml" in note for note in parsed.notes)
