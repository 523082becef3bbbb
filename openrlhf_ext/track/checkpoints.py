"""Checkpoints on disk: complete or absent, the newest few and the best one kept."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ext.errors import DataError
from openrlhf_ext.track.files import sync_folder, sync_tree, write_atomically

_FORMAT = 1
_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint: what the roles wrote under `path`, and the driver's state."""

    step: int
    path: Path
    state: Mapping[str, Any]
    metric: float | None = None


@dataclass(frozen=True, slots=True)
class CheckpointContent:
    """What a checkpoint of a model in training holds: the state to resume from, a Hugging Face folder, or both."""

    state: bool = True
    model: bool = False


class CheckpointStore:
    """Folders `step-00000010` under `path`, each written under another name and renamed when complete.

    At most `max_num` of them and `max_mem_gb` GiB in all are kept: the oldest go first, never the newest,
    and never the one with the highest `metric` (which counts towards neither limit). Where several processes fill
    a checkpoint together one of them `leads`: it makes the folder and lets it appear, the others only write into it.
    """

    def __init__(self, path: Path, max_num: int = 3, max_mem_gb: float = float("inf"), *, leads: bool = True) -> None:
        assert max_num >= 1, "at least the newest checkpoint is kept"
        self.path = path
        self._leads = leads
        self._max_num = max_num
        self._max_bytes = max_mem_gb * _GIB

    def save(
        self, step: int, write: Callable[[Path], None], state: Mapping[str, Any], metric: float | None = None
    ) -> Path:
        """Let `write(folder)` fill a checkpoint, add `state` (JSON values), make it durable, then visible.

        A kill at any point leaves the earlier checkpoints as they were. A process that does not lead must find the
        folder made: `write` waits for the others before it begins.
        """
        final = self.path / f"step-{step:08d}"
        partial = self.path / f".partial-{final.name}"
        if not self._leads:
            write(partial)
            return final
        self.path.mkdir(parents=True, exist_ok=True)
        self._sweep()
        partial.mkdir()
        write(partial)
        manifest = {"format": _FORMAT, "step": step, "metric": metric, "state": dict(state)}
        write_atomically(partial / "checkpoint.json", json.dumps(manifest, indent=1).encode())
        sync_tree(partial)
        if final.exists():  # the same step again, after a resume from an earlier one
            os.replace(final, self.path / f".old-{final.name}")
        os.replace(partial, final)
        sync_folder(self.path)
        self._sweep()
        self._prune()
        return final

    def checkpoints(self) -> list[Checkpoint]:
        """All complete checkpoints, oldest step first. Raises DataError where one cannot be read."""
        if not self.path.is_dir():
            return []
        folders = sorted(folder for folder in self.path.iterdir() if re.fullmatch(r"step-\d+", folder.name))
        return [_read(folder) for folder in folders]

    def latest(self) -> Checkpoint | None:
        """The complete checkpoint with the highest step, or None."""
        found = self.checkpoints()
        return found[-1] if found else None

    def best(self) -> Checkpoint | None:
        """The checkpoint with the highest metric (the earliest of equals), or None."""
        measured = [found for found in self.checkpoints() if found.metric is not None]
        return max(measured, key=lambda found: (found.metric, -found.step)) if measured else None

    def _prune(self) -> None:
        kept = self.checkpoints()
        best = self.best()
        regular = [found for found in kept if best is None or found.step != best.step]
        newest = kept[-1].step
        sizes = {found.step: _size(found.path) for found in regular}
        while len(regular) > self._max_num or sum(sizes.values()) > self._max_bytes:
            if regular[0].step == newest:
                break
            oldest = regular.pop(0)
            sizes.pop(oldest.step)
            os.replace(oldest.path, self.path / f".old-{oldest.path.name}")  # gone before it is half deleted
        self._sweep()

    def _sweep(self) -> None:
        for leftover in (*self.path.glob(".partial-step-*"), *self.path.glob(".old-step-*")):
            shutil.rmtree(leftover)


def _read(folder: Path) -> Checkpoint:
    manifest_path = folder / "checkpoint.json"
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        return Checkpoint(manifest["step"], folder, manifest["state"], manifest["metric"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{manifest_path} cannot be read ({type(error).__name__}); remove the folder {folder} to go on without it."
        ) from error


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
