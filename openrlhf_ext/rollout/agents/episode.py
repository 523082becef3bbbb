"""An episode as its engine knows it: what it asks the policy, what the policy said, and what becomes of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from openrlhf_ext.rollout.agents.texts import told_text
from openrlhf_ext.rollout.agents.transcript import Transcript
from openrlhf_ext.rollout.requests import GenerateRequest, SampledTurn
from openrlhf_ext.types import Outcome, Rollout, Sampling, Score, ScoreFailure, derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_REWARD = "environment gave no reward"


class Over(Exception):
    """The policy may not speak again in this episode; the text says why."""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What the engine is asked for; `sampling` has the turn's own limit and stop strings."""

    name: str
    tokens: Sequence[int]
    sampling: Sampling
    seed: int


@dataclass(frozen=True, slots=True)
class Rules:
    """`limit` is the longest talk in tokens; `max_turns` of the policy are in one episode, of all its players."""

    roles: tuple[str, ...]
    limit: int
    max_turns: int


class Episode(ABC):
    """One episode of a request. Its clock stands still while the policy speaks."""

    def __init__(
        self, number: int, request: GenerateRequest, rules: Rules, tokenizer: PreTrainedTokenizerBase, version: int
    ) -> None:
        self.number = number
        self.request = request
        self.pending: dict[str, Any] = {}  # turns that the engine is at, by name
        self._rules = rules
        self._tokenizer = tokenizer
        self._version = version
        self._turns = 0
        self._spent = 0.0
        self._since: float | None = None

    @abstractmethod
    def ask(self, message: Mapping[str, Any]) -> TurnRequest:
        """The turn that a message asks for. Raises Over, or ValueError and DataError for what cannot be asked."""

    @abstractmethod
    def answer(self, turn: SampledTurn) -> dict[str, Any]:
        """Record a turn; what the agent's process is told of it."""

    @abstractmethod
    def finish(self, message: Mapping[str, Any]) -> list[Rollout]:
        """Its rollouts, one for each talk in which the policy spoke."""

    @abstractmethod
    def fail(self, failure: ScoreFailure) -> list[Rollout]:
        """The same where it failed; at least one."""

    @property
    def task(self) -> dict[str, Any]:
        """The fields of a `Task`."""
        prompt, sampling = self.request.prompt, self.request.sampling
        return {
            "prompt": prompt.text,
            "label": prompt.label,
            "columns": dict(prompt.meta),
            "messages": list(prompt.messages),
            "prompt_id": prompt.id,
            "sample": self.request.sample,
            "seed": derive_seed(sampling.seed, prompt.id, self.request.sample, "episode"),
        }

    @property
    def limits(self) -> dict[str, Any]:
        """What an executor of OpenRLHF's is given beside the task."""
        sampling = self.request.sampling
        names = ("temperature", "top_p", "top_k", "min_p", "stop")
        given = {name: getattr(sampling, name) for name in names} | {"max_tokens": sampling.max_new_tokens}
        return {"max_length": self._rules.limit, "sampling": given}

    # --- its clock --------------------------------------------------------------------------

    def run(self, now: float) -> None:
        if self._since is None and not self.pending:
            self._since = now

    def halt(self, now: float) -> None:
        if self._since is not None:
            self._spent += now - self._since
            self._since = None

    def seconds(self, now: float) -> float:
        """What it has taken so far."""
        return self._spent + (now - self._since if self._since is not None else 0.0)

    # --- a turn -----------------------------------------------------------------------------

    def _room(self, tokens: Sequence[int]) -> int:
        """How many tokens may be sampled after these. Raises Over for none."""
        if self._turns >= self._rules.max_turns:
            raise Over(f"the episode has had its {self._rules.max_turns} turns (--agent.max_turns)")
        room = self._rules.limit - len(tokens)
        if room < 1:
            raise Over(f"{len(tokens)} tokens leave no room for another within {self._rules.limit} (--data.max_len)")
        return room

    def _seed(self, role: str, turn: int) -> int:
        request = self.request
        return derive_seed(request.sampling.seed, request.prompt.id, request.sample, turn, role)

    def _rollout(self, talk: Transcript, index: int, outcome: Outcome | ScoreFailure, *, cut: bool = False) -> Rollout:
        roles = self._rules.roles
        return talk.rollout(
            self.request,
            self.request.sample * len(roles) + index,
            roles[index],
            self._tokenizer,
            outcome,
            version=self._version,
            cut=cut,
        )


class TalkEpisode(Episode):
    """Of our own contract: the transcripts are kept here, and the agent's process knows texts only."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.talks = {role: Transcript() for role in self._rules.roles}
        self._asked: Counter[str] = Counter()

    def ask(self, message: Mapping[str, Any]) -> TurnRequest:
        role, sampling = message["role"], self.request.sampling
        talk = self.talks[role]
        text = told_text(self._tokenizer, message["parts"], begun=bool(talk.tokens), end=self._own_end(talk))
        talk.tell(self._encoded(text, talk))
        if not talk.tokens:
            raise ValueError("the policy is to speak and was told nothing: tell or tell_messages comes first")
        room = min(self._room(talk.tokens), sampling.max_new_tokens, message["max_new_tokens"] or math.inf)
        stop = tuple(dict.fromkeys([*sampling.stop, *message["stop"]]))
        turn, name = self._asked[role], f"{self.number}.{message['call']}"
        self._turns, self._asked[role] = self._turns + 1, turn + 1
        self.pending[name] = role
        return TurnRequest(
            name, talk.tokens, replace(sampling, max_new_tokens=int(room), stop=stop), self._seed(role, turn)
        )

    def answer(self, turn: SampledTurn) -> dict[str, Any]:
        self.talks[self.pending.pop(turn.name)].say(turn)
        text = self._tokenizer.decode(list(turn.tokens), skip_special_tokens=True)
        return {"text": text, "cut": turn.finish != "stop"}

    def finish(self, message: Mapping[str, Any]) -> list[Rollout]:
        rollouts = []
        for index, (role, talk) in enumerate(self.talks.items()):
            if talk.ends:
                turns = tuple((talk.ends[turn], value) for turn, value in message["rewards"][role])
                outcome = Outcome(Score(math.fsum(value for _, value in turns)), turns, message["info"])
                rollouts.append(self._rollout(talk, index, outcome, cut=message["over"]))
        return rollouts or self.fail(ScoreFailure("wrong_type", "it ended and the policy had said nothing"))

    def fail(self, failure: ScoreFailure) -> list[Rollout]:
        spoken = [index for index, talk in enumerate(self.talks.values()) if talk.ends]
        talks = list(self.talks.values())
        return [self._rollout(talks[index], index, failure) for index in spoken or [0]]

    def _encoded(self, text: str, talk: Transcript) -> Sequence[int]:
        """Special tokens are those that the text spells, none is added."""
        prompt = self.request.prompt
        if not talk.tokens and text == prompt.text:
            return prompt.token_ids  # the very tokens of the row, also where it was cut to fit
        return self._tokenizer(text, add_special_tokens=False)["input_ids"] if text else ()

    def _own_end(self, talk: Transcript) -> str:
        """The text of the special token by which the policy ended its turn just now, "" without one."""
        last = talk.tokens[-1] if talk.tokens and talk.actions[-1] else None
        if last is None or last not in self._tokenizer.all_special_ids:
            return ""
        return str(self._tokenizer.decode([last], skip_special_tokens=False))


class Record:
    """What was sampled after which tokens, for episodes whose process puts the tokens together itself."""

    def __init__(self) -> None:
        self._turns: dict[tuple[int, ...], list[SampledTurn]] = {}

    def add(self, before: tuple[int, ...], turn: SampledTurn) -> None:
        self._turns.setdefault(before, []).append(turn)

    def find(self, before: Sequence[int], tokens: Sequence[int]) -> SampledTurn | None:
        """The turn that began with these tokens after those."""
        for turn in self._turns.get(tuple(before), ()):
            if turn.tokens[: len(tokens)] == tuple(tokens):
                return turn
        return None


class ExecutorEpisode(Episode):
    """Of OpenRLHF's contract: its process says which tokens are actions, and is held to what was sampled.

    Turns that were asked for by a thread without an episode (a server that the file started) are in `shared`.
    """

    def __init__(self, *given: Any, shared: Record | None = None) -> None:
        super().__init__(*given)
        self.record = Record()
        self._shared = shared or Record()

    def ask(self, message: Mapping[str, Any]) -> TurnRequest:
        tokens, wanted = tuple(message["tokens"]), message["sampling"]
        if not tokens:
            raise ValueError("the policy is to speak after no token at all")
        room = min(self._room(tokens), wanted["max_tokens"] or math.inf)
        name = f"{self.number}.{message['call']}"
        changed = {key: wanted[key] for key in ("temperature", "top_p", "top_k", "min_p") if wanted[key] is not None}
        sampling = replace(self.request.sampling, **changed, max_new_tokens=int(room), stop=tuple(wanted["stop"]))
        self.pending[name] = (tokens, bool(wanted["skip_special_tokens"]), message["logprobs"])
        self._turns += 1
        return TurnRequest(name, tokens, sampling, self._turn_seed(tokens))

    def answer(self, turn: SampledTurn) -> dict[str, Any]:
        before, plain, wants_logprobs = self.pending.pop(turn.name)
        self.record.add(before, turn)
        reply = {"tokens": turn.tokens, "text": self._text(turn, plain), "finish": turn.finish}
        return reply | ({"logprobs": turn.logprobs} if wants_logprobs else {})

    def finish(self, message: Mapping[str, Any]) -> list[Rollout]:
        talk, tokens, done = Transcript(), message["tokens"], 0
        for start, end in message["ranges"]:
            turn = self._found(tokens, start, end) if done <= start < end <= len(tokens) else None
            if turn is None:
                wrong = f"the tokens {start} to {end} that it calls an action are not what the policy said there"
                return self.fail(ScoreFailure("wrong_type", wrong))
            talk.tell(tokens[done:start])
            talk.say(turn, end - start)
            done = end
        if not talk.ends:
            return self.fail(ScoreFailure("wrong_type", "it ended and the policy had said nothing"))
        return [self._rollout(talk, 0, _outcome(talk, message), cut=message["truncated"])]

    def fail(self, failure: ScoreFailure) -> list[Rollout]:
        return [self._rollout(Transcript(), 0, failure)]

    def _found(self, tokens: Sequence[int], start: int, end: int) -> SampledTurn | None:
        before, said = tokens[:start], tokens[start:end]
        return self.record.find(before, said) or self._shared.find(before, said)

    def _turn_seed(self, tokens: tuple[int, ...]) -> int:
        return self._seed("", self._turns - 1)

    def _text(self, turn: SampledTurn, plain: bool) -> str:
        """As vLLM gives it: without the end-of-sequence token or the stop string that ended it."""
        ended = turn.finish == "stop" and turn.stop is None
        kept = turn.tokens[:-1] if ended else turn.tokens
        text = str(self._tokenizer.decode(list(kept), skip_special_tokens=plain))
        return text[: text.rfind(turn.stop)] if turn.stop and turn.stop in text else text


class LooseTurns(ExecutorEpisode):
    """Not an episode: what threads of no episode ask. Seeds depend on the tokens, and on how often they came."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._times: Counter[tuple[int, ...]] = Counter()

    def _room(self, tokens: Sequence[int]) -> int:
        self._turns = 0  # of many episodes
        return super()._room(tokens)

    def _turn_seed(self, tokens: tuple[int, ...]) -> int:
        self._times[tokens] += 1
        return derive_seed(self.request.sampling.seed, repr(tokens), self._times[tokens])


def _outcome(talk: Transcript, message: Mapping[str, Any]) -> Outcome:
    """Rewards fall at the steps where the executor told them apart, else at the last turn."""
    reward, steps = message["reward"], message["step_rewards"]
    if reward is None:
        return Outcome(Score(0.0, message["logs"], message["scores"], {"environment": NO_REWARD}))
    score = Score(reward, message["logs"], message["scores"])
    if len(steps) == len(talk.ends) and math.isclose(sum(steps), reward, abs_tol=1e-6):
        return Outcome(score, tuple(zip(talk.ends, steps, strict=True)))
    return Outcome(score, ((talk.ends[-1], reward),))
