"""Every rollout of every step on disk: one parquet file per step, readable back as groups.

One row per rollout, the columns as in `_SCHEMA`. Rollouts that were not trained on are kept too: those of a group
that could not be scored with an empty `reward` and the reason in `failure`, those that were filtered out with
`filtered` set.

An answer of an environment has what that says of it: `outcome` (its score, or why the episode failed), `turns` (its
rewards where they fell) and `episode` (its JSON values). `reward_turns` are the parts of `reward` that fell at a turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from openrlhf_ext.batch.packed import TOKEN_COLUMNS, joined
from openrlhf_ext.errors import DataError
from openrlhf_ext.track.files import sync_folder
from openrlhf_ext.types import (
    FailedGroup,
    Outcome,
    Prompt,
    Rollout,
    RolloutGroup,
    Score,
    ScoredRollout,
    ScoreFailure,
)

_TURNS = pa.list_(pa.struct([("position", pa.int32()), ("reward", pa.float64())]))  # position in token_ids
_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("epoch", pa.int64()),
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("role", pa.string()),  # who played it in a game, else empty
        ("source", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("label", pa.string()),  # JSON
        ("meta", pa.string()),  # JSON
        ("prompt_tokens", pa.int32()),  # how many of token_ids are the prompt's
        ("prompt_ids", pa.list_(pa.int32())),  # the prompt's tokens, where token_ids do not begin with them
        ("token_ids", pa.list_(pa.int32())),
        ("action_mask", pa.list_(pa.bool_())),
        ("logprobs", pa.list_(pa.float32())),  # the sampler's, 0 off actions
        ("reward", pa.float64()),
        ("filter_value", pa.float64()),
        ("parts", pa.map_(pa.string(), pa.float64())),
        ("notes", pa.map_(pa.string(), pa.string())),
        ("reward_turns", _TURNS),
        ("outcome", pa.string()),  # JSON
        ("turns", _TURNS),
        ("episode", pa.string()),  # JSON
        ("failure", pa.string()),
        ("filtered", pa.bool_()),
        ("finish_reason", pa.string()),
        ("version_min", pa.int64()),
        ("version_max", pa.int64()),
    ]
)


class RecordedStep(NamedTuple):
    """What became of the prompts of one step."""

    epoch: int
    groups: tuple[RolloutGroup, ...]  # trained on
    failed: tuple[FailedGroup, ...] = ()
    filtered: tuple[RolloutGroup, ...] = ()


def rollout_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.parquet"


def write_rollouts(folder: Path, step: int, recorded: RecordedStep) -> Path:
    """Write the rollouts of one step; the file is there completely or not at all.

    Raises DataError where a label, a prompt's meta data or what an episode returned is not a JSON value.
    """
    rows: list[dict[str, Any]] = []
    rollouts: list[Rollout] = []
    for groups, filtered in ((recorded.groups, False), (recorded.filtered, True)):
        for group in groups:
            said = _prompt_columns(group.prompt) | {"step": step, "epoch": recorded.epoch, "filtered": filtered}
            rows += [said | _row(group.prompt, member.rollout, member.score) for member in group.members]
            rollouts += [member.rollout for member in group.members]
    for failed in recorded.failed:
        reason = f"{failed.failure.reason}: {failed.failure.detail}"
        said = _prompt_columns(failed.prompt) | {"step": step, "epoch": recorded.epoch, "filtered": False}
        rows += [said | _row(failed.prompt, rollout) | {"failure": reason} for rollout in failed.rollouts]
        rollouts += failed.rollouts
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    for name in TOKEN_COLUMNS:
        field = _SCHEMA.field(name)
        arrays = [getattr(rollout, name) for rollout in rollouts]
        table = table.set_column(_SCHEMA.get_field_index(name), field, _list_array(arrays, field.type))
    folder.mkdir(parents=True, exist_ok=True)
    path = rollout_path(folder, step)
    partial = path.with_name(f".{path.name}.partial")
    # Ids and log-probs hardly repeat themselves: a dictionary of them costs more than it saves.
    in_words = [name for name in _SCHEMA.names if name not in TOKEN_COLUMNS]
    pq.write_table(table, partial, compression="zstd", use_dictionary=in_words)
    partial.replace(path)
    sync_folder(folder)
    return path


def _list_array(arrays: Sequence[NDArray[Any]], kind: pa.ListType) -> pa.ListArray:
    """A row for each array, from their buffers."""
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
    assert offsets[-1] < 2**31, "a file holds less than 2 ** 31 tokens"
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(joined(arrays), kind.value_type))


def _arrays(column: pa.ChunkedArray) -> list[NDArray[Any]]:
    """The inverse: views of one array."""
    rows = column.combine_chunks()
    offsets = rows.offsets.to_numpy()
    flat = rows.values.to_numpy(zero_copy_only=False)
    return [flat[start:stop] for start, stop in pairwise(offsets)]


class RolloutFiles:
    """A `trainers.rl.Recorder`: the rollouts of every step in a file of this folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, step: int, recorded: RecordedStep) -> None:
        write_rollouts(self._folder, step, recorded)

    def settle(self) -> None:
        """What was written is there."""


def read_rollouts(path: Path) -> list[RolloutGroup]:
    """The groups of one step that were trained on, in the order and with the values that were written.

    Raises DataError where the file is missing or is not a rollout file.
    """
    return list(read_step(path).groups)


def read_step(path: Path, prompts: Mapping[str, Prompt] | None = None) -> RecordedStep:
    """All that was written of one step. `prompts` by id are used as they are; else they are made from the file,
    where labels and meta data have been through JSON.

    Raises DataError where the file is missing or is not a rollout file.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be read as rollouts ({error}); give a file that a run wrote.") from error
    missing = [name for name in _SCHEMA.names if name not in table.column_names]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}; give a rollout file that a run wrote.")
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    arrays = zip(*(_arrays(table[name]) for name in TOKEN_COLUMNS), strict=True)
    for row, held in zip(table.drop_columns(list(TOKEN_COLUMNS)).to_pylist(), arrays, strict=True):
        row |= zip(TOKEN_COLUMNS, held, strict=True)
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    groups: list[RolloutGroup] = []
    failed: list[FailedGroup] = []
    filtered: list[RolloutGroup] = []
    for prompt_id, rows in by_prompt.items():
        prompt = _prompt(rows[0]) if prompts is None else prompts[prompt_id]
        rollouts = [_rollout(row) for row in rows]
        if rows[0]["failure"] is not None:
            failed.append(FailedGroup(prompt, tuple(rollouts), _failure(rows[0]["failure"])))
        else:
            members = tuple(ScoredRollout(rollout, _score(row)) for rollout, row in zip(rollouts, rows, strict=True))
            (filtered if rows[0]["filtered"] else groups).append(RolloutGroup(prompt, members))
    epoch = table["epoch"][0].as_py() if len(table) else 0
    return RecordedStep(epoch, tuple(groups), tuple(failed), tuple(filtered))


def _prompt_columns(prompt: Prompt) -> dict[str, Any]:
    return {
        "prompt_id": prompt.id,
        "source": prompt.source,
        "prompt": prompt.text,
        "label": _json(prompt.label, prompt.id, "label"),
        "meta": _json(dict(prompt.meta), prompt.id, "meta"),
    }


def _row(prompt: Prompt, rollout: Rollout, score: Score | None = None) -> dict[str, Any]:
    """What is the rollout's own, its arrays aside."""
    begins = rollout.token_ids[: len(prompt.token_ids)].tolist() == list(prompt.token_ids)
    return {
        "sample": rollout.sample,
        "role": rollout.role,
        "response": rollout.text,
        "prompt_tokens": len(prompt.token_ids) if begins else 0,
        "prompt_ids": None if begins else prompt.token_ids,
        **_score_columns(score),
        **_outcome_columns(rollout),
        "finish_reason": rollout.finish_reason,
        "version_min": rollout.versions[0],
        "version_max": rollout.versions[1],
    }


def _score_columns(score: Score | None) -> dict[str, Any]:
    if score is None:
        return {"reward": None, "filter_value": None, "parts": [], "notes": [], "reward_turns": []}
    return {
        "reward": score.value,
        "filter_value": score.filter_value,
        "parts": list(score.parts.items()),
        "notes": list(score.notes.items()),
        "reward_turns": _turn_rows(score.turns),
    }


def _outcome_columns(rollout: Rollout) -> dict[str, Any]:
    outcome = rollout.outcome
    if outcome is None:
        return {"outcome": None, "turns": [], "episode": None}
    if isinstance(outcome, ScoreFailure):
        failed = json.dumps({"failed": outcome.reason, "detail": outcome.detail}, ensure_ascii=False)
        return {"outcome": failed, "turns": [], "episode": None}
    score = outcome.score
    said: dict[str, Any] = {
        "reward": score.value,
        "filter_value": score.filter_value,
        "parts": dict(score.parts),
        "notes": dict(score.notes),
        "turns": score.turns,
    }
    return {
        "outcome": json.dumps(said, ensure_ascii=False),
        "turns": _turn_rows(outcome.turns),
        "episode": _json(dict(outcome.info), rollout.prompt_id, "episode"),
    }


def _turn_rows(turns: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
    return [{"position": position, "reward": reward} for position, reward in turns]


def _json(value: Any, prompt_id: str, what: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise DataError(f"The {what} of prompt {prompt_id} is not a JSON value ({error}); convert it first.") from error


def _prompt(row: Mapping[str, Any]) -> Prompt:
    return Prompt(
        id=row["prompt_id"],
        token_ids=tuple(row["prompt_ids"] or row["token_ids"][: row["prompt_tokens"]].tolist()),
        text=row["prompt"],
        label=json.loads(row["label"]),
        source=row["source"],
        meta=json.loads(row["meta"]),
    )


def _rollout(row: Mapping[str, Any]) -> Rollout:
    return Rollout(
        prompt_id=row["prompt_id"],
        sample=row["sample"],
        token_ids=row["token_ids"],
        action_mask=row["action_mask"],
        logprobs=row["logprobs"],
        text=row["response"],
        finish_reason=row["finish_reason"],
        versions=(row["version_min"], row["version_max"]),
        outcome=_outcome(row),
        role=row["role"],
    )


def _score(row: Mapping[str, Any]) -> Score:
    turns = _turns(row["reward_turns"])
    return Score(row["reward"], dict(row["parts"]), row["filter_value"], dict(row["notes"]), turns)


def _outcome(row: Mapping[str, Any]) -> Outcome | ScoreFailure | None:
    if row["outcome"] is None:
        return None
    said = json.loads(row["outcome"])
    if "failed" in said:
        return ScoreFailure(said["failed"], said["detail"])
    turns = tuple((position, reward) for position, reward in said["turns"])
    score = Score(said["reward"], said["parts"], said["filter_value"], said["notes"], turns)
    return Outcome(score, _turns(row["turns"]), json.loads(row["episode"]))


def _turns(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, float], ...]:
    return tuple((row["position"], row["reward"]) for row in rows)


def _failure(text: str) -> ScoreFailure:
    reason, _, detail = text.partition(": ")
    return ScoreFailure(reason, detail)  # type: ignore[arg-type]
