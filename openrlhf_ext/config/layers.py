"""What was asked for, before it means anything: flags of a command line and lines of YAML files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from openrlhf_ext.errors import ConfigError, missing_file

_FLAG = re.compile(r"--[A-Za-z]")  # so `-10` and `---` are values


@dataclass(frozen=True, slots=True)
class Setting:
    """One flag or one line of a file. `values` is None for a null in a file, () for a bare flag.

    `shared`: an old name set this flag along with another one, of a role that may not be there.
    """

    name: str
    values: tuple[str, ...] | None
    file: str | None = None
    spelled: str | None = None
    shared: bool = False

    @property
    def origin(self) -> str:
        """As its user wrote it."""
        name = self.spelled or self.name
        return f"{name} (in {self.file})" if self.file else f"--{name}"

    def renamed(self, name: str, values: tuple[str, ...] | None = None, shared: bool = False) -> Setting:
        values = self.values if values is None else values
        return dataclasses.replace(self, name=name, spelled=self.spelled or self.name, values=values, shared=shared)


def scan(argv: Sequence[str]) -> list[Setting]:
    """Flags with the values that follow them; `--flag=value` too. Raises ConfigError on a stray value."""
    found: list[tuple[str, list[str]]] = []
    for token in argv:
        if _FLAG.match(token):
            name, equals, value = token[2:].partition("=")
            found.append((name, [value] if equals else []))
        elif found:
            found[-1][1].append(token)
        else:
            raise ConfigError(f"{token!r} is not a flag: flags begin with --, as in --train.batch_size 128.")
    settings = [Setting(name, tuple(values)) for name, values in found]
    if any(item.name == "config" and not item.values for item in settings):
        raise ConfigError("--config takes one or more YAML files.")
    return settings


class _TextLoader(yaml.SafeLoader):
    """Reads every scalar as text, except null; and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(file: Path) -> list[Setting]:
    """The lines of a YAML file, as dotted paths. Raises ConfigError naming the file."""
    if not file.is_file():
        raise ConfigError(f"--config {missing_file(file)}")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_TextLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file}: the file cannot be read ({error}): give a YAML file in UTF-8.") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise ConfigError(f"--config {file}{line}: not valid YAML ({getattr(error, 'problem', error)}).") from error
    if content is None:
        return []
    if not isinstance(content, dict):
        raise ConfigError(f"--config {file}: it must hold sections and flags, as in `train: {{batch_size: 128}}`.")
    return list(_flatten(content, "", file))


def _flatten(node: dict[Any, Any], prefix: str, file: Path) -> Iterator[Setting]:
    for key, value in node.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flatten(value, path + ".", file)
        elif isinstance(value, list):
            if any(not isinstance(item, str) for item in value):
                raise ConfigError(f"--config {file}: the list {path} may hold plain values only.")
            yield Setting(path, tuple(value), str(file))
        else:
            yield Setting(path, None if value is None else (value,), str(file))
