"""One assessment on disk: what is judged, by whom and in which order, fixed when it is made.

A folder holds `assessment.json` (this), `judgements.jsonl` (see `log`) and `secret` (see `server`). The items are kept
whole, so a report needs no other file, and the same folder never takes the answers of another model.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openrlhf_ext.assess.items import Item, item_of
from openrlhf_ext.assess.verdicts import Task
from openrlhf_ext.errors import ConfigError, DataError, ResourceError
from openrlhf_ext.evaluation.answers import Answerer
from openrlhf_ext.track.files import write_atomically
from openrlhf_ext.types import derive_seed

ASSESSMENT, JUDGEMENTS, SECRET = "assessment.json", "judgements.jsonl", "secret"
FORMAT = 1
RATER = re.compile(r"[\w.-]{1,40}")


@dataclass(frozen=True)
class Assessment:
    """`overlap`: so many items are seen by all raters, the others by one each; None: all are seen by all."""

    task: Task
    models: tuple[Answerer, ...]
    raters: tuple[str, ...]
    overlap: int | None
    seed: int
    items: tuple[Item, ...]
    left_out: Mapping[str, int]

    @functools.cached_property
    def by_key(self) -> Mapping[str, Item]:
        return {item.key: item for item in self.items}

    def shared(self) -> list[str]:
        """The keys that every rater sees, in random order."""
        return self._shuffled()[: self.overlap]

    def order(self, rater: str) -> list[str]:
        """The keys that this rater sees, in the order in which they are shown; the same whenever it is asked."""
        self.require_rater(rater)
        shuffled = self._shuffled()
        rest = shuffled[len(self.shared()) :]
        keys = self.shared() + rest[self.raters.index(rater) :: len(self.raters)]
        random.Random(derive_seed(self.seed, "order", rater)).shuffle(keys)
        return keys

    def turned(self, rater: str, key: str) -> bool:
        """Whether this rater sees the second model's answer as A."""
        return bool(derive_seed(self.seed, "side", rater, key) & 1)

    def model(self, fingerprint: str) -> Answerer:
        return next(model for model in self.models if model.fingerprint == fingerprint)

    def require_rater(self, rater: str) -> None:
        """Raises ConfigError for a name that is not of this assessment."""
        if rater not in self.raters:
            raise ConfigError(
                f"{rater!r} is no rater of this assessment, whose raters are {', '.join(self.raters)}: name one of "
                "them."
            )

    def _shuffled(self) -> list[str]:
        keys = sorted(self.by_key)
        random.Random(derive_seed(self.seed, "items")).shuffle(keys)
        return keys


def check_raters(raters: Sequence[str]) -> None:
    """Raises ConfigError for names that cannot be told apart or kept."""
    for rater in raters:
        if not RATER.fullmatch(rater):
            raise ConfigError(f"the rater {rater!r}: a name has letters, digits, '.', '_' and '-', at most 40 of them.")
    folded = [rater.casefold() for rater in raters]
    if len(set(folded)) < len(folded) or not folded:
        raise ConfigError(f"the raters are {', '.join(raters) or 'none'}: give each a name of their own.")


def exists(folder: Path) -> bool:
    """Raises DataError for judgements without their assessment."""
    if not (folder / ASSESSMENT).exists() and (folder / JUDGEMENTS).exists():
        raise DataError(
            f"{folder} holds {JUDGEMENTS} and no {ASSESSMENT}: put that file back, or give another --assess.folder."
        )
    return (folder / ASSESSMENT).exists()


def write_assessment(folder: Path, assessment: Assessment) -> None:
    """Raises ResourceError where the folder cannot be made."""
    assert not exists(folder), "an assessment is never replaced"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"format": FORMAT, **asdict(assessment)}, ensure_ascii=False, indent=1)
        write_atomically(folder / ASSESSMENT, content.encode())
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be written ({error.strerror}): give another folder by --assess.folder."
        ) from None


def read_assessment(folder: Path) -> Assessment:
    """Raises DataError where there is none, or a file that is none."""
    path = folder / ASSESSMENT
    if not exists(folder):
        raise DataError(f"{path} does not exist: give the folder of an assessment that `assess serve` has made.")
    try:
        value = json.loads(path.read_bytes())
        if value.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        return _assessment_of(value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no assessment ({error}): put back the file, or give another folder.") from None


def _assessment_of(value: Mapping[str, Any]) -> Assessment:
    return Assessment(**{
        **value,
        "models": tuple(Answerer(**model) for model in value["models"]),
        "raters": tuple(value["raters"]),
        "items": tuple(item_of(item) for item in value["items"]),
    })  # fmt: skip


def require_same(folder: Path, there: Assessment, wanted: Assessment) -> None:
    """Raises DataError that names the first thing in which the assessment in `folder` is another one than wanted."""

    def refuse(what: str) -> None:
        raise DataError(f"{folder} is another assessment ({what}); nothing was changed: give another --assess.folder.")

    if there.task != wanted.task:
        refuse(f"of the task {there.task}, not {wanted.task}")
    for mine, theirs in zip(wanted.models, there.models, strict=False):
        if mine.fingerprint != theirs.fingerprint:
            refuse(f"of {theirs.name} with fingerprint {theirs.fingerprint}, not {mine.name} with {mine.fingerprint}")
    if len(there.models) != len(wanted.models):
        refuse(f"of {len(there.models)} models, not {len(wanted.models)}")
    if there.raters != wanted.raters:
        refuse(f"its raters are {', '.join(there.raters)}")
    for name in ("overlap", "seed"):
        if getattr(there, name) != getattr(wanted, name):
            refuse(f"its --assess.{name} is {getattr(there, name)}")
    if there.items != wanted.items:
        refuse(f"its {len(there.items)} items are not the {len(wanted.items)} that are given")
