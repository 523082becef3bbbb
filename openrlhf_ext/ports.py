"""The whole contract between the algorithms and the machinery.

The drivers in `trainers/` speak to these Protocols only; `cluster/` implements them on Ray,
`tests/driver` in memory. `TrainEngine` is what one rank of a worker group runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from openrlhf_ext.batch.types import Denominators, MicroBatch, OptimizerStep, TokenBatch
from openrlhf_ext.track.rollouts import RecordedStep
from openrlhf_ext.types import Prompt, Report, Rollout, Sampling, Score, ScoreFailure


class Generator(Protocol):
    """Samples from the policy."""

    @property
    def version(self) -> int:
        """The weight version that the next tokens are sampled with."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        """`sampling.n` rollouts of each prompt, in the order of the prompts and samples.

        The same prompts, sampling and weights give the same tokens, however the requests
        are spread over engines.
        """
        ...


class RewardFn(Protocol):
    """Scores groups: the siblings of one prompt are the unit, a batch of them is one call."""

    def score(self, groups: Sequence[tuple[Prompt, Sequence[Rollout]]]) -> list[list[Score] | ScoreFailure]:
        """For each group its scores in order, or why the group could not be scored.

        Under `on_error abort` a failure raises RewardError instead.
        """
        ...

    def take_report(self) -> Report:
        """What scoring cost since the last call (retries, tokens and seconds of a judge), by the metrics' full names.

        Called by the thread that scores.
        """
        ...


class LogprobRole(Protocol):
    """A frozen model that knows log-probabilities (the reference)."""

    def logprobs(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        """(B, A) float32 on the CPU; zero where `batch.action_BA` is False."""
        ...


class MixedReference(Protocol):
    """A reference that follows the policy: beside being asked, it is moved, and is part of a checkpoint."""

    def mix(self, mixup: float) -> None:
        """reference <- (1 - mixup) * reference + mixup * policy, each weight (TR-DPO, Gorbatovski et al. 2024,
        arXiv:2404.09656, eq. 4, whose alpha this is)."""
        ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None:
        """What `save` wrote, bit for bit."""
        ...


class TrainRole(Protocol):
    """A model in training, on however many ranks."""

    @property
    def ranks(self) -> int:
        """How many shards an optimizer step must have."""
        ...

    def update(self, steps: Sequence[OptimizerStep], objective: Objective) -> Report:
        """Take these optimizer steps of the objective in order; the report is merged over steps and ranks."""
        ...

    def save(self, folder: Path) -> None:
        """Weights, optimizer, scheduler and RNG of every rank, resumable bit for bit."""
        ...

    def load(self, folder: Path) -> None: ...

    def export(self, folder: Path) -> None:
        """A Hugging Face folder (safetensors, config, tokenizer)."""
        ...


class PolicyRole(TrainRole, LogprobRole, Protocol):
    """The policy: in training, and the engines sample from it."""

    def publish(self, version: int) -> Report:
        """Give the engines the present weights; the generator's version is `version` afterwards."""
        ...


class SupervisedRole(TrainRole, Protocol):
    """A model that learns from rows that are there, and is asked about others."""

    def logprobs(self, batch: TokenBatch, temperature: float = 1.0, *, adapters: bool = True) -> Tensor:
        """(B, A) as of a LogprobRole. `adapters` False: as the model was before its adapters learned anything."""
        ...

    def scores(self, batch: TokenBatch) -> Tensor:
        """(B, H) float32 on the CPU: what the head of a preference model says at each row's last token."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, *, end: int, rows: int
    ) -> list[list[int]]:
        """The tokens after each prompt, in order, up to and with `end` or another token at which the model ends; each
        answer by its own seed. A rank answers `rows` at a time. The state of training is as before."""
        ...

    def export_adapters(self, folder: Path) -> None:
        """The adapters without their base, as peft writes them."""
        ...


class CriticRole(TrainRole, Protocol):
    """Knows what return to expect, and learns it."""

    def values(self, batch: TokenBatch) -> Tensor:
        """(B, A) float32 on the CPU: the return expected before each action; zero off actions."""
        ...


class Recorder(Protocol):
    """Where rollouts are kept."""

    def write(self, step: int, recorded: RecordedStep) -> None:
        """Keep what became of this step's prompts. It may be under way until `settle`.

        Raises DataError for what cannot be written, if not now then at the next call.
        """
        ...

    def settle(self) -> None:
        """Wait until everything is there."""
        ...


class Tracker(Protocol):
    """Where metrics go."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class ModelOutput(NamedTuple):
    """What a model says of a micro-batch: log-probs of its tokens, and entropies where asked for.

    A tuple, because DeepSpeed looks for the tensors of an output in tuples, lists and dicts only.
    """

    logp_BA: Tensor  # float32, zero off actions, differentiable in training
    entropy_BA: Tensor | None = None


class ValueOutput(NamedTuple):
    """What a critic says of a micro-batch."""

    value_BA: Tensor  # float32, zero off actions, differentiable in training


class ScoreOutput(NamedTuple):
    """What a reward model says of each row of a micro-batch at its last token: the H numbers of its head, mostly 1."""

    score_BH: Tensor  # float32, differentiable in training


class Objective(Protocol):
    """A loss, as a picklable value: the driver makes it, the ranks run it."""

    @property
    def temperature(self) -> float:
        """What the logits are divided by before log-probs and entropies are taken."""
        ...

    @property
    def needs_entropy(self) -> bool:
        """Whether it reads `ModelOutput.entropy_BA`."""
        ...

    def __call__(self, output: Any, micro: MicroBatch, denominators: Denominators) -> tuple[Tensor, Report]:
        """The loss, already divided by the global denominators, so that shards simply add up.

        `output` is what the model of the role answers: ModelOutput, ValueOutput or ScoreOutput.
        """
        ...


class TrainEngine(Protocol):
    """One rank of a model under some sharding."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def forward(self, micro: MicroBatch, temperature: float = 1.0, *, adapters: bool = True) -> Tensor:
        """The model's answer without gradient, float32 on the CPU: (B, A) log-probs or values, or (B, H) scores.

        `adapters` False: as the model was before its adapters learned anything (the reference of a LoRA policy).
        """
        ...

    def forward_backward(self, micro: MicroBatch, objective: Objective, denominators: Denominators) -> Report:
        """Accumulate the gradient of the objective (summed, not averaged, over micro-batches and ranks)."""
        ...

    def step(self) -> Report:
        """Clip, take the optimizer step, advance the schedule; reports `grad_norm` and `lr`."""
        ...

    def save(self, folder: Path, client_state: Mapping[str, Any] | None = None) -> None: ...

    def load(self, folder: Path) -> Mapping[str, Any]:
        """Restore what `save` wrote; returns its client state. Raises DataError if it does not fit."""
        ...

    def export_weights(self, bucket_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
        """Full weights under their Hugging Face names, in buckets of about that size.

        Collective: every rank iterates to the end and sees the full tensors, valid until the next
        bucket. Tied weights are given once (the embedding's name, not the head's).
        """
        ...

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder (rank 0; collective)."""
        ...

    def export_adapters(self, folder: Path) -> None:
        """Write the adapters, and a head that was trained with them, as peft does (rank 0; collective)."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, *, end: int, rows: int
    ) -> list[list[int]]:
        """Of this rank's weights alone, as of a SupervisedRole. Not where parameters are sharded (stage 3)."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """What every rank brought, in their order. Collective."""
        ...
