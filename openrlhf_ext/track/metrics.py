"""Where metrics go: JSON lines always, TensorBoard and Weights & Biases where asked for.

All of them take `log(step, values)` and `close()` (`ports.Tracker`).
"""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.track.files import write_atomically

_WANDB_ONLINE_SECONDS = 60.0  # how long to try its server before the run goes on offline


class Sink(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonlTracker:
    """One JSON object per line: `{"step": 3, "reward/mean": 0.5, ...}`; a NaN or an infinity is null.

    A run that resumes after step k cuts off every line beyond k (and a line torn by a kill), so the
    file reads as if the run had never stopped. Each line is flushed as it is written.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [] if resume_step is None else _lines_up_to(path, resume_step)
            write_atomically(path, "".join(line + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, oldest first. Raises DataError with the line number on a malformed one."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number} is not JSON ({error.msg}); remove the line.") from None
    return rows


def _lines_up_to(path: Path, step: int) -> list[str]:
    kept = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:  # what follows the last newline is torn
        if json.loads(line)["step"] <= step:
            kept.append(line)
    return kept


class TensorBoardTracker:
    """Scalars for TensorBoard; events beyond the resumed step are hidden by its own `purge_step`."""

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(log_dir=str(folder), purge_step=purge)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@dataclass(frozen=True, slots=True)
class WandbSettings:
    """Where to log at Weights & Biases. The key is a secret: it never appears in a repr, a log or a config."""

    key: str = field(repr=False)
    project: str
    run_name: str
    entity: str | None = None
    group: str | None = None


class WandbTracker:
    """Weights & Biases; without a network the run is kept offline in `folder` and said so once."""

    def __init__(self, settings: WandbSettings, folder: Path, config: Mapping[str, Any], resuming: bool) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError(
                "--logger.wandb.key is given but wandb is not installed; run `pip install wandb` or drop the flag."
            ) from None
        folder.mkdir(parents=True, exist_ok=True)
        common: dict[str, Any] = {
            "entity": settings.entity,
            "project": settings.project,
            "group": settings.group,
            "name": settings.run_name,
            "id": run_id(folder / "wandb_run_id", resuming),
            "resume": "allow" if resuming else None,
            "dir": str(folder),
            "config": dict(config),
        }
        mode = os.environ.get("WANDB_MODE", "online")
        online = wandb.Settings(api_key=settings.key, init_timeout=_WANDB_ONLINE_SECONDS, silent=True)
        try:
            self._run = wandb.init(mode=mode, settings=online, **common)  # type: ignore[arg-type]
        except (wandb.errors.CommError, wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            print(
                f"Weights & Biases cannot be reached ({type(error).__name__}): this run is kept offline in {folder}; "
                "send it later with `wandb sync`.",
                file=sys.stderr,
            )
            common["id"] = run_id(folder / "wandb_run_id", resuming=False)  # the failed start still holds the other
            self._run = wandb.init(mode="offline", settings=wandb.Settings(silent=True), **common)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def run_id(path: Path, resuming: bool) -> str:
    """A new id for a new run; a resumed run goes on with the one that it finds in `path`."""
    if not (resuming and path.exists()):
        write_atomically(path, secrets.token_hex(8).encode())
    return path.read_text(encoding="utf-8")


class Trackers:
    """Hands every metric to every sink."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.log(step, values)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


def open_trackers(
    metrics_file: Path,
    *,
    resume_step: int | None = None,
    tensorboard: Path | None = None,
    wandb: WandbSettings | None = None,
    config: Mapping[str, Any] | None = None,
) -> Trackers:
    """JSON lines in `metrics_file`, and TensorBoard and W&B where asked for.

    `resume_step` is the step the run resumes after (None: it starts anew). `config` is shown beside
    the run at W&B and must hold no secrets. Raises ConfigError where W&B is asked for but not installed.
    """
    sinks: list[Sink] = [JsonlTracker(metrics_file, resume_step)]
    if tensorboard is not None:
        sinks.append(TensorBoardTracker(tensorboard, resume_step))
    if wandb is not None:
        sinks.append(WandbTracker(wandb, metrics_file.parent, config or {}, resuming=resume_step is not None))
    return Trackers(sinks)
