"""The reward of a teacher: how well a student who read its explanation knows the solution, and how natural it was.

Reinforcement-Learned Teachers (Cetin, Zhao, Tang 2025, arXiv:2506.08388, section 3): with reductions red over tokens,

    reward =   sum_k a_k red_k( log p_student(solution | question, explanation) )
             - sum_k b_k red_k( log p_teacher(explanation | question, solution)
                                - log p_student(explanation | question) )
             + match

S solution tokens, E explanation tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


def _quantile(part: float) -> Callable[[Tensor], Tensor]:
    """Between two values it lies on the line that joins them, as in numpy."""
    return lambda values_N: torch.quantile(values_N, part)


REDUCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "min": torch.min,
    "max": torch.max,
    "median": _quantile(0.5),
    "quartile1": _quantile(0.25),
    "quartile3": _quantile(0.75),
}


@dataclass(frozen=True, slots=True)
class RewardTerms:
    """The weights: (reduction, a_k) of the solution, (reduction, b_k) of the divergence, and what missing tags cost.

    `missing` is the match of an answer without its tags; that of one with them is 0.
    """

    solution: tuple[tuple[str, float], ...] = (("mean", 1.0), ("min", 0.01))
    divergence: tuple[tuple[str, float], ...] = (("mean", 3.0), ("max", 0.03))
    missing: float = -1.0

    def __post_init__(self) -> None:
        assert {name for name, _ in (*self.solution, *self.divergence)} <= REDUCTIONS.keys(), "a known reduction"


def reduced(values_N: Tensor, reduction: str) -> float:
    """One number of the values of N tokens, in nats; 0 where there is no token."""
    return float(REDUCTIONS[reduction](values_N.double())) if values_N.numel() else 0.0


def student_reward(
    solution_logp_S: Tensor, teacher_logp_E: Tensor, student_logp_E: Tensor, *, matched: bool, terms: RewardTerms
) -> tuple[float, dict[str, float]]:
    """The reward of one explanation, and its parts by name, before their weights: `solution_mean`, `match`, ...

    The log-probs of the teacher and of the student are of the same E tokens. No token: each of its terms is 0.
    """
    assert teacher_logp_E.shape == student_logp_E.shape, "the same tokens in both contexts"
    divergence_E = teacher_logp_E.double() - student_logp_E.double()
    solution = {name: reduced(solution_logp_S, name) for name, _ in terms.solution}
    divergence = {name: reduced(divergence_E, name) for name, _ in terms.divergence}
    match = 0.0 if matched else terms.missing
    reward = match
    reward += sum(weight * solution[name] for name, weight in terms.solution)
    reward -= sum(weight * divergence[name] for name, weight in terms.divergence)
    parts = {f"solution_{name}": value for name, value in solution.items()}
    parts |= {f"divergence_{name}": value for name, value in divergence.items()}
    return reward, parts | {"match": match}
