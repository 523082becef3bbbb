"""Rows of one data set or a mixture, each with the name of its source.

A data set is a file (see `readers`), a folder written by `save_to_disk`, a folder of data files or a
name on the Hugging Face hub; `name@folder` names a folder inside a hub data set. Several are joined
with commas, as OpenRLHF 0.11.2 does: without probabilities one after the other; with them interleaved
at random, a source that ends starting again, until every source has been seen whole.
`datasets` is imported for the last three and for probabilities only.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ext.data.hub import HUB_NAME, check_on_hub
from openrlhf_ext.data.readers import READERS, data_suffix
from openrlhf_ext.errors import ConfigError, DataError, missing_file


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its columns, the name of its source and its place there (0-based)."""

    values: Mapping[str, Any]
    source: str
    index: int

    def __getitem__(self, column: str) -> Any:
        return self.values[column]

    @property
    def where(self) -> str:
        return f"row {self.index + 1} of {self.source}"


def load_rows(
    dataset: str,
    *,
    probs: Sequence[float] | None = None,
    split: str = "train",
    max_samples: int | None = None,
    seed: int = 42,
) -> list[Row]:
    """The rows of `dataset` (comma-separated) in order, at most `max_samples` per source and in all.

    Raises DataError for what cannot be read and for a data set without rows, ConfigError for
    probabilities that do not fit the sources.
    """
    specs = [spec.strip() for spec in dataset.split(",") if spec.strip()]
    if not specs:
        raise DataError("no data set is named: give a file, a folder or a hub name.")
    names = source_names(specs)
    sources = []
    for spec, name in zip(specs, names, strict=True):
        values = _read(spec, split, max_samples)
        if not values:
            raise DataError(f"{spec} has no rows: give a data set with at least one.")
        sources.append([Row(value, name, index) for index, value in enumerate(values)])
    if probs is None:
        rows = [row for source in sources for row in source]
    else:
        rows = _interleave(sources, probs, seed)
    return rows[:max_samples]


def parse_probs(text: str | None) -> tuple[float, ...] | None:
    """`"0.3,0.7"` as numbers; None for None or an empty text. Raises ConfigError."""
    if not text:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"data set probabilities {text!r} are not numbers joined by commas, like 0.3,0.7.") from None


def source_names(specs: Sequence[str]) -> list[str]:
    """A short name per source: the file's stem or the hub name, with the folder's name where stems repeat."""
    paths = [spec.partition("@")[0].strip() for spec in specs]

    def short(path: str) -> str:
        suffix = data_suffix(path)
        return Path(path[: -len(suffix)]).name if suffix else (Path(path).name or path)

    stems = [short(path) for path in paths]
    names = [
        stem if stems.count(stem) == 1 else f"{Path(path).parent.name}/{stem}".lstrip("/")
        for path, stem in zip(paths, stems, strict=True)
    ]
    return [name if names.count(name) == 1 else spec for name, spec in zip(names, specs, strict=True)]


def require_columns(rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    """Raise DataError for the first row that lacks a column; `columns` maps a column to the flag that names it."""
    for row in rows:
        for column, flag in columns.items():
            if column not in row.values:
                there = ", ".join(map(str, row.values)) or "none"
                raise DataError(f"{row.where} has no column {column!r} ({flag}); the columns there are: {there}.")


def content_id(content: Any, seen: Counter[str]) -> str:
    """A hash of the content with the number of earlier rows of the same content (`seen`), so that
    duplicates differ. Stable over runs."""
    text = json.dumps(content, ensure_ascii=False, default=str)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    seen[digest] += 1
    return f"{digest}-{seen[digest] - 1}"


def _interleave(sources: Sequence[list[Row]], probs: Sequence[float], seed: int) -> list[Row]:
    if len(probs) != len(sources):
        raise ConfigError(f"{len(probs)} probabilities for {len(sources)} data sets: give one for each.")
    if any(p <= 0 for p in probs) or abs(sum(probs) - 1.0) > 1e-6:
        raise ConfigError(f"data set probabilities {list(probs)} must be positive and sum to 1.")
    import datasets

    # The library interleaves indices, so the order is the very one that OpenRLHF trains in.
    indices = [
        datasets.Dataset.from_dict({"source": [number] * len(rows), "index": list(range(len(rows)))})
        for number, rows in enumerate(sources)
    ]
    mixed = datasets.interleave_datasets(
        indices, probabilities=list(probs), seed=seed, stopping_strategy="all_exhausted"
    )
    return [sources[pair["source"]][pair["index"]] for pair in mixed]


def _read(spec: str, split: str, limit: int | None) -> list[dict[str, Any]]:
    name, _, data_dir = (part.strip() for part in spec.partition("@"))
    path = Path(name).expanduser()
    suffix = data_suffix(name)
    if suffix and not path.is_dir():
        if not path.is_file():
            raise DataError(missing_file(path))
        if split != "train":
            raise DataError(f"{path} is one file, with the split 'train' only: the split {split!r} cannot be taken.")
        try:
            return READERS[suffix](path, limit)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror or error}).") from None
    if path.is_file():
        known = ", ".join(READERS)
        raise DataError(f"{path} does not end like a data file: known endings are {known}.")
    if not path.is_dir() and (name.startswith(("/", ".", "~")) or not HUB_NAME.fullmatch(name)):
        raise DataError(missing_file(path))
    return _read_with_datasets(name, path, data_dir or None, split, limit)


def _read_with_datasets(
    name: str, path: Path, data_dir: str | None, split: str, limit: int | None
) -> list[dict[str, Any]]:
    import datasets

    if not path.is_dir():
        check_on_hub(name, "dataset")
    saved = path.is_dir() and any((path / f).is_file() for f in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            data = datasets.load_from_disk(str(path))
        else:
            data = datasets.load_dataset(str(path) if path.is_dir() else name, data_dir=data_dir)
    except Exception as error:  # the library and the hub raise many kinds; to the user all mean the same
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"{name} cannot be loaded by `datasets` ({reason}): check it, or give a data file.") from None
    if isinstance(data, dict):
        if split not in data:
            raise DataError(f"{name} has no split {split!r}; the splits there are: {', '.join(map(str, data))}.")
        data = data[split]
    if limit is not None:
        data = data.select(range(min(limit, len(data))))
    return data.with_format(None).to_list()
