from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_ext.errors import DataError
from openrlhf_ext.track.checkpoints import CheckpointStore


def writer(size: int = 3):
    def write(folder: Path) -> None:
        (folder / "policy").mkdir()
        (folder / "policy" / "weights.bin").write_bytes(b"x" * size)

    return write


def steps(store: CheckpointStore) -> list[int]:
    return [found.step for found in store.checkpoints()]


def test_what_is_saved_is_found_again(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "ckpt")
    assert store.latest() is None
    path = store.save(3, writer(), {"prompts": {"epoch": 1}}, metric=0.5)
    latest = CheckpointStore(tmp_path / "ckpt").latest()
    assert latest is not None
    assert (latest.step, latest.path, latest.state, latest.metric) == (3, path, {"prompts": {"epoch": 1}}, 0.5)
    assert (latest.path / "policy" / "weights.bin").read_bytes() == b"xxx"


def test_the_latest_is_the_highest_step_not_the_highest_name(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, max_num=9)
    for step in (9, 10, 2):
        store.save(step, writer(), {})
    assert steps(store) == [2, 9, 10]
    assert store.latest().step == 10  # type: ignore[union-attr]


def test_a_save_that_dies_in_the_middle_leaves_the_earlier_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, writer(), {"kept": True})

    class Killed(BaseException):
        pass

    def die(folder: Path) -> None:
        (folder / "half.bin").write_bytes(b"h")
        raise Killed

    for step in (1, 2):
        with pytest.raises(Killed):
            store.save(step, die, {})
        latest = store.latest()
        assert latest is not None
        assert (latest.step, latest.state) == (1, {"kept": True})
    store.save(2, writer(), {})
    assert steps(store) == [1, 2]
    assert not list(tmp_path.glob(".*"))  # the halves are swept away by the next save


def test_the_same_step_again_replaces_the_old_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(4, writer(), {"run": 1})
    store.save(4, writer(), {"run": 2})
    assert steps(store) == [4]
    assert store.latest().state == {"run": 2}  # type: ignore[union-attr]


def test_the_oldest_go_first_and_the_best_stays(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, max_num=2)
    for step, metric in [(1, None), (2, 0.9), (3, 0.1), (4, None), (5, 0.2)]:
        store.save(step, writer(), {}, metric)
    assert steps(store) == [2, 4, 5]
    assert store.best().step == 2  # type: ignore[union-attr]
    store.save(6, writer(), {}, metric=0.95)
    assert steps(store) == [4, 5, 6]  # a better one frees the former best


def test_room_is_limited_too_but_the_newest_is_always_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, max_num=9, max_mem_gb=5000 / 1024**3)
    for step in (1, 2, 3):
        store.save(step, writer(2000), {})
    assert steps(store) == [2, 3]
    store.save(4, writer(9000), {})
    assert steps(store) == [4]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(1, writer(), {})
    (path / "checkpoint.json").write_text("{")
    with pytest.raises(DataError, match=r"checkpoint\.json cannot be read .* remove the folder"):
        store.latest()


@settings(max_examples=12, deadline=None)
@given(
    metrics=st.lists(st.one_of(st.none(), st.sampled_from([0.1, 0.2, 0.3])), min_size=1, max_size=8),
    max_num=st.integers(1, 3),
)
def test_pruning_keeps_the_newest_and_the_first_best(
    tmp_path_factory: pytest.TempPathFactory, metrics: list[float | None], max_num: int
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("ckpt"), max_num=max_num)
    for step, metric in enumerate(metrics, start=1):
        store.save(step, writer(), {}, metric)
        measured = [(value, -s) for s, value in enumerate(metrics[:step], start=1) if value is not None]
        best = -max(measured)[1] if measured else None
        regular = [s for s in range(1, step + 1) if s != best]
        expected = sorted({*regular[-max_num:], *([best] if best else []), step})
        assert steps(store)[-1] == step
        assert best is None or best in steps(store)
        assert set(steps(store)) <= set(expected)
