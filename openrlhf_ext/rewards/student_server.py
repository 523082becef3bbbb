"""What a student behind HTTP is asked and answers, in the form of `server`: RLT's reward of texts.

A request has "query" (prompts with their answers), "prompts" and "labels"; a label is an object, or its JSON text, with
the question and the solution by the names of their columns. The answer has "rewards", "scores" (the same) and
"extra_logs" (every term).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openrlhf_ext.errors import UserError
from openrlhf_ext.rewards.process import RewardBatch
from openrlhf_ext.rewards.server import Form, Refused, object_of, response_of, texts_of
from openrlhf_ext.rewards.student import StudentSource
from openrlhf_ext.types import Prompt, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHAPE = (
    'send {"query": ["prompt and answer", ...], "prompts": ["prompt", ...], '
    '"labels": [{"question": ..., "solution": ...}, ...]}'
)

Case = tuple[Prompt, Rollout]


@dataclass(frozen=True, slots=True)
class Taught:
    """The reward of an answer with its terms, and the tokens that the student read for it."""

    reward: float
    terms: Mapping[str, float]
    tokens: int


def student_cases(source: StudentSource) -> Callable[[Sequence[Case]], list[Taught]]:
    """What the line calls with the cases of a round."""

    def score(cases: Sequence[Case]) -> list[Taught]:
        answer = source.ask(RewardBatch([], [], [], {}, list(cases)), math.inf)
        tokens = round(source.take_report()[f"reward/{source.name}/tokens"].total / len(cases))
        rows = [{name: log[place] for name, log in answer.logs.items()} for place in range(len(cases))]
        return [Taught(reward, row, tokens) for reward, row in zip(answer.rewards, rows, strict=True)]

    return score


def student_form(source: StudentSource, tokenizer: PreTrainedTokenizerBase) -> Form:
    return Form(lambda body: cases_of(body, source, tokenizer), answer)


def cases_of(body: bytes, source: StudentSource, tokenizer: PreTrainedTokenizerBase) -> list[Case]:
    """Raises Refused (400) for a body that is not of the form, or what the student could not read."""
    value = object_of(body, SHAPE)
    queries, prompts, labels = texts_of(value, "query", SHAPE), texts_of(value, "prompts", SHAPE), value.get("labels")
    if not isinstance(labels, list) or not len(queries) == len(prompts) == len(labels):
        raise Refused(400, f"there is not one prompt and one label for each query: {SHAPE}.")
    cases = []
    for place, (query, prompt, label) in enumerate(zip(queries, prompts, labels, strict=True)):
        said = response_of(query, prompt, place, SHAPE)
        cases.append(_case(place, prompt, said, _columns(label, place), tokenizer))
    try:
        source.check([prompt for prompt, _ in cases], [rollout.response_length for _, rollout in cases])
    except UserError as error:
        raise Refused(400, str(error)) from None
    return cases


def _columns(label: Any, place: int) -> Mapping[str, Any]:
    try:
        columns = json.loads(label) if isinstance(label, str) else label
    except ValueError:
        columns = None
    if not isinstance(columns, Mapping):
        raise Refused(400, f"labels[{place}] is no object with question and solution, nor the JSON of one: {SHAPE}.")
    return columns


def _case(place: int, prompt: str, answer: str, columns: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Case:
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
    said = tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"]
    ends = frozenset(tokenizer.all_special_ids)
    while len(said) > 1 and {said[-1], said[-2]} <= ends:  # one end is enough
        said.pop()
    rollout = Rollout.of_turn(
        asked,
        said,
        [0.0] * len(said),
        prompt_id=f"query[{place}]",
        sample=0,
        text=answer,
        finish_reason="stop" if said and said[-1] in ends else "length",
        versions=(0, 0),
    )
    return Prompt(f"query[{place}]", tuple(asked), prompt, meta=columns), rollout


def answer(taught: Sequence[Taught]) -> dict[str, Any]:
    """Raises Refused (500) for a reward that JSON has no word for."""
    for place, each in enumerate(taught):
        if not math.isfinite(each.reward):
            raise Refused(500, f"the reward of query[{place}] is {each.reward}: try another --ds.param_dtype.")
    rewards = [each.reward for each in taught]
    logs = {name: [each.terms[name] for each in taught] for name in taught[0].terms} if taught else {}
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}
