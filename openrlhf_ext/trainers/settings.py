"""What the RL driver decides by, and who does the work."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.ops.advantage import ESTIMATORS, AdvantageSettings
from openrlhf_ext.ops.kl import adapted_kl_coef
from openrlhf_ext.ops.length_penalty import LengthPenalties
from openrlhf_ext.ports import CriticRole, Generator, LogprobRole, MixedReference, PolicyRole, RewardFn
from openrlhf_ext.trainers.objectives import PolicyObjective, ValueObjective
from openrlhf_ext.types import Report, RolloutGroup, Sampling


@dataclass(frozen=True, slots=True)
class RLSettings:
    """`advantage.kl_coef` weighs a KL in the reward, `objective.kl_coef` one in the loss: at most one of them is
    above 0. It is where the coefficient begins: with `kl_target` every step moves it.

    `max_lag` is how many steps generation may run ahead of training; 0 is the synchronous run. Weights are published
    between generations, unless `partial`: then an answer may be begun with one version and ended with another.
    """

    seed: int
    pad_id: int
    sampling: Sampling  # its seed is replaced at every step
    split: SplitSettings  # of training micro-batches; its ranks are those of the role
    batch_size: int  # rollouts of one optimizer step
    objective: PolicyObjective = field(default_factory=PolicyObjective)
    value_objective: ValueObjective | None = None  # where there is a critic
    freezing_steps: int = 0  # the first steps, in which the critic learns alone
    epochs: int = 1  # passes over each step's rollouts
    advantage: AdvantageSettings = field(default_factory=AdvantageSettings)
    length_penalties: LengthPenalties | None = None
    filter_range: tuple[float, float] | None = None  # groups whose mean is not between them are replaced
    kl_estimator: str = "k1"
    kl_target: float | None = None  # nats per token
    kl_horizon: int = 10_000  # rollouts
    ref_every: int = 0  # steps between two of which the reference follows the policy; 0: it never does
    ref_mixup: float = 0.9  # part of the policy in it then
    max_lag: int = 0
    partial: bool = False

    def __post_init__(self) -> None:
        assert min(self.freezing_steps, self.max_lag) >= 0
        assert not (self.kl_in_reward and self.objective.kl_coef > 0.0), "a KL in the reward or in the loss"
        assert self.kl_target is None or self.kl_coef > 0.0, "a coefficient of 0 stays 0"
        assert not self.partial or self.max_lag, "without lag nothing is in flight when weights are published"
        critic = self.value_objective is not None
        assert critic or not ESTIMATORS[self.advantage.estimator].needs_values, "this estimator needs a critic"
        assert critic or not self.freezing_steps, "without a critic nobody would learn"

    @property
    def kl_in_reward(self) -> bool:
        return self.advantage.kl_coef > 0.0

    @property
    def kl_coef(self) -> float:
        """Of the KL, wherever it is."""
        return self.advantage.kl_coef or self.objective.kl_coef

    def with_kl_coef(self, coef: float) -> RLSettings:
        """The same with another coefficient in the place where there is one."""
        if self.kl_in_reward:
            return replace(self, advantage=replace(self.advantage, kl_coef=coef))
        return replace(self, objective=replace(self.objective, kl_coef=coef))

    def adapted(self, report: Report, rollouts: int) -> RLSettings:
        """For the next step: the KL's coefficient, moved by the KL that was measured over so many rollouts."""
        if self.kl_target is None or "policy/kl" not in report:
            return self
        observed = report["policy/kl"].value
        return self.with_kl_coef(
            adapted_kl_coef(self.kl_coef, observed, target=self.kl_target, horizon=self.kl_horizon, samples=rollouts)
        )

    def optimizer_steps(self, rollouts: int) -> int:
        """Optimizer steps that so many rollouts give."""
        return math.ceil(rollouts / self.batch_size) * self.epochs

    def reference_follows(self, step: int) -> bool:
        """Whether the reference moves towards the policy after this step."""
        return self.ref_every > 0 and step % self.ref_every == 0

    def keeps(self, group: RolloutGroup) -> bool:
        """Whether dynamic filtering keeps this group: its mean is strictly within the range (DAPO: Yu et al. 2025,
        arXiv:2503.14476, eq. 11). It looks at the scores' `filter_value`s, or at the rewards where there are none.

        In a game the mean is that of each role by itself, and one role within the range keeps the group: what one
        player wins the other may lose, so that a mean over both would say nothing.
        """
        if self.filter_range is None:
            return True
        low, high = self.filter_range
        for scores in group.scores_by_role().values():
            values = [score.value if score.filter_value is None else score.filter_value for score in scores]
            if low < sum(values) / len(values) < high:
                return True
        return False


@dataclass(frozen=True, slots=True)
class RLRoles:
    """Who does the work. The reference is there where a KL is asked for, in the reward or in the loss; the critic
    where the settings have an objective for it. `mixed` is the reference again, where it follows the policy.
    """

    generator: Generator
    reward: RewardFn
    policy: PolicyRole
    reference: LogprobRole | None = None
    critic: CriticRole | None = None
    mixed: MixedReference | None = None
