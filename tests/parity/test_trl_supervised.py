"""Five optimizer steps of sft, rm and dpo against TRL's own SFTTrainer, RewardTrainer and DPOTrainer.

Both sides start from the same files (texts, tokenizer, weights; the reward model's head is in them) and tokenize for
themselves; nothing is shuffled, packed or cut, nothing drops out, and everything is float32. Where ours differs on
purpose the rows here do not go:

- too long: TRL 1.16 cuts the end off an example (SFT, DPO) or leaves the pair out (RM); ours cuts the beginning of a
  pair's prompt, so that the whole of both answers is kept, and drops a pair that would become two equal ones;
- a pair's loss is divided by the pairs of the whole step, in TRL by those of a micro-batch and then by the number of
  micro-batches: the same as long as these are equally large, as they are here;
- the line ends that a chat template writes after EOS, and those at the end of an answer, are no part of an answer in
  ours; EOS stands once at its end on both sides.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import supervised_sides as sides
import torch

from openrlhf_ext.models.tiny import build_tiny_model

TASKS = ["sft", "rm", "dpo"]

pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    for package in ("trl", "accelerate", "datasets", "deepspeed"):
        if find_spec(package) is None:
            pytest.skip(f"trl is the reference, and {package} is not installed")
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("sides")
    build_tiny_model(folder / "model")  # without merges: an answer's tokens do not depend on what stands before it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        scored = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1)
        scored.score.weight.data.normal_(std=0.05)
    scored.save_pretrained(folder / "scored")
    sides.write_rows(folder)
    return sides.both_sides(folder)


@pytest.mark.parametrize("task", TASKS)
def test_both_train_on_the_same_tokens(both, task):
    ours, theirs = (side[task].rows for side in both)
    assert len(ours) == sides.STEPS * sides.BATCH
    assert [tuple(row) for row in ours] == [tuple(row) for row in theirs]


@pytest.mark.parametrize("task", TASKS)
def test_the_same_losses(both, task):
    ours, theirs = (side[task] for side in both)
    assert len(ours.losses) == sides.STEPS
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)
    assert max(theirs.losses) - min(theirs.losses) > 0.01, "something is learned meanwhile"


@pytest.mark.parametrize("task", TASKS)
def test_the_same_gradients(both, task):
    ours, theirs = (side[task].norms for side in both)
    assert ours == pytest.approx(theirs, rel=1e-3)
