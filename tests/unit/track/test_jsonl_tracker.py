from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from openrlhf_ext.errors import DataError
from openrlhf_ext.track import metrics
from openrlhf_ext.track.metrics import JsonlTracker, Trackers, WandbSettings, open_trackers, read_metrics


def test_a_line_per_call_and_null_for_what_json_cannot_say(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "deep" / "metrics.jsonl")
    tracker.log(1, {"reward": 0.1 + 0.2, "kl": math.nan, "norm": math.inf})
    tracker.log(2, {"reward": 1.0})
    tracker.close()
    assert read_metrics(tmp_path / "deep" / "metrics.jsonl") == [
        {"step": 1, "reward": 0.1 + 0.2, "kl": None, "norm": None},
        {"step": 2, "reward": 1.0},
    ]


@pytest.mark.parametrize("torn", ["", '{"step": 4, "rew'])
def test_a_resume_cuts_off_what_the_killed_run_wrote_beyond_its_checkpoint(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    killed = JsonlTracker(path)
    for step in range(4):
        killed.log(step, {"reward": float(step)})
    killed.close()
    with path.open("a") as file:
        file.write(torn)
    resumed = JsonlTracker(path, resume_step=2)
    resumed.log(3, {"reward": -3.0})
    resumed.close()
    assert [(row["step"], row["reward"]) for row in read_metrics(path)] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, -3.0)]


def test_a_run_that_starts_anew_starts_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 9}) + "\n")
    JsonlTracker(path).close()
    assert read_metrics(path) == []


def test_lines_are_there_before_the_run_ends(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log(1, {"reward": 1.0})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    tracker.close()


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2 is not JSON"):
        read_metrics(path)


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = open_trackers(tmp_path / "metrics.jsonl", tensorboard=tmp_path / "tb")
    for step in (1, 2, 3):
        first.log(step, {"reward": step / 4})
    first.close()
    resumed = open_trackers(tmp_path / "metrics.jsonl", tensorboard=tmp_path / "tb", resume_step=2)
    resumed.log(3, {"reward": 0.875})
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(1, 0.25), (2, 0.5), (3, 0.875)]
    assert [row["reward"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0.25, 0.5, 0.875]


def test_every_sink_is_told(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    trackers = Trackers([JsonlTracker(path) for path in paths])
    trackers.log(5, {"x": 1.0})
    trackers.close()
    assert [read_metrics(path) for path in paths] == [[{"step": 5, "x": 1.0}]] * 2


@pytest.fixture
def no_wandb_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(metrics, "_WANDB_ONLINE_SECONDS", 1.0)


@pytest.mark.usefixtures("no_wandb_server")
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_wandb_works_without_its_server_and_never_writes_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    secret = "0123456789abcdef0123456789abcdef01234567"
    settings = WandbSettings(key=secret, project="tests", run_name="a run: one")
    assert secret not in repr(settings)
    trackers = open_trackers(tmp_path / "metrics.jsonl", wandb=settings, config={"train": {"seed": 1}})
    trackers.log(1, {"reward": 0.5})
    trackers.close()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" and "offline-run" in str(path) for path in written)
    assert ("kept offline" in capsys.readouterr().err) is (mode == "online")
    assert not [path for path in written if secret.encode() in path.read_bytes()]


@pytest.mark.usefixtures("no_wandb_server")
def test_a_resumed_run_goes_on_in_its_wandb_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = WandbSettings(key="0" * 40, project="tests", run_name="run")
    ids = []
    for resume_step in (None, 1, None):
        open_trackers(tmp_path / "metrics.jsonl", wandb=settings, resume_step=resume_step).close()
        ids.append((tmp_path / "wandb_run_id").read_text())
    assert ids[0] == ids[1] != ids[2]
