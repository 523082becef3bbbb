from __future__ import annotations

import pytest
import torch

from openrlhf_ext.ops.length_penalty import LengthPenalties, penalised

SCORES_B = torch.tensor([1.0, -1.0, 2.0, 0.5])
LENGTHS_B = torch.tensor([60, 80, 90, 100])
TRUNCATED_B = torch.tensor([False, False, False, True])


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({}, [1.0, -1.0, 2.0, 0.5]),
        ({"overlong_buffer": 20}, [1.0, -1.0, 1.5, -0.5]),
        ({"overlong_buffer": 40, "overlong_factor": 2.0}, [1.0, -2.0, 0.5, -1.5]),
        ({"stop_properly": 0.5}, [1.0, -1.0, 2.0, 0.25]),
        ({"stop_properly": 0.0}, [1.0, -1.0, 2.0, 0.0]),
        ({"stop_properly": -0.7}, [1.0, -1.0, 2.0, -0.7]),
        ({"overlong_buffer": 20, "stop_properly": 0.5}, [1.0, -1.0, 1.5, -0.25]),
        ({"overlong_buffer": 20, "stop_properly": -0.7}, [1.0, -1.0, 1.5, -0.7]),
    ],
)
def test_by_hand(settings, want):
    got_B = penalised(SCORES_B, LENGTHS_B, TRUNCATED_B, LengthPenalties(max_new_tokens=100, **settings))
    torch.testing.assert_close(got_B, torch.tensor(want))


def test_an_answer_beyond_the_limit_loses_no_more_than_the_whole_factor():
    """Lengths of several turns may add up to more than one generation's limit."""
    settings = LengthPenalties(max_new_tokens=100, overlong_buffer=10)
    got_B = penalised(torch.zeros(1), torch.tensor([500]), torch.tensor([False]), settings)
    assert got_B.tolist() == [-1.0]


@pytest.mark.parametrize("wrong", [{"overlong_buffer": 101}, {"overlong_buffer": 0}, {"stop_properly": 1.5}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(AssertionError):
        LengthPenalties(max_new_tokens=100, **wrong)
