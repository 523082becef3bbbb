"""How a step of sft, rm or dpo is cut into micro-batches and ranks does not change its loss, nor does where dpo's
reference comes from."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import engine_scenarios
import pytest
import supervised_scenarios as scenarios
from supervised_scenarios import CUTS, TASKS, TWO_RANKS, WHOLE

from openrlhf_ext.types import merge_reports

OTHER_CUTS = [name for name in CUTS if name != WHOLE]
STARTS = {
    "all weights": ["cached"],
    "new adapters": ["cached", "base"],
    "continued adapters": ["cached", "base"],
}

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Of one rank (a list of one) and of two ranks of ZeRO-3."""
    folder = tmp_path_factory.mktemp("cuts")
    engine_scenarios.build_model(folder / "model", tied=True)
    with ThreadPoolExecutor() as pool:
        two = pool.submit(engine_scenarios.spawn, 2, scenarios.two_ranks, folder, folder / "model")
        one = engine_scenarios.spawn(1, scenarios.one_rank, folder, folder / "model", folder)
        return one, two.result()


def losses(ranks, kind, task, cut):
    """Of each step, over all ranks."""
    steps = zip(*(answer[kind][task, cut] for answer in ranks), strict=True)
    return [merge_reports(reports)["loss"].value for reports in steps]


def both(answers, kind, task, cut):
    """The losses of micro-batches of 8 on one rank, and of this cut."""
    one, two = answers
    return losses(one, kind, task, WHOLE), losses(two if cut in TWO_RANKS else one, kind, task, cut)


@pytest.mark.parametrize("cut", [*OTHER_CUTS, *TWO_RANKS])
@pytest.mark.parametrize("task", TASKS)
def test_an_epoch_is_the_same_however_it_is_cut(answers, task, cut):
    whole, other = both(answers, "trained", task, cut)
    assert other[:3] == pytest.approx(whole[:3], rel=1e-5)
    assert other == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("cut", [*OTHER_CUTS, *TWO_RANKS])
@pytest.mark.parametrize("task", TASKS)
def test_an_epoch_of_frozen_weights_is_the_same_however_it_is_cut(answers, task, cut):
    whole, other = both(answers, "frozen", task, cut)
    assert other == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_what_is_compared_moves(answers, task):
    """The same rows under trained and frozen weights: else the tests above would compare nothing but the start."""
    one, _ = answers
    trained, frozen = losses(one, "trained", task, WHOLE), losses(one, "frozen", task, WHOLE)
    assert len(trained) == 6
    assert trained[0] == pytest.approx(frozen[0], rel=1e-6)
    assert trained[-1] < 0.95 * frozen[-1]


@pytest.mark.parametrize(("start", "way"), [(start, way) for start, ways in STARTS.items() for way in ways])
def test_every_reference_gives_the_same_loss(answers, start, way):
    found = answers[0][0]["references"][start]
    assert found[way] == pytest.approx(found["second model"], rel=1e-5)


@pytest.mark.parametrize("start", STARTS)
def test_dpo_begins_where_the_model_is_its_own_reference(answers, start):
    """log 2: adapters that training goes on from are part of the reference."""
    for way in ("second model", *STARTS[start]):
        assert answers[0][0]["references"][start][way][0] == pytest.approx(math.log(2), rel=1e-5)


def test_a_reference_in_four_bits_is_near_and_not_the_same(answers):
    """Half a nat a token, of random weights in 32 dimensions, where nothing averages out."""
    found = answers[0][0]["references"]["quantised"]
    assert 0.01 < found["gap"] < 1.0
    assert found["correlation"] > 0.7
