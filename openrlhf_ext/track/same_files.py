"""Whether machines that read the same paths find the same there, told by names and sizes: nothing large is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openrlhf_ext.errors import DataError


@dataclass(frozen=True, slots=True)
class Need:
    """A file or folder by its absolute path, who reads it (the policy, the ranks, ...), and on which nodes."""

    path: str
    reader: str
    nodes: tuple[str, ...]


def content_marks(paths: Iterable[str]) -> dict[str, str | None]:
    """For each path a digest of the names and sizes of the files there; None where there is nothing."""
    return {path: _mark(Path(path)) for path in paths}


def _mark(path: Path) -> str | None:
    if not path.exists():
        return None
    digest = hashlib.blake2b(digest_size=16)
    for name, size in sorted(_files(path)):
        digest.update(f"{name}\0{size}\n".encode())
    return digest.hexdigest()


def _files(path: Path) -> Iterator[tuple[str, int]]:
    """Hidden ones (a download's cache, a repository) are nobody's input."""
    if path.is_file():
        yield "", path.stat().st_size
        return
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(folder, name)
            if not name.startswith(".") and file.exists():  # a link may lead nowhere
                yield str(file.relative_to(path)), file.stat().st_size


def check_same(needs: Sequence[Need], marks: Mapping[str, Mapping[str, str | None]], here: str) -> None:
    """`marks`: what each node says of each path; `here` is the node whose files the others' must equal.

    Raises:
        DataError: a node lacks a path that it needs, or has other files there.
    """
    for need in needs:
        for node in need.nodes:
            mark = marks[node][need.path]
            if mark is None:
                raise DataError(
                    f"{node} has no {need.path}, which is read there by the {need.reader}: put it on storage that all "
                    "nodes share, or copy it to the same path on each of them."
                )
            if mark != marks[here][need.path]:
                raise DataError(
                    f"{need.path} is read by the {need.reader} on {node} and holds other files there than on {here} "
                    "(names or sizes differ): copy it there again, or put it on storage that all nodes share."
                )
