"""Agent files that tests/contract/test_agents.py plays on a real engine, and the engine that plays any of them."""

from __future__ import annotations

from collections.abc import Sequence

from served_model import WatchedEngine

from openrlhf_ext.device import Device
from openrlhf_ext.rollout.agents.episode import TurnRequest
from openrlhf_ext.rollout.agents.player import EpisodePlayer
from openrlhf_ext.rollout.agents.settings import AgentSettings
from openrlhf_ext.rollout.engine_start import EngineSettings
from openrlhf_ext.rollout.requests import GenerateRequest, SampledTurn
from openrlhf_ext.types import Rollout

TWO_TURNS = """
from openrlhf_ext.rollout.agents.contract import Agent

class Two(Agent):
    async def play(self, task, talks):
        talk = talks[""]
        talk.tell(task.prompt)
        first = await talk.sample(max_new_tokens=24)
        talk.reward(0.5)
        talk.tell(" Check it: ")
        second = await talk.sample(max_new_tokens=12)
        talk.reward(float(len(second.text)))
        return {"first": first.text, "second": second.text, "cut": second.cut}
"""

# As many turns as a prompt's label says; one of them ends at a stop string.
MANY_TURNS = """
import asyncio
from openrlhf_ext.rollout.agents.contract import Agent

class Many(Agent):
    async def play(self, task, talks):
        talk, said = talks[""], []
        talk.tell(task.prompt)
        for turn in range(1 + task.label % 4):
            said.append((await talk.sample(stop=task.columns["stop"])).text)
            await asyncio.sleep(0.03 * (task.sample % 3))
            talk.tell(f" ({turn}) ")
        return {"said": said}
"""

CHAT = """
from openrlhf_ext.rollout.agents.contract import Agent

class Chat(Agent):
    async def play(self, task, talks):
        talk = talks[""]
        talk.tell_messages([{"role": "user", "content": task.prompt}])
        for _ in range(3):
            await talk.sample()
            talk.tell_messages([{"role": "user", "content": "And then? " * 12}])
"""

TROUBLE = """
import asyncio, os, time
from openrlhf_ext.rollout.agents.contract import Agent

class Trouble(Agent):
    async def play(self, task, talks):
        talk = talks[""]
        talk.tell(task.prompt)
        await talk.sample()
        if task.sample == 0 and task.label == 1:
            await asyncio.sleep(600)
        if task.sample == 0 and task.label == 2:
            raise RuntimeError("the tool broke")
        if task.sample == 0 and task.label == 4:
            time.sleep(600)
        if task.sample == 0 and task.label == 6:
            os._exit(1)
"""


class AgentEngine(WatchedEngine):
    """Plays any file, and keeps what it was asked and what it answered."""

    def __init__(self, settings: EngineSettings, device: Device) -> None:
        super().__init__(settings, device)
        self._before: dict[str, tuple[int, ...]] = {}
        self._answers: list[tuple[tuple[int, ...], SampledTurn]] = []

    def play_file(
        self, path: str, requests: Sequence[GenerateRequest], settings: dict[str, float]
    ) -> tuple[list[Rollout], list[tuple[tuple[int, ...], SampledTurn]]]:
        own, self._player = (
            self._player,
            EpisodePlayer(
                AgentSettings(path, **settings),  # type: ignore[arg-type]
                self.settings.model,
                self,
                self.settings.max_model_len,
            ),
        )
        self._answers.clear()
        try:
            return self.play(requests), self._answers
        finally:
            self._player.close()
            self._player = own
            assert not self._engine.has_unfinished_requests(), "nothing is left in the engine"

    def add_turn(self, turn: TurnRequest) -> None:
        self._before[turn.name] = tuple(turn.tokens)
        super().add_turn(turn)

    def step_turns(self) -> list[SampledTurn]:
        answers = super().step_turns()
        self._answers += [(self._before[answer.name], answer) for answer in answers]
        return answers
