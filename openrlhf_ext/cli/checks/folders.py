"""Where the run will write: whether it may, and what an earlier run left there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from openrlhf_ext.cli.checks.finding import Finding, error, of_error, ok, warning
from openrlhf_ext.cli.checks.subject import Subject
from openrlhf_ext.errors import UserError

AREA = "folders"


def find_folders(subject: Subject) -> Iterator[Finding]:
    for flag, folder in _written_to(subject).items():
        yield _writable(flag, folder)
    yield from _earlier_run(subject)


def _written_to(subject: Subject) -> dict[str, Path]:
    from openrlhf_ext.cli.specs import metrics_file

    ckpt, logger = subject.config.ckpt, subject.config.logger
    folders = {"--ckpt.output_dir": Path(ckpt.output_dir), "--ckpt.path": Path(ckpt.path)}
    if logger.metrics_file:
        folders["--logger.metrics_file"] = metrics_file(logger, ckpt).parent
    if logger.tensorboard_dir:
        folders["--logger.tensorboard_dir"] = Path(logger.tensorboard_dir)
    if rollouts := getattr(logger, "rollout_dir", None):
        folders["--logger.rollout_dir"] = Path(rollouts)
    return folders


def _writable(flag: str, folder: Path) -> Finding:
    there = nearest_that_is(folder)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"0" * 4096)
    except OSError as refused:
        reason = refused.strerror or type(refused).__name__
        return error(
            AREA,
            f"{flag} {folder} cannot be written to: {there} is {'a file' if there.is_file() else f'closed ({reason})'}",
            f"choose another {flag}, or make {there} a folder that this user may write to.",
        )
    return ok(AREA, f"{flag} {folder} can be written to" + ("" if there == folder else f" (made in {there})"))


def nearest_that_is(path: Path) -> Path:
    """The path, or what there is of it."""
    path = path.absolute()
    return next(part for part in (path, *path.parents) if part.exists())


def _earlier_run(subject: Subject) -> Iterator[Finding]:
    from openrlhf_ext.cli.specs import metrics_file, open_store

    config = subject.config
    try:
        _, latest = open_store(config.ckpt)
    except UserError as raised:
        yield of_error(AREA, raised)
        return
    except OSError:
        return  # said above: it cannot even be looked into
    if latest is not None:
        yield ok(AREA, f"it goes on from step {latest.step} under {config.ckpt.path}")
    elif config.ckpt.load_enable:
        yield warning(
            AREA,
            f"--ckpt.load_enable, and there is no checkpoint under {config.ckpt.path}: the run starts from the model",
            "check --ckpt.path, if a run is to be gone on with.",
        )
    elif metrics_file(config.logger, config.ckpt).is_file():
        yield warning(
            AREA,
            f"{metrics_file(config.logger, config.ckpt)} is an earlier run's, and will be replaced",
            "choose another --ckpt.output_dir to keep it.",
        )
