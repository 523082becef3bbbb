"""A resolved config on disk, which `--config` takes back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from openrlhf_ext.config.fields import flags_of, get

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s,]+@")  # user:password@ of a URL


def dump(config: Any) -> dict[str, Any]:
    """The tree as nested dicts of plain values; secrets are left out."""
    result: dict[str, Any] = {}
    for flag in flags_of(type(config)).values():
        if flag.secret:
            continue
        *sections, name = flag.path.split(".")
        node = result
        for item in sections:
            node = node.setdefault(item, {})
        node[name] = _plain(get(config, flag.path))
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return _CREDENTIALS.sub("", value) if isinstance(value, str) else value


def write_yaml(config: Any, path: Path) -> None:
    """Write `dump(config)`; `parse` with `--config PATH` gives the same tree (but for secrets)."""
    text = yaml.safe_dump(dump(config), sort_keys=False, allow_unicode=True, width=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
