"""Ranks that `torchrun` or `srun` started on several machines read the same paths, and must find the same there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openrlhf_ext.cli.launch import Launch
from openrlhf_ext.cli.supervised_model import base_path
from openrlhf_ext.track.same_files import Need, check_same, content_marks


def check_files_of_ranks(config: Any, launch: Launch) -> None:
    """Ask every machine for the model, the data and the reference, before anything is read of them.

    Raises DataError, on every rank alike, where a machine lacks one or has other files there than rank 0's.
    """
    from openrlhf_ext.engine.process import exchange, meeting_point

    store = meeting_point(launch.rank, launch.ranks, launch.host, launch.port, launch.served)
    own = list(paths_of(config)) if launch.rank == 0 else []
    paths = exchange(store, "paths", launch.rank, launch.ranks, own)[0]
    answers = exchange(store, "files", launch.rank, launch.ranks, [socket.gethostname(), content_marks(paths)])
    hosts = tuple(dict.fromkeys(host for host, _ in answers))
    needs = [Need(path, "ranks", hosts) for path in paths]
    check_same(needs, dict(reversed(answers)), here=hosts[0])


def paths_of(config: Any) -> Iterator[str]:
    """The files and folders of this machine that every rank reads; names of the hub are not among them."""
    models = [config.model.model_name_or_path]
    if hasattr(config, "ref"):
        models.append(config.ref.model_name_or_path)
    sets = [config.data.dataset, config.eval.dataset]
    named = [name for model in models if model for name in (model, base_path(model))]
    named += [part.strip() for text in sets if text for part in text.split(",")]
    yield from dict.fromkeys(str(Path(name).absolute()) for name in named if Path(name).exists())
