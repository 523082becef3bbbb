"""The self-play example as it is typed, on made-up notes: warm-up and two steps of the game with a tiny model."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import openrlhf_ext
from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.track.rollouts import read_rollouts, rollout_path
from openrlhf_ext.types import Outcome, Rollout, RolloutGroup, ScoredRollout

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "medical_selfplay"
ROLES = ("attacker", "assessor")
NOTES, PROMPTS, EPISODES = 200, 16, 2
FLAGS = "--data.max_samples 16 --rollout.batch_size 8 --rollout.n_samples_per_prompt 2 --algo.kl.init_coef 0"


def write_medec(path: Path) -> Path:
    names = ("Text ID", "Text", "Error Flag", "Error Type", "Error Sentence", "Corrected Sentence", "Corrected Text")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for i in range(NOTES):
            begin = f"A {20 + i % 60}-year-old {('man', 'woman')[i % 2]} has a {('cough', 'rash', 'fever')[i % 3]}."
            right, wrong = "Rest is advised.", "A cast is put on."
            writer.writerow((f"n{i}", f"{begin} {wrong}", 1, "management", wrong, right, f"{begin} {right}"))
    return path


@dataclass(frozen=True)
class Played:
    out: Path
    game: ModuleType
    reward: ModuleType
    rows: dict[str, dict[str, str]]  # by their note

    def groups(self, step: int) -> list[RolloutGroup]:
        return read_rollouts(rollout_path(self.out / "rl" / "rollouts", step))

    def members(self) -> Iterator[tuple[RolloutGroup, ScoredRollout]]:
        for step in (1, 2):
            for group in self.groups(step):
                for member in group.members:
                    yield group, member


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    folder = tmp_path_factory.mktemp("selfplay")
    rows, out = folder / "rows.jsonl", folder / "out"
    convert = [sys.executable, str(EXAMPLE / "convert.py"), str(write_medec(folder / "notes.csv")), str(rows)]
    subprocess.run(convert, check=True, timeout=60)
    (folder / "bin").mkdir()
    command = folder / "bin" / "openrlhf-ext"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m openrlhf_ext.cli.main "$@"\n')
    command.chmod(0o755)
    root = Path(openrlhf_ext.__file__).resolve().parent.parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        "TRAIN": str(rows),
        "OUT": str(out),
    }
    environment.pop("MODEL", None)
    done = subprocess.run(
        [str(EXAMPLE / "train.sh"), *FLAGS.split()],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    sys.path.insert(0, str(EXAMPLE))
    by_note = {row["prompt"]: row for row in map(json.loads, rows.read_text(encoding="utf-8").splitlines())}
    yield Played(out, import_module("game"), import_module("reward"), by_note)
    sys.path.remove(str(EXAMPLE))
    for name in ("game", "reward"):
        del sys.modules[name]


def episode_of(rollout: Rollout) -> dict[str, Any]:
    assert isinstance(rollout.outcome, Outcome)
    return dict(rollout.outcome.info)


def question(played: Played, group: RolloutGroup, rollout: Rollout) -> str:
    """What the role was asked, from the row and from what the episode says of the rewrite."""
    row = played.rows[group.prompt.text]
    if rollout.role == "attacker":
        return str(played.game.attack(row["prompt"], row["label"], row))
    return str(played.game.assess(episode_of(rollout)["rewrite"] or row["prompt"]))


def test_masks_and_tokens_one_by_one(played: Played) -> None:
    tokenizer = AutoTokenizer.from_pretrained(played.out / "sft" / "model")
    seen = 0
    for group, member in played.members():
        rollout = member.rollout
        asked = [{"role": "user", "content": question(played, group, rollout)}]
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        opening = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = list(rollout.token_ids[len(opening) :])
        assert list(rollout.token_ids[: len(opening)]) == opening
        assert answer
        for place, (action, logprob) in enumerate(zip(rollout.action_mask, rollout.logprobs, strict=True)):
            assert action == (place >= len(opening)), place
            assert logprob <= 0.0 if action else logprob == 0.0
        assert tokenizer.decode(answer, skip_special_tokens=True) == rollout.text
        ended = answer[-1] == tokenizer.eos_token_id
        assert (rollout.finish_reason == "stop") == ended
        assert tokenizer.eos_token_id not in answer[:-1]
        batch = token_batch([rollout], pad_id=0)
        assert batch.action_BA[0].nonzero().flatten().tolist() == list(
            range(len(opening) - 1, len(rollout.token_ids) - 1)
        )
        seen += len(answer)
    assert seen > 200


def test_what_an_episode_says_follows_from_what_was_said(played: Played) -> None:
    for group, member in played.members():
        rollout, row, episode = member.rollout, played.rows[group.prompt.text], episode_of(member.rollout)
        assert (episode["game"], episode["kind"]) == (row["game"], row["label"])
        said = rollout.text if rollout.finish_reason == "stop" else ""
        if rollout.role == "attacker":
            assert row["game"] == "adversarial"
            assert episode["rewrite"] == played.game.rewrite_in(said, row["prompt"])
        else:
            assert episode["assessed"]
            assert episode["verdict"] == played.game.verdict_in(said)


def test_each_episode_has_the_roles_that_spoke(played: Played) -> None:
    whole = 0
    for step in (1, 2):
        groups = played.groups(step)
        assert len(groups) == PROMPTS // 2
        for group in groups:
            by_episode: dict[int, dict[str, Rollout]] = {}
            for member in group.members:
                number, place = divmod(member.rollout.sample, len(ROLES))
                assert ROLES[place] == member.rollout.role
                by_episode.setdefault(number, {})[member.rollout.role] = member.rollout
            assert sorted(by_episode) == list(range(EPISODES))
            for roles in by_episode.values():
                episode = episode_of(next(iter(roles.values())))
                assert all(episode_of(rollout) == episode for rollout in roles.values())
                assert ("attacker" in roles) is (episode["game"] == "adversarial")
                assert ("assessor" in roles) is episode["assessed"]
                whole += len(roles) == len(ROLES)
    assert whole, "no game of two players: the warm-up has not taught the attacker its form"


def test_rewards_are_those_of_the_reward_file(played: Played) -> None:
    checked = set()
    for group, member in played.members():
        row, rollout = played.rows[group.prompt.text], member.rollout
        answer = played.reward.reward_func(
            [""], [group.prompt.text], [row["label"]], error=[row["error"]], correction=[row["correction"]],
            role=[rollout.role], episode=[episode_of(rollout)],
        )  # fmt: skip
        assert member.score.value == pytest.approx(answer["rewards"][0])
        assert member.score.filter_value is None or 0.0 <= member.score.filter_value <= 1.0
        checked.add((rollout.role, row["game"], member.score.value))
    assert len(checked) > 3


def test_the_model_gives_the_tokens_the_log_probs_that_they_were_sampled_with(played: Played) -> None:
    """So what stands in the rollout is what the engine saw, in every talk."""
    model = AutoModelForCausalLM.from_pretrained(played.out / "sft" / "model", dtype=torch.float32)
    furthest = 0.0
    for group in played.groups(1):
        for member in group.members:
            tokens = torch.tensor([member.rollout.token_ids])
            with torch.no_grad():
                logp = model(tokens).logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None]).squeeze(-1)
            for place, action in enumerate(member.rollout.action_mask):
                if action:
                    furthest = max(furthest, abs(float(logp[place - 1]) - member.rollout.logprobs[place]))
    assert furthest < 2e-3


def test_figures_by_role(played: Played) -> None:
    lines = [json.loads(line) for line in (played.out / "rl" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "reward" in line]
    assert len(logged) == 2
    for step, line in enumerate(logged, 1):
        for role in ROLES:
            rewards = [m.score.value for g in played.groups(step) for m in g.members if m.rollout.role == role]
            assert line[f"reward/role/{role}"] == pytest.approx(sum(rewards) / len(rewards))
            assert line[f"rollout/samples/role/{role}"] == len(rewards)
        assert math.isfinite(line["policy/loss"])
        assert line["mismatch/abs"] < 1e-3
    result = json.loads((played.out / "rl" / "result.json").read_text())
    assert result["steps"] == 2
