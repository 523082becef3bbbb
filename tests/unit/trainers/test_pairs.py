"""Steps and figures of pairs, against the losses of whole batches."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.data.preferences import PreferencePair
from openrlhf_ext.ops.preference_loss import DpoLossSettings, ScoreLossSettings
from openrlhf_ext.ports import ModelOutput, ScoreOutput
from openrlhf_ext.track.reference_cache import ReferenceCache
from openrlhf_ext.trainers.pairs import dpo_evaluation, margin_column, pair_batch, pair_step, score_evaluation
from openrlhf_ext.trainers.preference import DpoObjective, ScoreObjective, sums_as_column
from openrlhf_ext.trainers.reference import CachedReference, answer_keys
from openrlhf_ext.types import merge_reports

PAIRS = [
    PreferencePair(f"p{i}", tuple(range(1, 2 + i)), (5,) * (1 + i % 3), (6,) * (1 + (i + 1) % 3), margin=i / 10)
    for i in range(7)
]


@dataclass
class Known:
    """A model whose answer to a row is a function of the row."""

    asked: list[int] = field(default_factory=list)

    def logprobs(self, batch, temperature=1.0, *, adapters=True) -> Tensor:
        self.asked.append(batch.rows)
        return logp(batch.tokens_BT, batch.action_BA) * (1.0 if adapters else 0.5)

    def scores(self, batch) -> Tensor:
        return score(batch.tokens_BT, batch.lengths_B)


def logp(tokens_BT, action_BA):
    return -(tokens_BT[:, 1:] * 0.1 + torch.arange(tokens_BT.shape[1] - 1) * 0.01) * action_BA


def score(tokens_BT, lengths_B):
    return (tokens_BT.sum(1) * 0.03 - lengths_B * 0.2)[:, None]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("split", [SplitSettings(rows=1), SplitSettings(rows=3), SplitSettings(max_tokens=20)])
def test_how_a_step_of_pairs_is_cut_does_not_change_its_loss(split, ranks):
    batch = pair_batch(PAIRS, 0)
    columns = {"margin": margin_column(PAIRS, batch), "ref_logp": 0.3 * logp(batch.tokens_BT, batch.action_BA)}
    scores, dpo = ScoreObjective(margin=True), DpoObjective(DpoLossSettings(nll_coef=0.2))
    totals, reports = [0.0, 0.0], []
    for shard in pair_step(batch, columns, split, ranks):
        for micro in shard.micro_batches:
            score_output = ScoreOutput(score(micro.tokens_BT, micro.lengths_B))
            logp_output = ModelOutput(logp(micro.tokens_BT, micro.action_BA))
            for i, (objective, output) in enumerate(((scores, score_output), (dpo, logp_output))):
                loss, report = objective(output, micro, shard.denominators)
                totals[i] += float(loss)
                reports += [report] if i else []
    whole = score_evaluation(Known(), [(batch, columns["margin"])], ScoreLossSettings())
    assert totals[0] == pytest.approx(whole["eval/loss"], rel=1e-6)
    merged = {name: metric.value for name, metric in merge_reports(reports).items()}
    assert totals[1] == pytest.approx(merged["loss"], rel=1e-6)


def test_the_margin_is_asked_of_the_difference():
    batch = pair_batch(PAIRS, 0)
    without = score_evaluation(Known(), [(batch, None)], ScoreLossSettings())
    with_margin = score_evaluation(Known(), [(batch, margin_column(PAIRS, batch))], ScoreLossSettings())
    assert with_margin["eval/loss"] > without["eval/loss"]
    assert with_margin["eval/accuracy"] == without["eval/accuracy"]


def test_an_untrained_model_is_its_reference():
    batch, model = pair_batch(PAIRS, 0), Known()

    class Itself:
        def column(self, batch):
            return model.logprobs(batch)

    figures = dpo_evaluation(model, Itself(), [batch], DpoLossSettings())
    assert figures["eval/loss"] == pytest.approx(0.693147, abs=1e-5)
    assert figures["eval/margin"] == 0.0 and figures["eval/accuracy"] == 0.0


def test_a_cached_reference_is_computed_once_and_right_in_any_batch(tmp_path):
    model = Known()
    batches = [pair_batch(PAIRS[:4], 0), pair_batch(PAIRS[4:], 0)]
    seen: list[tuple[int, int]] = []
    fill = CachedReference.fill
    fill(ReferenceCache(tmp_path, "m"), model, batches, lambda done, total: seen.append((done, total)))
    assert seen == [(8, 14), (14, 14)] and model.asked == [8, 6]
    reference = fill(ReferenceCache(tmp_path, "m"), model, batches, lambda done, total: None)
    assert model.asked == [8, 6]
    shuffled = pair_batch([PAIRS[5], PAIRS[0], PAIRS[2]], 9)
    expected_B = model.logprobs(shuffled).sum(1)
    torch.testing.assert_close(reference.column(shuffled).sum(1), expected_B)
    assert not reference.column(shuffled)[~shuffled.action_BA].any()
    assert len(set(answer_keys(shuffled))) == 6


def test_numbers_of_rows_stand_at_their_first_action():
    batch = pair_batch(PAIRS[:2], 0)
    column_BA = sums_as_column(torch.tensor([1.0, 2.0, 3.0, 4.0]), batch.action_BA)
    assert column_BA.sum(1).tolist() == [1.0, 2.0, 3.0, 4.0]
    assert (column_BA != 0).sum() == 4 and not column_BA[~batch.action_BA].any()
