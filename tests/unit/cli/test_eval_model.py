"""What `--model.model_name_or_path` of eval means: a model, adapters, or what a training left."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from openrlhf_ext.cli.eval_model import find_weights
from openrlhf_ext.config.evaluation import EvaluatedModelSection
from openrlhf_ext.errors import DataError
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model
from openrlhf_ext.track.checkpoints import CheckpointStore

SHAPE = TinyShape(hidden=32, layers=1, heads=1, kv_heads=1, intermediate=32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("eval_model") / "model", SHAPE)


def flags(path: Path) -> EvaluatedModelSection:
    return replace(EvaluatedModelSection(), model_name_or_path=str(path))


def test_a_model_and_a_training_with_it_in_are_the_same_weights(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "run/model")
    found, within = find_weights(flags(model)), find_weights(flags(tmp_path / "run"))
    assert found.path == str(model) and within.path == str(tmp_path / "run/model")
    assert found.answerer.fingerprint == within.answerer.fingerprint, "by content, wherever it lies"
    assert within.answerer.name == str(tmp_path / "run")
    named = find_weights(replace(flags(model), name="stage A"))
    assert named.answerer.name == "stage A" and named.answerer.fingerprint == found.answerer.fingerprint


def test_other_weights_have_another_fingerprint(model: Path, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other", SHAPE, seed=9)
    assert find_weights(flags(model)).answerer.fingerprint != find_weights(flags(other)).answerer.fingerprint


def test_the_newest_checkpoint_with_a_model(model: Path, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (5, 10):
        store.save(step, lambda folder: shutil.copytree(model, folder / "model") and None, {})
    assert find_weights(flags(tmp_path)).path.endswith("step-00000010/model")
    assert find_weights(flags(tmp_path / "step-00000005")).path.endswith("step-00000005/model")


def test_checkpoints_without_a_model(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save(5, lambda folder: (folder / "policy").mkdir(), {})
    for path in (tmp_path, tmp_path / "step-00000005"):
        with pytest.raises(DataError, match=r"checkpoints to resume from, and no model.*--ckpt\.save_hf"):
            find_weights(flags(path))


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no model"):
        find_weights(flags(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        find_weights(flags(tmp_path / "nowhere"))
