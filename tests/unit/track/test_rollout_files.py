from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_ext.errors import DataError
from openrlhf_ext.track.rollouts import RecordedStep, read_rollouts, read_step, write_rollouts
from openrlhf_ext.types import FailedGroup, Outcome, Prompt, Rollout, RolloutGroup, Score, ScoredRollout, ScoreFailure

finite32 = st.floats(-50.0, 0.0, width=32)
labels = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)


@st.composite
def scores(draw: st.DrawFn, length: int) -> Score:
    notes = draw(st.dictionaries(st.just("judge"), st.text(max_size=6)))
    filter_value = draw(st.one_of(st.none(), st.just(0.5)))
    return Score(draw(st.floats(-2, 2)), {"right": 1.0, "form": 0.1}, filter_value, notes, draw(turns(length)))


def turns(length: int) -> st.SearchStrategy[tuple[tuple[int, float], ...]]:
    return st.lists(st.tuples(st.integers(1, length), st.floats(-2, 2)), max_size=3).map(tuple)


@st.composite
def outcomes(draw: st.DrawFn, length: int) -> Outcome | ScoreFailure | None:
    """What an environment said, if there was one: a score with rewards at turns, or a failed episode."""
    kind = draw(st.sampled_from(["none", "failed", "played"]))
    if kind == "none":
        return None
    if kind == "failed":
        return ScoreFailure("timeout", draw(st.text(max_size=6)))
    info = draw(st.dictionaries(st.text(max_size=3), labels, max_size=2))
    return Outcome(draw(scores(length)), draw(turns(length)), info)


@st.composite
def groups(draw: st.DrawFn) -> RolloutGroup:
    number = draw(st.integers(0, 10**6))
    prompt_ids = tuple(draw(st.lists(st.integers(0, 151_000), min_size=1, max_size=4)))
    opening = draw(st.sampled_from([prompt_ids, (7,), (*prompt_ids, 7)]))  # a talk may begin as it likes
    prompt = Prompt(f"p{number}", prompt_ids, draw(st.text(max_size=8)), draw(labels), "gsm", {"level": number})
    members = []
    for sample in range(draw(st.integers(1, 3))):
        length = draw(st.integers(0, 4))
        action = draw(st.lists(st.booleans(), min_size=length, max_size=length))  # tools' tokens are no actions
        logprobs = [draw(finite32) if is_action else 0.0 for is_action in action]
        rollout = Rollout(
            prompt_id=prompt.id,
            sample=sample,
            token_ids=opening + tuple(draw(st.lists(st.integers(0, 9), min_size=length, max_size=length))),
            action_mask=(False,) * len(opening) + tuple(action),
            logprobs=(0.0,) * len(opening) + tuple(logprobs),
            text=draw(st.text(max_size=8)),
            finish_reason=draw(st.sampled_from(["stop", "length", "abort"])),
            versions=(3, 4),
            outcome=draw(outcomes(length=len(opening) + length)),
            role=draw(st.sampled_from(["", "attacker", "assessor"])),
        )
        score = draw(scores(length=len(opening) + length))
        members.append(ScoredRollout(rollout, score))
    return RolloutGroup(prompt, tuple(members))


@st.composite
def recorded_steps(draw: st.DrawFn) -> RecordedStep:
    """Groups of which some could not be scored and some were filtered out."""
    drawn = draw(st.lists(groups(), min_size=1, max_size=6, unique_by=lambda group: group.prompt.id))
    fates = draw(st.lists(st.sampled_from("kfx"), min_size=len(drawn), max_size=len(drawn)))
    of = {fate: tuple(g for g, its in zip(drawn, fates, strict=True) if its == fate) for fate in "kfx"}
    failure = ScoreFailure("exception", draw(st.text(max_size=8)))
    failed = tuple(FailedGroup(g.prompt, tuple(m.rollout for m in g.members), failure) for g in of["x"])
    return RecordedStep(draw(st.integers(0, 3)), of["k"], failed, of["f"])


@settings(max_examples=30, deadline=None)
@given(written=recorded_steps())
def test_a_step_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, written: RecordedStep) -> None:
    path = write_rollouts(tmp_path_factory.mktemp("rollouts"), 3, written)
    assert read_step(path) == written
    assert read_rollouts(path) == list(written.groups)


def test_prompts_that_are_given_are_used_as_they_are(tmp_path: Path) -> None:
    path = write_rollouts(tmp_path, 1, RecordedStep(0, (simple(label=(1, 2)),)))
    assert read_step(path).groups[0].prompt.label == [1, 2]
    assert read_step(path, {"p": simple(label=(1, 2)).prompt}).groups == (simple(label=(1, 2)),)


def simple(prompt_id: str = "p", label: object = None) -> RolloutGroup:
    prompt = Prompt(prompt_id, (1, 2), "ask", label)
    logprob = struct.unpack("f", struct.pack("f", -0.7))[0]
    rollout = Rollout(prompt_id, 0, (1, 2, 3), (False, False, True), (0.0, 0.0, logprob), "answer", "stop", (0, 0))
    return RolloutGroup(prompt, (ScoredRollout(rollout, Score(1.0, {"right": 1.0})),))


def test_failed_rollouts_are_kept_with_the_reason_but_are_not_training_data(tmp_path: Path) -> None:
    lost = simple("lost")
    failed = FailedGroup(lost.prompt, (lost.members[0].rollout,), ScoreFailure("timeout", "30 s"))
    path = write_rollouts(tmp_path, 1, RecordedStep(0, (simple("kept"),), (failed,)))
    table = pq.read_table(path).to_pylist()
    assert [(row["prompt_id"], row["reward"], row["failure"]) for row in table] == [
        ("kept", 1.0, None),
        ("lost", None, "timeout: 30 s"),
    ]
    assert read_rollouts(path) == [simple("kept")]


def test_a_table_reader_sees_plain_columns(tmp_path: Path) -> None:
    (row,) = pq.read_table(write_rollouts(tmp_path, 12, RecordedStep(2, (simple(label={"answer": 4}),)))).to_pylist()
    assert (row["step"], row["epoch"], row["prompt"], row["response"]) == (12, 2, "ask", "answer")
    assert row["label"] == '{"answer": 4}'
    assert dict(row["parts"]) == {"right": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000012.parquet"]


def test_a_game_is_read_by_its_columns(tmp_path: Path) -> None:
    outcome = Outcome(Score(1.5, {"steps": 2.0}), ((1, 0.5), (3, 1.0)), {"rewrite": "Ä note."})
    said = Rollout(
        "p", 2, (9, 3, 4, 5), (False, True, False, True), (0.0,) * 4, "", "stop", (0, 0), outcome, "attacker"
    )
    lost = replace(said, sample=3, outcome=ScoreFailure("timeout", "5 s"), role="assessor")
    group = RolloutGroup(simple().prompt, (ScoredRollout(said, Score(3.0, turns=((1, 1.0), (3, 2.0)))),))
    failed = FailedGroup(Prompt("q", (1,), "?"), (replace(lost, prompt_id="q"),), ScoreFailure("timeout", "5 s"))
    path = write_rollouts(tmp_path, 1, RecordedStep(0, (group,), (failed,)))
    first, second = pq.read_table(path).to_pylist()
    assert (first["role"], second["role"]) == ("attacker", "assessor")
    assert first["turns"] == [{"position": 1, "reward": 0.5}, {"position": 3, "reward": 1.0}]
    assert [turn["reward"] for turn in first["reward_turns"]] == [1.0, 2.0]
    assert json.loads(first["episode"]) == {"rewrite": "Ä note."}
    assert json.loads(second["outcome"]) == {"failed": "timeout", "detail": "5 s"}
    assert (first["prompt_tokens"], first["prompt_ids"]) == (0, [1, 2])
    assert read_step(path) == RecordedStep(0, (group,), (failed,))


def test_the_same_step_again_replaces_the_file(tmp_path: Path) -> None:
    write_rollouts(tmp_path, 1, RecordedStep(0, (simple("a"), simple("b"))))
    assert read_rollouts(write_rollouts(tmp_path, 1, RecordedStep(0, (simple("c"),)))) == [simple("c")]


def test_bad_input_is_answered_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label of prompt p is not a JSON value"):
        write_rollouts(tmp_path, 1, RecordedStep(0, (simple(label={1, 2}),)))
    member = simple().members[0]
    played = replace(member.rollout, outcome=Outcome(Score(0.0), info={"when": {1}}))
    with pytest.raises(DataError, match="episode of prompt p is not a JSON value"):
        write_rollouts(
            tmp_path, 1, RecordedStep(0, (RolloutGroup(simple().prompt, (replace(member, rollout=played),)),))
        )
    with pytest.raises(DataError, match="cannot be read as rollouts"):
        read_rollouts(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(DataError, match="cannot be read as rollouts"):
        read_rollouts(tmp_path / "text.parquet")
