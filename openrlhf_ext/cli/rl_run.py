"""One RL run: check everything that needs no model, start the roles, train, export, say where things are."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_ext.cli.held_out import evaluation_record, held_out_rows
from openrlhf_ext.cli.judge_calibration import say_if_no_better_than_chance
from openrlhf_ext.cli.memory_report import as_result, gauges_of_driver, memory_log, say_peaks, shortage_explained
from openrlhf_ext.cli.plan_data import longest_answer
from openrlhf_ext.cli.preflight import preflight
from openrlhf_ext.cli.rl_agent import agent_profile
from openrlhf_ext.cli.rl_judge import RunJudge, checked_judge, run_judge
from openrlhf_ext.cli.rl_rewards import evaluation_reward, reward_settings, reward_sources
from openrlhf_ext.cli.rl_roles import Schedule, model_specs, ray_settings, roles_spec
from openrlhf_ext.cli.rl_setup import eval_sampling, prompt_settings, rl_settings, role_sources
from openrlhf_ext.cli.rl_student import check_rows
from openrlhf_ext.cli.specs import (
    cadence_of,
    goal_of,
    goal_result,
    metrics_file,
    open_store,
    open_tracking,
    write_config,
)
from openrlhf_ext.cluster.build import RemoteRoles, build_roles
from openrlhf_ext.cluster.following import RemoteMixed
from openrlhf_ext.cluster.recorder import RemoteRecorder
from openrlhf_ext.cluster.session import ray_session
from openrlhf_ext.config import Parsed, RLConfig
from openrlhf_ext.data.prompts import LoadedPrompts, load_prompts
from openrlhf_ext.data.source import PromptSource
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.device import choose_device
from openrlhf_ext.evaluation.asked import AskedRow
from openrlhf_ext.evaluation.generation import evaluate_generation
from openrlhf_ext.evaluation.record import EvaluationRecord, rows_of
from openrlhf_ext.models.build import check_spec
from openrlhf_ext.plan.types import DataSize
from openrlhf_ext.ports import Generator, RewardFn
from openrlhf_ext.rewards.load import load_reward
from openrlhf_ext.rewards.sources import RoleSource
from openrlhf_ext.track.memory import MemoryLog
from openrlhf_ext.track.metrics import read_metrics
from openrlhf_ext.track.progress import StepProgress, console
from openrlhf_ext.track.stop import COME_BACK, say_resumable, stop_on_signal
from openrlhf_ext.trainers.journal import Cadence, Evaluate, Journal
from openrlhf_ext.trainers.rl import RLRoles, RLSettings, train_rl
from openrlhf_ext.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = {"reward": "reward", "policy/kl": "KL", "response/length": "length"}


def run(parsed: Parsed) -> int:
    """Train as the config says. Raises UserError before any model is loaded where the input cannot be used."""
    cfg: RLConfig = parsed.config
    start = time.monotonic()
    device = choose_device(cfg.device.type)
    store, latest = open_store(cfg.ckpt)
    assert cfg.actor.model_name_or_path is not None
    for model in model_specs(parsed, device):
        check_spec(model)
    players = _players(cfg)
    tokenizer = load_tokenizer(cfg.actor.model_name_or_path, fast=not cfg.data.disable_fast_tokenizer)
    data = _load_data(cfg, tokenizer, resuming=latest is not None)
    planned = preflight("rl", parsed, device, _data_size(cfg, data))
    parsed, cfg, memory = planned.parsed, planned.parsed.config, memory_log(planned)
    settings = rl_settings(cfg, tokenizer)
    spec = roles_spec(parsed, device, _schedule(len(data.prompts), cfg, settings, players))
    console.print(_announcement(cfg, data, settings, device.kind, players), soft_wrap=True)

    write_config(cfg, cfg.ckpt, planned.plan)
    output, rollouts = Path(cfg.ckpt.output_dir), _rollout_folder(cfg)
    judge = run_judge(cfg)
    say_if_no_better_than_chance(cfg.judge, judge.judge.rubric if judge else None)
    scorers = role_sources(cfg, tokenizer, judge)
    check_rows(scorers, [*data.prompts, *data.held_out_prompts])
    with (
        shortage_explained(planned, memory, store),
        checked_judge(judge, [*data.prompts, *data.held_out_prompts]) as asked_by_files,
        load_reward(reward_sources(cfg), reward_settings(cfg), tokenizer, scorers, asked_by_files) as reward,
        evaluation_reward(cfg, reward, tokenizer, data.held_out_prompts) as held_out_reward,
    ):
        reward.probe(data.prompts)
        with ray_session(ray_settings(cfg, spec)) as logs, stop_on_signal() as asked:
            _link(output / "logs", logs)
            remote = build_roles(spec, memory)
            _connect(scorers, judge, remote)
            tracker = open_tracking(cfg.logger, cfg.ckpt, cfg, latest.step if latest else None)
            line = StepProgress(data.source.total_steps, SHOWN, every=cfg.logger.logging_steps)
            journal = Journal(
                _cadence(cfg),
                tracker=tracker,
                line=line,
                store=store,
                evaluate=_evaluation(cfg, data, remote.generator, held_out_reward),
                gauges=gauges_of_driver(memory, device),
                stop=asked,
                until=goal_of(cfg.train.stop_when),
            )
            roles = _roles(cfg, remote, reward)
            with closing(line), closing(tracker), RemoteRecorder(rollouts) as recorder:
                steps = train_rl(settings, data.source, roles, journal, recorder=recorder, resume=latest)
            if journal.stopped and journal.reached is None:
                say_resumable(steps, data.source.total_steps, cfg.ckpt.path)
                return COME_BACK
            _export(cfg, remote, output)
    result = _result(cfg, steps, time.monotonic() - start, rollouts)
    _conclude(cfg, result | goal_result(cfg.train.stop_when, journal.reached), memory)
    return 0


def _rollout_folder(cfg: RLConfig) -> Path:
    return Path(cfg.logger.rollout_dir or Path(cfg.ckpt.output_dir) / "rollouts")


def _players(cfg: RLConfig) -> int:
    agent = agent_profile(cfg)
    return len(agent.roles) if agent else 1


def _connect(scorers: Sequence[RoleSource], judge: RunJudge | None, remote: RemoteRoles) -> None:
    for scorer in scorers:
        scorer.connect(remote)
    if judge is not None:
        judge.connect(remote)


def _conclude(cfg: RLConfig, result: Mapping[str, Any], memory: MemoryLog) -> None:
    whole = {**result, "memory": as_result(memory)}
    (Path(cfg.ckpt.output_dir) / "result.json").write_text(json.dumps(whole, indent=1) + "\n")
    say_peaks(memory)
    _say_result(result, cfg)


def _roles(cfg: RLConfig, remote: RemoteRoles, reward: RewardFn) -> RLRoles:
    mixed = None
    if cfg.ref.sync_steps:
        assert remote.reference is not None, "the rules ask for a KL"
        mixed = RemoteMixed(remote.reference, remote.policy, saves=not cfg.ckpt.disable_ds)
    return RLRoles(remote.generator, reward, remote.policy, remote.reference, remote.critic, mixed)


def _export(cfg: RLConfig, remote: RemoteRoles, output: Path) -> None:
    remote.policy.export(output / "model")
    if cfg.ds.lora.rank:
        remote.policy.export_adapters(output / "adapters")
    if remote.critic is not None and cfg.critic.save_value_network:
        remote.critic.export(output / "critic")


def _link(link: Path, folder: Path) -> None:
    """The logs of this run's processes, found beside its other output (the latest run's, where it was resumed)."""
    if link.is_symlink():
        link.unlink()
    if not link.exists():  # else it is something of the user's
        link.symlink_to(folder)


@dataclass(frozen=True, slots=True)
class RLData:
    """What is trained on and what is held out; `notes` says what was left out of them."""

    prompts: Sequence[Prompt]
    source: PromptSource
    held_out: Sequence[AskedRow]
    record: EvaluationRecord | None  # of what is held out
    notes: Sequence[str]

    @property
    def held_out_prompts(self) -> list[Prompt]:
        return [row.prompt for row in self.held_out]


def _load_data(cfg: RLConfig, tokenizer: PreTrainedTokenizerBase, *, resuming: bool) -> RLData:
    data = cfg.data
    assert data.prompt_dataset is not None
    wanted = prompt_settings(cfg, data.prompt_dataset, data.prompt_split, data.prompt_probs, data.max_samples)
    loaded = load_prompts(wanted, tokenizer)
    notes = _overlong(loaded)
    held_out: Sequence[AskedRow] = ()
    record = None
    if cfg.eval.dataset is not None:
        evaluated = prompt_settings(cfg, cfg.eval.dataset, cfg.eval.split, None, data.max_samples)
        loaded_held_out = load_prompts(evaluated, tokenizer)
        held_out = held_out_rows(cfg, loaded_held_out, data.input_key, data.label_key)
        rule = cfg.eval.remote_url or ", ".join([*reward_sources(cfg), "the roles of training"])
        record = evaluation_record(cfg, held_out, f"rewards by {rule}", eval_sampling(cfg), resuming=resuming)
        notes += [f"held-out {note}" for note in _overlong(loaded_held_out)]
    source = PromptSource(
        loaded.prompts,
        batch_size=cfg.rollout.batch_size,
        round_size=cfg.rollout.vllm_generate_batch_size,
        episodes=cfg.train.num_episodes,
        seed=cfg.train.seed,
        drop_last=data.drop_last,
    )
    return RLData(loaded.prompts, source, held_out, record, notes)


def _data_size(cfg: RLConfig, data: RLData) -> DataSize:
    """Prompts as they are, answers as long as they may get."""
    lengths = [len(prompt.token_ids) for prompt in data.prompts]
    mean, answer = sum(lengths) / len(lengths), longest_answer(cfg)
    return DataSize(
        rows=len(lengths),
        mean_tokens=min(mean + answer, cfg.data.max_len),
        max_tokens=min(max(lengths) + answer, cfg.data.max_len),
        mean_prompt_tokens=mean,
        eval_rows=len(data.held_out) or None,
        how="counted",
    )


def _overlong(loaded: LoadedPrompts) -> list[str]:
    return [f"{name}: {count}" for name, count in loaded.counts.items() if name.startswith("overlong") and count]


def _schedule(prompts: int, cfg: RLConfig, settings: RLSettings, players: int) -> Schedule:
    """Optimizer steps of the whole run, the short last batch of each epoch counted as what it is.

    Dynamic filtering takes more prompts for a step, and not every player speaks in every game: it may end earlier.
    """
    full, rest = divmod(prompts, cfg.rollout.batch_size)
    sizes = [cfg.rollout.batch_size] * full + ([rest] if rest and not cfg.data.drop_last else [])
    steps = [settings.optimizer_steps(size * settings.sampling.n * players) for size in sizes] * cfg.train.num_episodes
    return Schedule(policy=max(sum(steps[settings.freezing_steps :]), 1), critic=sum(steps))


def _announcement(cfg: RLConfig, data: RLData, settings: RLSettings, device: str, players: int) -> str:
    """What will happen, in one paragraph, before it does."""
    steps, updates = data.source.total_steps, _schedule(len(data.prompts), cfg, settings, players).policy
    # What is filtered out takes other prompts with it, and what has reached its goal ends.
    most = "at most " if settings.filter_range or cfg.train.stop_when else ""
    text = (
        f"{len(data.prompts)} prompts, {most}{steps} rollout steps on this {device} "
        f"({data.source.steps_per_epoch} per episode), {'at most ' * (players > 1)}{updates} optimizer steps"
    )
    text += f" ({', '.join(data.notes)})" if data.notes else ""
    every = cfg.ckpt.save_steps
    saves = len({step for step in range(1, steps + 1) if step == steps or (every > 0 and step % every == 0)})
    text += f"; {saves} checkpoint{'s' if saves > 1 else ''} under {cfg.ckpt.path}."
    if every > steps:
        text += f" --ckpt.save_steps {every} is more than the {steps} steps there are: only the end is saved."
    return text


def _cadence(cfg: RLConfig) -> Cadence:
    best = {"": "pass@1", "none": None}.get(cfg.ckpt.best_metric_key, cfg.ckpt.best_metric_key)
    return Cadence(
        log=cfg.logger.logging_steps,
        evaluate=cadence_of(cfg.eval.steps),
        save=cadence_of(cfg.ckpt.save_steps),
        best=best if cfg.eval.dataset is not None else None,
    )


def _evaluation(cfg: RLConfig, data: RLData, generator: Generator, reward: RewardFn) -> Evaluate | None:
    """Figures by reward, and those of the answers as they are kept; where both have one (truncated), the first."""
    if (record := data.record) is None:
        return None
    prompts, sampling = data.held_out_prompts, eval_sampling(cfg)

    def evaluate(step: int) -> dict[str, float]:
        found = evaluate_generation(prompts, generator, reward, sampling)
        metrics = found.metrics()
        kept = record.keep(step, rows_of(data.held_out, found.answers))
        costs = {f"eval/{name}": metric.value for name, metric in reward.take_report().items()}
        return metrics | {name: value for name, value in (kept | costs).items() if name not in metrics}

    return evaluate


def _result(cfg: RLConfig, steps: int, seconds: float, rollouts: Path) -> dict[str, Any]:
    """What the run came to; rewards are the first and the last evaluation's, or training's where there is none."""
    rows = read_metrics(metrics_file(cfg.logger, cfg.ckpt))
    rewards = [value for row in rows if (value := _held_out_reward(row)) is not None]
    if not rewards:
        rewards = [row["reward"] for row in rows if "reward" in row]
    return {
        "reward_before": rewards[0] if rewards else None,
        "reward_after": rewards[-1] if rewards else None,
        "held_out": cfg.eval.dataset is not None,
        "steps": steps,
        "seconds": round(seconds, 1),
        "checkpoint": str((Path(cfg.ckpt.output_dir) / "model").absolute()),
        "rollouts": str(rollouts.absolute()),
        "metrics": str(metrics_file(cfg.logger, cfg.ckpt).absolute()),
    }


def _held_out_reward(row: Mapping[str, Any]) -> float | None:
    names = [name for name in row if name.startswith("eval/") and name.endswith("/reward")]
    name = "eval/all/reward" if "eval/all/reward" in names else next(iter(names), None)
    return row[name] if name is not None and math.isfinite(row[name]) else None


def _say_result(result: Mapping[str, Any], cfg: RLConfig) -> None:
    kind = "held-out reward" if result["held_out"] else "training reward"
    before, after = result["reward_before"], result["reward_after"]
    if before is not None:
        console.print(f"{kind}: {before:.3f} before, {after:.3f} after {result['steps']} steps")
    console.print(f"model: {result['checkpoint']}", soft_wrap=True)
    console.print(f"rollouts: {result['rollouts']}", soft_wrap=True)
    console.print(f"metrics: {result['metrics']}", soft_wrap=True)
    console.print(f"checkpoints: {Path(cfg.ckpt.path).absolute()}", soft_wrap=True)
    console.print(f"logs: {(Path(cfg.ckpt.output_dir) / 'logs').absolute()}", soft_wrap=True)
