"""A run of the RL driver over the in-memory ports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from fakes import (
    PAD,
    BigramCritic,
    BigramGenerator,
    BigramMixed,
    BigramPolicy,
    BigramReference,
    CountingReward,
    MemoryTracker,
    SilentLine,
    prompts,
)

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.condition import Condition
from openrlhf_ext.data.source import PromptSource
from openrlhf_ext.evaluation.generation import evaluate_generation
from openrlhf_ext.ops.advantage import AdvantageSettings
from openrlhf_ext.track.checkpoints import CheckpointStore
from openrlhf_ext.track.rollouts import RecordedStep, RolloutFiles, read_step, rollout_path
from openrlhf_ext.trainers.journal import Cadence, Journal
from openrlhf_ext.trainers.rl import train_rl
from openrlhf_ext.trainers.settings import RLRoles, RLSettings
from openrlhf_ext.types import Prompt, Sampling, ScoreFailure

SETTINGS = RLSettings(
    seed=7,
    pad_id=PAD,
    sampling=Sampling(n=4, max_new_tokens=6),
    split=SplitSettings(rows=3),
    batch_size=64,
    advantage=AdvantageSettings(estimator="reinforce_baseline"),
)


@dataclass
class Job:
    """One run of the driver in `folder`; its ports are built anew at every `run`, as after a kill."""

    folder: Path
    settings: RLSettings = SETTINGS
    prompts: int = 8
    prompt_batch: int = 4
    round_size: int | None = None
    episodes: int = 2
    cadence: Cadence = field(default_factory=Cadence)
    reference: bool = False
    failing: dict[str, ScoreFailure] = field(default_factory=dict)
    generator: type[BigramGenerator] = BigramGenerator
    reward: type[CountingReward] = CountingReward
    evaluates: bool = False
    during_update: Callable[[], None] = lambda: None
    during_generate: Callable[[Prompt, int], None] | None = None
    lr: float = 1.0
    stop: Callable[[], bool] = lambda: False
    until: Condition | None = None

    def run(self, resume: bool = False) -> int:
        self.calls: list[str] = []
        self.tracker = MemoryTracker()
        self.line = SilentLine()
        generator = self.generator(self.calls, partial=self.settings.partial, during=self.during_generate)
        self.policy = BigramPolicy(generator, self.calls, lr=self.lr, during_update=self.during_update)
        self.critic = BigramCritic(self.calls) if self.settings.value_objective else None
        reward = self.reward(self.calls, self.failing)
        reference = BigramReference(self.calls) if self.reference else None
        mixed = BigramMixed(reference, self.policy, self.calls) if reference and self.settings.ref_every else None
        source = PromptSource(
            prompts(self.prompts),
            batch_size=self.prompt_batch,
            round_size=self.round_size,
            episodes=self.episodes,
            seed=7,
        )
        self.store = CheckpointStore(self.folder / "ckpt")

        def evaluate(step: int) -> dict[str, float]:
            held_out = prompts(16, source="held_out")
            sampling = replace(self.settings.sampling, seed=99)
            with reward.alone():  # an evaluation uses it too, and not while another does
                return evaluate_generation(held_out, generator, CountingReward([]), sampling).metrics()

        journal = Journal(
            self.cadence,
            tracker=self.tracker,
            line=self.line,
            store=self.store,
            evaluate=evaluate if self.evaluates else None,
            stop=self.stop,
            until=self.until,
        )
        return train_rl(
            self.settings,
            source,
            RLRoles(generator, reward, self.policy, reference, self.critic, mixed),
            journal,
            recorder=RolloutFiles(self.folder / "rollouts"),
            resume=self.store.latest() if resume else None,
        )

    def recorded(self) -> list[RecordedStep]:
        """What became of every step's prompts, from the first step on."""
        files = sorted((self.folder / "rollouts").glob("step-*.parquet"))
        assert files == [rollout_path(self.folder / "rollouts", step) for step in range(1, len(files) + 1)]
        return [read_step(file) for file in files]

    @property
    def saved_steps(self) -> list[int]:
        """The step of every save of a synchronous run, also of those that were pruned since."""
        before = [self.calls[:i] for i, call in enumerate(self.calls) if call == "save"]
        return [calls.count("score") for calls in before]

    @property
    def trace(self) -> list[tuple[int, dict[str, float]]]:
        """What was logged, clocks aside."""
        clocks = ("seconds/", "tokens_per_second/")
        return [
            (step, {k: v for k, v in values.items() if not k.startswith(clocks)}) for step, values in self.tracker.lines
        ]

    def metric(self, name: str) -> list[float]:
        return [values[name] for _, values in self.tracker.lines if name in values]
