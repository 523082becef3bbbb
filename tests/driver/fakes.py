"""Our ports in memory: a bigram softmax policy and a critic that really learn, and the log of who was called when.

The policy's whole state is a table of logits: the next token depends on the last one alone; the critic's is a value
for each last token. So the loops run in milliseconds, and every number that a real model would give (log-probs,
gradients, checkpoints) is real. Who must not be used by two threads at once says so when it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.types import Denominators, MicroBatch, OptimizerStep, TokenBatch
from openrlhf_ext.ports import ModelOutput, Objective, ValueOutput
from openrlhf_ext.trainers.local import LocalRole
from openrlhf_ext.types import (
    Metric,
    Prompt,
    Report,
    Rollout,
    Sampling,
    Score,
    ScoreFailure,
    derive_seed,
)

VOCABULARY = 6
EOS = 0
GOOD = 3  # the token that the reward pays for
PAD = 0


def prompts(count: int, source: str = "default") -> list[Prompt]:
    return [Prompt(f"{source}-{i}", (1 + i % 4, 5), f"prompt {i}", label=i, source=source) for i in range(count)]


class OneCaller:
    """A room for one: a second thread in it is a mistake."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        assert self._lock.acquire(blocking=False), "two callers at once"
        try:
            yield
        finally:
            self._lock.release()


class BigramEngine:
    """A `TrainEngine` of one rank: SGD with momentum on a table of logits."""

    rank = 0
    world_size = 1

    def __init__(self, lr: float = 1.0, seed: int = 0) -> None:
        table = torch.randn(self.shape(), generator=torch.Generator().manual_seed(seed)) * 0.1
        self.table = torch.nn.Parameter(table)
        self._optimizer = torch.optim.SGD([self.table], lr=lr, momentum=0.5)

    def shape(self) -> tuple[int, ...]:
        return (VOCABULARY, VOCABULARY)

    def _logp(self, micro: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
        logp_BAV = (self.table[micro.tokens_BT[:, :-1]] / temperature).log_softmax(-1)
        logp_BA = logp_BAV.gather(-1, micro.tokens_BT[:, 1:, None]).squeeze(-1)
        return logp_BA.where(micro.action_BA, 0.0), logp_BAV

    def forward(self, micro: MicroBatch, temperature: float = 1.0, *, adapters: bool = True) -> Tensor:
        with torch.no_grad():
            return self._logp(micro, temperature)[0]

    def forward_backward(self, micro: MicroBatch, objective: Objective, denominators: Denominators) -> Report:
        logp_BA, logp_BAV = self._logp(micro, objective.temperature)
        entropy_BA = None
        if objective.needs_entropy:
            entropy_BA = (-(logp_BAV.exp() * logp_BAV).sum(-1)).where(micro.action_BA, 0.0)
        loss, report = objective(ModelOutput(logp_BA, entropy_BA), micro, denominators)
        loss.backward()
        return report

    def step(self) -> Report:
        assert self.table.grad is not None
        norm = float(self.table.grad.norm())
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {"grad_norm": Metric(norm), "lr": Metric(self._optimizer.param_groups[0]["lr"], reduction="last")}

    def save(self, folder: Path, client_state: Mapping[str, Any] | None = None) -> None:
        folder.mkdir(parents=True)
        torch.save({"table": self.table.data, "optimizer": self._optimizer.state_dict()}, folder / "rank0.pt")

    def load(self, folder: Path) -> Mapping[str, Any]:
        saved = torch.load(folder / "rank0.pt")
        self.table.data.copy_(saved["table"])
        self._optimizer.load_state_dict(saved["optimizer"])
        return {}

    def export_weights(self, bucket_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
        yield [("table", self.table.data)]

    def export(self, folder: Path) -> None:
        self.save(folder)


class ValueEngine(BigramEngine):
    """The critic: a value for each last token."""

    def shape(self) -> tuple[int, ...]:
        return (VOCABULARY,)

    def _values(self, micro: MicroBatch) -> Tensor:
        return self.table[micro.tokens_BT[:, :-1]].where(micro.action_BA, 0.0)

    def forward(self, micro: MicroBatch, temperature: float = 1.0, *, adapters: bool = True) -> Tensor:
        with torch.no_grad():
            return self._values(micro)

    def forward_backward(self, micro: MicroBatch, objective: Objective, denominators: Denominators) -> Report:
        loss, report = objective(ValueOutput(self._values(micro)), micro, denominators)
        loss.backward()
        return report


class BigramGenerator:
    """Samples token by token; each request draws from a seed of its own, whoever its neighbours are.

    `during` is called before every answer and in its middle; weights that are published meanwhile (which only a
    `partial` run may do) count from the next token on.
    """

    def __init__(
        self, calls: list[str], *, partial: bool = False, during: Callable[[Prompt, int], None] | None = None
    ) -> None:
        self.version = -1
        self.alone = OneCaller()
        self._partial = partial
        self._during = during or (lambda prompt, seed: None)
        self._table = torch.zeros(VOCABULARY, VOCABULARY)
        self._calls = calls

    def publish(self, table: Tensor, version: int) -> None:
        if self._partial:
            self._table, self.version = table, version
        else:
            with self.alone():
                self._table, self.version = table, version

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        with self.alone():
            self._calls.append(f"generate {len(prompts)}x{sampling.n}")
            return [[self._sample(prompt, i, sampling) for i in range(sampling.n)] for prompt in prompts]

    def _sample(self, prompt: Prompt, sample: int, sampling: Sampling) -> Rollout:
        self._during(prompt, sampling.seed)
        draws = torch.Generator().manual_seed(derive_seed(sampling.seed, prompt.id, sample))
        tokens, logprobs, versions = list(prompt.token_ids), [0.0] * len(prompt.token_ids), [self.version]
        while tokens[-1] != EOS and len(tokens) < len(prompt.token_ids) + sampling.max_new_tokens:
            if len(tokens) == len(prompt.token_ids) + 1:
                self._during(prompt, sampling.seed)
            table, version = self._table, self.version
            row = (table[tokens[-1]] / sampling.temperature).log_softmax(-1)
            token = int(torch.multinomial(row.exp(), 1, generator=draws))
            tokens.append(token)
            logprobs.append(float(row[token]))
            versions.append(version)
        response = tokens[len(prompt.token_ids) :]
        return Rollout(
            prompt_id=prompt.id,
            sample=sample,
            token_ids=tuple(tokens),
            action_mask=(False,) * len(prompt.token_ids) + (True,) * len(response),
            logprobs=tuple(logprobs),
            text=" ".join(map(str, response)),
            finish_reason="stop" if tokens[-1] == EOS else "length",
            versions=(min(versions), max(versions)),
        )


class BigramPolicy(LocalRole):
    """The policy: one process, one rank, publishing to the generator."""

    def __init__(
        self,
        generator: BigramGenerator,
        calls: list[str],
        *,
        lr: float = 1.0,
        during_update: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine = BigramEngine(lr)
        super().__init__(self.engine, SplitSettings(rows=4))
        self.updates: list[list[OptimizerStep]] = []
        self._generator = generator
        self._calls = calls
        self._during_update = during_update

    def logprobs(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        self._calls.append("policy.logprobs")
        return super().logprobs(batch, temperature)

    def update(self, steps: Sequence[OptimizerStep], objective: Objective) -> Report:
        self._calls.append(f"update {len(steps)}")
        self._during_update()
        self.updates.append(list(steps))
        return super().update(steps, objective)

    def publish(self, version: int) -> Report:
        self._calls.append(f"publish {version}")
        self._generator.publish(self.engine.table.data.clone(), version)
        return {}

    def save(self, folder: Path) -> None:
        self._calls.append("save")
        super().save(folder)

    def load(self, folder: Path) -> None:
        self._calls.append("load")
        super().load(folder)


class BigramCritic(LocalRole):
    """Knows what return to expect."""

    def __init__(self, calls: list[str], *, lr: float = 1.0) -> None:
        self.engine = ValueEngine(lr, seed=2)
        super().__init__(self.engine, SplitSettings(rows=4))
        self.updates: list[list[OptimizerStep]] = []
        self._calls = calls

    def values(self, batch: TokenBatch) -> Tensor:
        self._calls.append("critic.values")
        return super().logprobs(batch)

    def update(self, steps: Sequence[OptimizerStep], objective: Objective) -> Report:
        self._calls.append(f"critic.update {len(steps)}")
        self.updates.append(list(steps))
        return super().update(steps, objective)

    def save(self, folder: Path) -> None:
        self._calls.append("critic.save")
        super().save(folder)

    def load(self, folder: Path) -> None:
        self._calls.append("critic.load")
        super().load(folder)


class BigramReference(LocalRole):
    """A frozen model of the same shape."""

    def __init__(self, calls: list[str], seed: int = 1) -> None:
        self.engine = BigramEngine(seed=seed)
        super().__init__(self.engine, SplitSettings(rows=4))
        self._calls = calls

    def logprobs(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        self._calls.append("reference.logprobs")
        return super().logprobs(batch, temperature)


class BigramMixed:
    """A `MixedReference`: that reference, which follows the policy."""

    def __init__(self, reference: BigramReference, policy: BigramPolicy, calls: list[str]) -> None:
        self._table, self._policy, self._calls = reference.engine.table, policy, calls

    def mix(self, mixup: float) -> None:
        self._calls.append("mix")
        self._table.data.mul_(1.0 - mixup).add_(self._policy.engine.table.data, alpha=mixup)

    def save(self, folder: Path) -> None:
        folder.mkdir()
        torch.save(self._table.data, folder / "table.pt")

    def load(self, folder: Path) -> None:
        self._table.data.copy_(torch.load(folder / "table.pt"))


class CountingReward:
    """The share of GOOD tokens in the answer; prompts in `failing` cannot be scored. `marks` are for the filter."""

    marks: Callable[[Prompt], float] | None = None

    def __init__(self, calls: list[str], failing: Mapping[str, ScoreFailure] | None = None) -> None:
        self._calls = calls
        self._failing = failing or {}
        self.alone = OneCaller()

    def score(self, groups: Sequence[tuple[Prompt, Sequence[Rollout]]]) -> list[list[Score] | ScoreFailure]:
        self._calls.append("score")
        with self.alone():
            return [
                self._failing.get(prompt.id) or [self._one(prompt, rollout) for rollout in siblings]
                for prompt, siblings in groups
            ]

    def take_report(self) -> Report:
        return {}

    def _one(self, prompt: Prompt, rollout: Rollout) -> Score:
        actions = rollout.token_ids[rollout.action_mask].tolist()
        share = actions.count(GOOD) / len(actions)
        mark = None if self.marks is None else self.marks(prompt)
        return Score(share, {"share": share, "length": float(len(actions))}, mark)


class MemoryTracker:
    """A `Tracker` that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append((step, dict(values)))

    def close(self) -> None: ...


class SilentLine:
    """A progress line that shows nothing and remembers its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def update(self, step: int, values: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)
