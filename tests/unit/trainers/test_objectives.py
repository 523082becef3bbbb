from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from openrlhf_ext.batch.types import Denominators, MicroBatch
from openrlhf_ext.ops.mismatch import CorrectionSettings, correction
from openrlhf_ext.ops.policy_loss import PolicyLossSettings
from openrlhf_ext.ports import ModelOutput, ValueOutput
from openrlhf_ext.trainers.objectives import PolicyObjective, SftObjective, ValueObjective, mismatch_report
from openrlhf_ext.types import merge_reports

B, A = 4, 5


def micro_batch(seed: int = 0, old: bool = True) -> tuple[MicroBatch, torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    action_BA = torch.arange(A) < torch.tensor([5, 3, 1, 4])[:, None]

    def column(scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(B, A, generator=draws) * scale).where(action_BA, 0.0)

    logp_BA = -column().abs()
    columns = {"advantages": column(), "sampler_logp": logp_BA + column(0.1), "ref_logp": logp_BA + column(0.3)}
    columns |= {"values": column(), "returns": column()}
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


CORRECTIONS = (
    None,
    CorrectionSettings("token", "clip", "ratio", 0.8, 1.2),
    CorrectionSettings("token", "mask", "tv", 0.0, 0.03),
    CorrectionSettings("seq", "mask", "ratio", 0.9, 1.1),
    CorrectionSettings("seq", "mask", "binary_kl", 0.0, 0.01),
)
OBJECTIVES = [
    PolicyObjective(
        PolicyLossSettings(kind),
        aggregation,
        max_tokens=A,
        correction=corrected,
        kl_coef=0.1,
        kl_unbiased=kind == "cispo",
        entropy_coef=0.1,
    )
    for kind in ("ppo", "gspo", "cispo")
    for aggregation in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm")
    for corrected in CORRECTIONS
    if kind != "gspo" or aggregation == "seq-mean-token-mean"
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.loss.kind}, {o.aggregation}, {o.correction}")
def test_micro_batches_add_up_to_the_whole(objective: PolicyObjective) -> None:
    micro, logp_BA, entropy_BA = micro_batch()
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


@pytest.mark.parametrize("objective", [*OBJECTIVES, ValueObjective()], ids=str)
def test_a_dummy_has_no_loss_no_gradient_and_no_report(objective: PolicyObjective | ValueObjective) -> None:
    dummy = MicroBatch(
        rows=(),
        tokens_BT=torch.zeros(1, 2, dtype=torch.long),
        lengths_B=torch.tensor([2]),
        action_BA=torch.zeros(1, 1, dtype=torch.bool),
        columns={name: torch.zeros(1, 1) for name in micro_batch()[0].columns},
    )
    logp_BA = torch.zeros(1, 1, requires_grad=True)
    output = ValueOutput(logp_BA) if isinstance(objective, ValueObjective) else ModelOutput(logp_BA, torch.zeros(1, 1))
    loss, report = objective(output, dummy, Denominators(10.0, 2.0))
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


def test_the_unbiased_kl_has_the_same_value_and_a_weighted_gradient() -> None:
    micro, logp_BA, _ = micro_batch()
    plain, _ = PolicyObjective()(ModelOutput(logp_BA), micro, step_of(micro))
    biased, _ = PolicyObjective(kl_coef=0.5)(ModelOutput(logp_BA), micro, step_of(micro))
    unbiased, _ = PolicyObjective(kl_coef=0.5, kl_unbiased=True)(ModelOutput(logp_BA), micro, step_of(micro))
    torch.testing.assert_close(unbiased, biased)
    (got,) = torch.autograd.grad(unbiased - plain, logp_BA)
    weight_BA = (logp_BA - micro.columns["old_logp"]).exp()
    want = 0.5 * weight_BA * (logp_BA - micro.columns["ref_logp"]) / micro.action_BA.sum()
    torch.testing.assert_close(got, want.detach())


@pytest.mark.parametrize("corrected", CORRECTIONS[1:])
@pytest.mark.parametrize("kind", ["ppo", "cispo"])
def test_a_correction_weighs_the_policy_loss_of_each_token(kind: str, corrected: CorrectionSettings) -> None:
    micro, logp_BA, _ = micro_batch()
    objective = PolicyObjective(PolicyLossSettings(kind), correction=corrected)
    loss, report = objective(ModelOutput(logp_BA), micro, step_of(micro))
    plain, _ = replace(objective, correction=None)(ModelOutput(logp_BA), micro, step_of(micro))
    got, unweighted = (torch.autograd.grad(x, logp_BA)[0] for x in (loss, plain))
    want = correction(micro.columns["old_logp"], micro.columns["sampler_logp"], micro.action_BA, corrected)
    torch.testing.assert_close(got, want.weight_BA * unweighted)
    units = want.filtered_BA[micro.action_BA] if corrected.level == "token" else want.filtered_BA.any(1)
    assert 0.0 < report["mismatch/filtered"].value < 1.0
    assert report["mismatch/filtered"].value == pytest.approx(units.float().mean().item())
    assert report["mismatch/weight"].value == pytest.approx(want.weight_BA[micro.action_BA].mean().item())


def test_a_corrected_gspo_takes_its_ratio_against_the_sampler() -> None:
    micro, logp_BA, _ = micro_batch()
    objective = PolicyObjective(PolicyLossSettings("gspo"), "seq-mean-token-mean")
    corrected, report = replace(objective, correction=CORRECTIONS[1])(ModelOutput(logp_BA), micro, step_of(micro))
    as_old = replace(micro, columns={**micro.columns, "old_logp": micro.columns["sampler_logp"]})
    torch.testing.assert_close(corrected, objective(ModelOutput(logp_BA), as_old, step_of(micro))[0])
    assert "mismatch/filtered" not in report
    _, plain = objective(ModelOutput(logp_BA), micro, step_of(micro))
    assert report["policy_kl"] == plain["policy_kl"]


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-sum-norm"])
def test_gspo_is_a_mean_over_sequences(aggregation: str) -> None:
    with pytest.raises(AssertionError, match="sequences"):
        PolicyObjective(PolicyLossSettings("gspo"), aggregation)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_value_objective_and_what_it_reports(clip: float | None) -> None:
    micro, values_BA, _ = micro_batch()
    objective = ValueObjective(clip)
    loss, report = objective(ValueOutput(values_BA), micro, step_of(micro))
    value, old, target = (
        x.detach()[micro.action_BA] for x in (values_BA, *map(micro.columns.get, ("values", "returns")))
    )
    near = value if clip is None else old + (value - old).clamp(-clip, clip)
    error = torch.maximum((value - target) ** 2, (near - target) ** 2)
    assert float(loss.detach()) == pytest.approx(error.mean().item() / 2) == report["loss"].value
    assert report["value"].value == pytest.approx(value.mean().item())
    assert report["clip_fraction"].value == pytest.approx(
        ((near - target) ** 2 > (value - target) ** 2).float().mean().item()
    )
    spread = report["return_square"].value - report["return"].value ** 2
    unexplained = (target - value).square().mean() / target.var(correction=0)
    assert report["error_square"].value / spread == pytest.approx(unexplained.item(), rel=1e-4)

    parts = [
        objective(ValueOutput(values_BA[rows]), rows_of(micro, rows), step_of(micro)) for rows in ([0, 2], [1], [3])
    ]
    torch.testing.assert_close(torch.stack([part for part, _ in parts]).sum(), loss)
    merged = merge_reports([part for _, part in parts])
    assert merged.keys() == report.keys()
    for name, metric in merged.items():
        assert metric.value == pytest.approx(report[name].value, rel=1e-5)


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
    objective = PolicyObjective(correction=CORRECTIONS[1], entropy_coef=0.1, temperature=0.7)
    assert pickle.loads(pickle.dumps(objective)) == objective
    for other in (SftObjective(), ValueObjective()):
        assert pickle.loads(pickle.dumps(other)) == other
