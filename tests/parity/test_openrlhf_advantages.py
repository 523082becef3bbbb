"""From rewards to advantages as openrlhf 0.11.2 does it, on the same tensors: penalties, estimators, coefficient."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from parity_tensors import GROUP, A, B, close

from openrlhf_ext.ops.advantage import ESTIMATORS, AdvantageSettings, advantages
from openrlhf_ext.ops.kl import adapted_kl_coef, approximate_kl
from openrlhf_ext.ops.length_penalty import LengthPenalties, penalised

DISCOUNTED = [("reinforce", 0.95, 1.0), ("gae", 1.0, 0.95), ("gae", 0.97, 0.9)]


def their_advantages(openrlhf, columns, kl_BA, settings):
    """Their whole step, on micro-batches in another order than the prompts, each with its own width."""
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    experiences = []
    for rows in order.split(5):
        width = int(columns.length[rows].max())
        experiences.append(
            openrlhf.Experience(
                index=rows.tolist(),
                rewards=columns.scores[rows],
                action_mask=columns.action[rows, :width],
                values=columns.values[rows, :width],
                kl=kl_BA[rows, :width],
            )
        )
    maker = openrlhf.maker.RemoteExperienceMaker.__new__(openrlhf.maker.RemoteExperienceMaker)
    maker.kl_ctl = SimpleNamespace(value=settings.kl_coef)
    maker.advantage_estimator = settings.estimator
    advantage = SimpleNamespace(
        estimator=settings.estimator,
        gamma=settings.gamma,
        lambd=settings.lambd,
        no_std_norm=not settings.std_norm,
    )
    maker.strategy = SimpleNamespace(
        args=SimpleNamespace(
            algo=SimpleNamespace(advantage=advantage),
            rollout=SimpleNamespace(n_samples_per_prompt=GROUP),
            reward=SimpleNamespace(clip_range=settings.reward_clip),
        )
    )
    advantages_BA, returns_BA = torch.zeros(2, B, A).double()
    for experience in maker.compute_advantages_and_returns(experiences):
        rows, width = torch.tensor(experience.index), experience.advantages.shape[1]
        advantages_BA[rows, :width] = experience.advantages
        returns_BA[rows, :width] = experience.returns
    return advantages_BA * columns.action, returns_BA * columns.action


@pytest.mark.parametrize("std_norm", [True, False])
@pytest.mark.parametrize("clip", [None, (-0.5, 1.0)])
@pytest.mark.parametrize("kl_coef", [0.0, 0.2])
@pytest.mark.parametrize(("estimator", "gamma", "lambd"), [*((name, 1.0, 1.0) for name in ESTIMATORS), *DISCOUNTED])
def test_advantages(openrlhf, columns, estimator, gamma, lambd, kl_coef, clip, std_norm):
    if estimator == "gae":
        # Theirs lets values decay over what stands between two actions; ours goes from action to action.
        first_B = columns.length // 3
        columns.action = (torch.arange(A) >= first_B[:, None]) & (torch.arange(A) < columns.length[:, None])
        columns.values = torch.randn(B, A, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    settings = AdvantageSettings(estimator, gamma, kl_coef, clip, std_norm, lambd)
    kl_BA = approximate_kl(columns.logp, columns.ref_logp)
    group_B = torch.arange(B) // GROUP
    ours = advantages(columns.scores, group_B, columns.action, kl_BA, settings, columns.values)
    theirs = their_advantages(openrlhf, columns, kl_BA, settings)
    close(ours[0], theirs[0])
    close(ours[1], theirs[1])


@pytest.mark.parametrize("stop_properly", [None, 0.0, 0.4, -0.8])
@pytest.mark.parametrize("overlong", [None, (4, 1.0), (8, 2.5)])
def test_length_penalties(openrlhf, columns, overlong, stop_properly):
    buffer, factor = overlong or (None, 1.0)
    truncated_B = columns.length >= 8
    experience = SimpleNamespace(
        rewards=columns.scores.clone(), response_length=columns.length, truncated=truncated_B, info={}
    )
    reward = SimpleNamespace(
        overlong_buffer_len=buffer, overlong_penalty_factor=factor, stop_properly_penalty_coef=stop_properly
    )
    openrlhf.length.apply_length_penalties(
        [experience], SimpleNamespace(reward=reward, rollout=SimpleNamespace(max_new_tokens=A))
    )
    settings = LengthPenalties(
        max_new_tokens=A, overlong_buffer=buffer, overlong_factor=factor, stop_properly=stop_properly
    )
    close(penalised(columns.scores, columns.length, truncated_B, settings), experience.rewards)
    assert (overlong, stop_properly) == (None, None) or not torch.equal(experience.rewards, columns.scores)


def test_the_adaptive_coefficient(openrlhf):
    theirs = openrlhf.kl.AdaptiveKLController(0.2, 6.0, 10000)
    ours = 0.2
    for kl in (1.0, 5.9, 6.1, 40.0, 6.9, 7.5, 0.0):
        theirs.update(kl, 256)
        ours = adapted_kl_coef(ours, kl, target=6.0, horizon=10000, samples=256)
        assert ours == pytest.approx(theirs.value, rel=1e-12)
