"""Episodes and an engine: turns are asked for as episodes come to them, and step on together."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.rollout.agents.episode import (
    Episode,
    ExecutorEpisode,
    LooseTurns,
    Over,
    Rules,
    TalkEpisode,
    TurnRequest,
)
from openrlhf_ext.rollout.agents.process import AgentProcess, ProcessEnded
from openrlhf_ext.rollout.agents.settings import AgentSettings
from openrlhf_ext.rollout.requests import GenerateRequest, SampledTurn
from openrlhf_ext.types import Rollout, RolloutKey, ScoreFailure

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIGN_OF_LIFE_S = (1.0, 5.0)
"""How long the loop of an agent's process may take to notice that an episode is over, before it counts as blocked: as
long as an episode, within these bounds.
"""
LONGEST_WAIT_S = 0.5
PROGRESS_SECONDS = 10.0


class TurnSampler(Protocol):
    """The engine, as episodes need it."""

    @property
    def version(self) -> int: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def add_turn(self, turn: TurnRequest) -> None:
        """It is sampled by the steps that follow. Raises ConfigError or ValueError for what cannot be."""
        ...

    def step_turns(self) -> list[SampledTurn]:
        """One step of all turns; those that ended with it."""
        ...

    def drop_turns(self, names: Sequence[str]) -> None: ...


class EpisodePlayer:
    """The episodes of one agent file on one engine, whose process it keeps.

    An episode that raises, or takes more than its time, has a ScoreFailure for an outcome. If the process dies or its
    loop stands still, all episodes under way have one, and those that follow get a new process.
    """

    def __init__(self, settings: AgentSettings, model: str, sampler: TurnSampler, limit: int) -> None:
        """Starts the process. `model` is the policy's folder; `limit` is the longest talk in tokens."""
        self.settings = settings
        self.limit = limit
        self.sampler = sampler
        self._model = model
        self._numbers = itertools.count(1)  # 0 is nobody's
        self._process: AgentProcess | None = None
        self.process()

    def play(self, requests: Sequence[GenerateRequest], progress: Callable[[int, int], None] | None) -> list[Rollout]:
        """The rollouts of all episodes, episode by episode in the order of the requests.

        Raises ConfigError where the file cannot be imported any more.
        """
        played = _Round(self, requests, progress)
        try:
            return played.run()
        except BaseException:
            played.drop(played.live.values())
            self.close()  # a late message must not be taken for one of the next call's
            raise

    def process(self) -> AgentProcess:
        if self._process is None:
            settings = self.settings
            self._process = AgentProcess(settings.path, self._model, settings.load_timeout_s)
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def new_episode(self, request: GenerateRequest, loose: LooseTurns | None) -> Episode:
        profile = self.process().profile
        given = (next(self._numbers), request, self._rules(request, profile.roles), self.sampler.tokenizer)
        if profile.contract == "own":
            return TalkEpisode(*given, self.sampler.version)
        assert loose is not None
        return ExecutorEpisode(*given, self.sampler.version, shared=loose.record)

    def loose_turns(self, request: GenerateRequest) -> LooseTurns:
        return LooseTurns(0, request, self._rules(request, ("",)), self.sampler.tokenizer, self.sampler.version)

    def _rules(self, request: GenerateRequest, roles: tuple[str, ...]) -> Rules:
        limit = min(request.sampling.max_total_tokens or self.limit, self.limit)
        return Rules(roles, limit, self.settings.max_turns)


class _Round:
    """One call of `play`."""

    def __init__(
        self, player: EpisodePlayer, requests: Sequence[GenerateRequest], progress: Callable[[int, int], None] | None
    ) -> None:
        self.live: dict[int, Episode] = {}
        self._player = player
        self._settings = player.settings
        self._sampler = player.sampler
        self._requests = requests
        self._progress = progress
        self._waiting = deque(requests)
        self._done: dict[RolloutKey, list[Rollout]] = {}
        self._sampling: dict[str, Episode] = {}  # turns in the engine, and whose they are
        self._signs: dict[int, float] = {}  # episodes that were cancelled: when the process is to have noticed
        self._loose = player.loose_turns(requests[0]) if requests else None
        self._sign_of_life = min(max(player.settings.timeout_s, SIGN_OF_LIFE_S[0]), SIGN_OF_LIFE_S[1])

    def run(self) -> list[Rollout]:
        told = time.monotonic()
        while self._waiting or self.live or self._signs:
            self._begin()
            try:
                for message in self._player.process().receive(self._patience()):
                    self._take(message)
                self._watch()
            except ProcessEnded as error:
                self._lose(ScoreFailure("crashed", f"the agent's process ended with {error}"))
            if self._sampling:
                for turn in self._sampler.step_turns():
                    self._answer(turn)
            if self._progress and time.monotonic() - told >= PROGRESS_SECONDS:
                self._progress(len(self._done), len(self._requests))
                told = time.monotonic()
        if self._progress:
            self._progress(len(self._requests), len(self._requests))
        return [rollout for request in self._requests for rollout in self._done[request.key]]

    def drop(self, episodes: Iterable[Episode]) -> None:
        """Forget the turns that the engine is at for them."""
        names = [name for episode in episodes for name in episode.pending]
        if names:
            self._sampler.drop_turns(names)
            for name in names:
                self._sampling.pop(name, None)

    def _begin(self) -> None:
        # A process that has yet to give a sign of life may be at its end.
        while self._waiting and not self._signs and len(self.live) < self._settings.concurrent:
            episode = self._player.new_episode(self._waiting.popleft(), self._loose)
            self.live[episode.number] = episode
            play = {"kind": "play", "episode": episode.number, "task": episode.task, "limits": episode.limits}
            self._player.process().send(play)
            episode.run(time.monotonic())

    def _patience(self) -> float:
        """How long to wait for a message: not at all while the engine has work."""
        if self._sampling:
            return 0.0
        now = time.monotonic()
        ends = [self._settings.timeout_s - episode.seconds(now) for episode in self.live.values()]
        ends += [sign - now for sign in self._signs.values()]
        return max(min([*ends, LONGEST_WAIT_S]), 0.001)

    # --- messages ---------------------------------------------------------------------------

    def _take(self, message: Mapping[str, Any]) -> None:
        kind, number = message["kind"], message["episode"]
        if kind == "cancelled":
            self._signs.pop(number, None)
        elif kind in ("sample", "generate"):
            self._ask(message)
        elif (episode := self.live.get(number)) is None:
            return  # it was over already, for us
        elif kind == "done":
            self._end(episode, episode.finish(message))
        else:
            self._end(episode, episode.fail(ScoreFailure(message["reason"], message["detail"])))

    def _ask(self, message: Mapping[str, Any]) -> None:
        number = message["episode"]
        episode = self._loose if number is None else self.live.get(number)
        try:
            if episode is None:
                raise Over("the episode has ended")
            turn = episode.ask(message)
            try:
                self._sampler.add_turn(turn)
            except (ConfigError, ValueError):
                episode.pending.pop(turn.name)
                raise
        except Over as over:
            self._reply(message["call"], {"over": str(over)})
        except (ConfigError, DataError, ValueError) as error:
            self._reply(message["call"], {"error": str(error)})
        else:
            self._sampling[turn.name] = episode
            self._halt_or_run()

    def _answer(self, turn: SampledTurn) -> None:
        episode = self._sampling.pop(turn.name)
        self._reply(int(turn.name.partition(".")[2]), episode.answer(turn))
        self._halt_or_run()

    def _reply(self, call: int, content: Mapping[str, Any]) -> None:
        self._player.process().send({"kind": "turn", "call": call, **content})

    def _end(self, episode: Episode, rollouts: list[Rollout]) -> None:
        del self.live[episode.number]
        self.drop([episode])
        self._done[episode.request.key] = rollouts

    # --- time -------------------------------------------------------------------------------

    def _halt_or_run(self) -> None:
        """Who waits for the policy spends no time; nobody knows for whom a turn of no episode is."""
        now = time.monotonic()
        loose = self._loose is not None and bool(self._loose.pending)
        for episode in self.live.values():
            if episode.pending or loose:
                episode.halt(now)
            else:
                episode.run(now)

    def _watch(self) -> None:
        now, limit = time.monotonic(), self._settings.timeout_s
        if any(sign < now for sign in self._signs.values()):
            blocked = f"the loop of the agent's process stood still for {self._sign_of_life:g} s after a time limit"
            return self._lose(ScoreFailure("timeout", f"{blocked}, and the process was ended: await what takes long"))
        late = [episode for episode in self.live.values() if episode.seconds(now) > limit]
        for episode in late:
            failure = ScoreFailure("timeout", f"it took more than {limit:g} s (--agent.timeout_s)")
            self._player.process().send({"kind": "cancel", "episode": episode.number})
            self._signs[episode.number] = now + self._sign_of_life
            self._end(episode, episode.fail(failure))
        return None

    def _lose(self, failure: ScoreFailure) -> None:
        """The process is of no more use: what it played has failed, and what comes next gets another."""
        self._player.close()
        for episode in list(self.live.values()):
            self._end(episode, episode.fail(failure))
        if self._loose is not None:
            self.drop([self._loose])
            self._loose.pending.clear()
        self._signs.clear()
