"""Log-probs of a reference model, kept on disk: computed once, found again by the next run.

A line is written for each answer as soon as its batch is done, so a computation that is killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from openrlhf_ext.errors import DataError

CHUNK = 1 << 24


class ReferenceCache:
    """Numbers by key in `folder`, in a file of their own for each `model`, which is a digest (`model_digest`).

    Raises DataError for a file that holds something else; a last line that was cut off is computed again.
    """

    def __init__(self, folder: Path, model: str, *, kept_elsewhere: Mapping[str, float] | None = None) -> None:
        """`kept_elsewhere`: another process keeps the file, and this is what it has read."""
        self.path = folder / f"{model}.jsonl"
        self._known: dict[str, float] = dict(kept_elsewhere or {})
        self._keeps = kept_elsewhere is None
        if not self._keeps:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._known = self._read()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def known(self) -> Mapping[str, float]:
        return self._known

    def missing(self, keys: Sequence[str]) -> list[int]:
        """The indices of the keys that are not known, each key once."""
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        return sorted(index for key, index in first.items() if key not in self._known)

    def __getitem__(self, key: str) -> float:
        return self._known[key]

    def add(self, values: Mapping[str, float]) -> None:
        if self._keeps:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{json.dumps([key, value])}\n" for key, value in values.items())
        self._known |= values

    def _read(self) -> dict[str, float]:
        whole, _, torn = self.path.read_text(encoding="utf-8").rpartition("\n")
        if torn:  # killed while it was written: the next line must begin on one of its own
            self.path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
        try:
            return dict(json.loads(line) for line in whole.splitlines())
        except ValueError as error:
            raise DataError(
                f"{self.path} is not a cache of reference log-probs ({error}): delete it, or give another "
                "--ref.cache_dir."
            ) from error


def answer_key(token_ids: Sequence[int], prompt_length: int) -> str:
    """The digest of an answer after its prompt: what the model sees, and which part of it counts."""
    return hashlib.blake2b(json.dumps([prompt_length, *token_ids]).encode(), digest_size=16).hexdigest()


def model_digest(folder: Path, *run_with: object) -> str:
    """The digest of a model's files and of how it is run. All of them are read, a GB in about a second."""
    digest = hashlib.blake2b(repr(run_with).encode(), digest_size=16)
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")])
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
