from __future__ import annotations

import pickle

import pytest
import torch

from openrlhf_ext.batch.types import Denominators, MicroBatch
from openrlhf_ext.ops.policy_loss import PolicyLossSettings
from openrlhf_ext.ports import ModelOutput
from openrlhf_ext.trainers.objectives import PolicyObjective, SftObjective, mismatch_report
from openrlhf_ext.types import merge_reports

B, A = 4, 5


def micro_batch(seed: int = 0, old: bool = True) -> tuple[MicroBatch, torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    action_BA = torch.arange(A) < torch.tensor([5, 3, 1, 4])[:, None]

    def column(scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(B, A, generator=draws) * scale).where(action_BA, 0.0)

    logp_BA = -column().abs()
    columns = {"advantages": column(), "sampler_logp": logp_BA + column(0.1), "ref_logp": logp_BA + column(0.3)}
    if old:
        columns["old_logp"] = logp_BA + column(0.3)
    micro = MicroBatch(
        (0, 1, 2, 3), torch.zeros(B, A + 1, dtype=torch.long), torch.full((B,), A + 1), action_BA, columns
    )
    entropy_BA = column().abs().requires_grad_()
    return micro, logp_BA.requires_grad_(), entropy_BA


def rows_of(micro: MicroBatch, rows: list[int]) -> MicroBatch:
    columns = {name: column[rows] for name, column in micro.columns.items()}
    return MicroBatch(tuple(rows), micro.tokens_BT[rows], micro.lengths_B[rows], micro.action_BA[rows], columns)


def step_of(micro: MicroBatch) -> Denominators:
    return Denominators(float(micro.action_BA.sum()), float(micro.action_BA.any(1).sum()))


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_the_loss_is_what_its_parts_say(aggregation: str) -> None:
    micro, logp_BA, entropy_BA = micro_batch()
    objective = PolicyObjective(
        loss=PolicyLossSettings(clip_low=0.1, clip_high=0.3),
        aggregation=aggregation,
        kl_coef=0.5,
        kl_estimator="k2",
        entropy_coef=0.25,
    )
    loss, report = objective(ModelOutput(logp_BA, entropy_BA), micro, step_of(micro))

    action, count = micro.action_BA, float(micro.action_BA.sum())
    ratio = (logp_BA - micro.columns["old_logp"]).exp()
    gain = torch.minimum(ratio * micro.columns["advantages"], ratio.clamp(0.9, 1.3) * micro.columns["advantages"])
    if aggregation == "token-mean":
        policy = -gain[action].sum() / count
    else:
        policy = -torch.stack([row[mask].mean() for row, mask in zip(gain, action, strict=True)]).mean()
    kl = ((logp_BA - micro.columns["ref_logp"])[action] ** 2 / 2).mean()
    entropy = entropy_BA[action].mean()
    torch.testing.assert_close(loss, policy + 0.5 * kl - 0.25 * entropy)
    expected = {"policy_loss": policy, "kl": kl, "entropy": entropy, "loss": loss}
    for name, value in expected.items():
        assert report[name].value == pytest.approx(float(value.detach()), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_micro_batches_add_up_to_the_whole(aggregation: str) -> None:
    micro, logp_BA, entropy_BA = micro_batch()
    objective = PolicyObjective(aggregation=aggregation, kl_coef=0.1, entropy_coef=0.1)
    whole, whole_report = objective(ModelOutput(logp_BA, entropy_BA), micro, step_of(micro))
    (gradient,) = torch.autograd.grad(whole, logp_BA, retain_graph=True)
    parts = []
    for rows in ([0, 2], [1], [3]):
        output = ModelOutput(logp_BA[rows], entropy_BA[rows])
        parts.append(objective(output, rows_of(micro, rows), step_of(micro)))
    total = torch.stack([loss for loss, _ in parts]).sum()
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(torch.autograd.grad(total, logp_BA)[0], gradient)
    merged = merge_reports([report for _, report in parts])
    assert merged.keys() == whole_report.keys()
    for name, metric in merged.items():
        assert metric.value == pytest.approx(whole_report[name].value, rel=1e-4, abs=1e-6)


def test_without_old_logprobs_the_gradient_is_the_plain_policy_gradient() -> None:
    micro, logp_BA, _ = micro_batch(old=False)
    loss, report = PolicyObjective()(ModelOutput(logp_BA), micro, step_of(micro))
    (gradient,) = torch.autograd.grad(loss, logp_BA)
    torch.testing.assert_close(gradient, -micro.columns["advantages"] / micro.action_BA.sum())
    assert report["ratio"].value == 1.0
    assert report["clip_fraction"].value == 0.0


def test_a_dummy_has_no_loss_no_gradient_and_no_report() -> None:
    dummy = MicroBatch(
        rows=(),
        tokens_BT=torch.zeros(1, 2, dtype=torch.long),
        lengths_B=torch.tensor([2]),
        action_BA=torch.zeros(1, 1, dtype=torch.bool),
        columns={name: torch.zeros(1, 1) for name in ("advantages", "sampler_logp", "ref_logp", "old_logp")},
    )
    logp_BA = torch.zeros(1, 1, requires_grad=True)
    objective = PolicyObjective(kl_coef=1.0, entropy_coef=1.0)
    loss, report = objective(ModelOutput(logp_BA, torch.zeros(1, 1)), dummy, Denominators(10.0, 2.0))
    (gradient,) = torch.autograd.grad(loss, logp_BA)
    assert float(loss.detach()) == 0.0
    assert bool((gradient == 0.0).all())
    assert report == {}


def test_entropy_is_reported_without_a_bonus_where_the_coefficient_is_zero() -> None:
    micro, logp_BA, entropy_BA = micro_batch()
    assert not PolicyObjective().needs_entropy
    objective = PolicyObjective(entropy_coef=0.0)
    assert objective.needs_entropy
    loss, report = objective(ModelOutput(logp_BA, entropy_BA), micro, step_of(micro))
    plain, _ = PolicyObjective()(ModelOutput(logp_BA), micro, step_of(micro))
    torch.testing.assert_close(loss, plain)
    assert report["entropy"].value > 0.0


def test_sft_is_the_mean_negative_log_likelihood() -> None:
    micro, logp_BA, _ = micro_batch()
    loss, report = SftObjective()(ModelOutput(logp_BA), micro, step_of(micro))
    torch.testing.assert_close(loss, -logp_BA[micro.action_BA].mean())
    assert report["loss"].value == pytest.approx(float(loss.detach()))


def test_the_mismatch_looks_at_actions_only() -> None:
    action_BA = torch.tensor([[True, True, False]])
    logp_BA = torch.tensor([[-1.0, -2.0, 0.0]])
    sampler_BA = torch.tensor([[-1.5, -1.9, -9.0]])
    report = mismatch_report(logp_BA, sampler_BA, action_BA)
    assert report["mismatch/abs"].value == pytest.approx(0.3)
    assert report["mismatch/abs_max"].value == pytest.approx(0.5)
    assert report["mismatch/kl"].value == pytest.approx(-0.2)


def test_objectives_travel_to_workers() -> None:
    objective = PolicyObjective(entropy_coef=0.1, temperature=0.7)
    assert pickle.loads(pickle.dumps(objective)) == objective
    assert pickle.loads(pickle.dumps(SftObjective())) == SftObjective()
