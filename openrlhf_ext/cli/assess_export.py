"""`assess export`: judgements as JSONL, and as preference rows that `dpo` and `rm` read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_ext.assess.export import judgement_rows, preference_rows
from openrlhf_ext.assess.opinions import opinions
from openrlhf_ext.cli.assess_serve import open_folder
from openrlhf_ext.config.assess import AssessExportConfig
from openrlhf_ext.errors import DataError, ResourceError
from openrlhf_ext.track.files import write_atomically


def run(cfg: AssessExportConfig) -> int:
    """0 when all files are written. Raises DataError, before any is, for one that is there or would have no row."""
    assessment, log = open_folder(cfg.assess.folder)
    held = opinions(assessment, log)
    files: dict[Path, Sequence[Mapping[str, Any]]] = {}
    told = []
    if cfg.export.judgements is not None:
        path = Path(cfg.export.judgements).expanduser()
        files[path] = judgement_rows(assessment, held)
        told.append(f"{len(files[path])} judgements in {path}")
    if cfg.export.preferences is not None:
        path = Path(cfg.export.preferences).expanduser()
        found = preference_rows(assessment, held, with_references=cfg.export.with_references)
        files[path] = found.rows
        lost = ", ".join(f"{n} {reason}" for reason, n in found.left_out.items()) or "nothing"
        told.append(f"{len(found.rows)} preferences in {path}; left out: {lost}")
        if not found.rows:
            raise DataError(f"no preference can be told from the judgements (left out: {lost}): nothing was written.")
    if not any(each.judgements for each in held):
        raise DataError(f"{cfg.assess.folder} holds no judgement yet: judge some items by `assess serve` first.")
    for path in files:
        if path.exists() and not cfg.export.overwrite:
            raise DataError(f"{path} is there already: give another name, or add --export.overwrite.")
    for path, rows in files.items():
        _write(path, rows)
    print("\n".join(told))
    return 0


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    except OSError as error:
        raise ResourceError(f"{path} cannot be written ({error.strerror}): give another name.") from None
