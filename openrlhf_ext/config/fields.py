"""How a flag is declared: a dataclass field with its help, and why it is refused where it is.

The attribute path is the flag: `--algo.kl.init_coef` is `cfg.algo.kl.init_coef`.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

ConfigT = TypeVar("ConfigT")


def flag(
    default: Any,
    help: str,
    *,
    refused: str | None = None,
    refused_values: Mapping[Any, str] | None = None,
    common: bool = False,
    secret: bool = False,
) -> Any:
    """A field that is a flag.

    `refused`: why any value but the default is an error (the flag is OpenRLHF's, the part is not here).
    `refused_values`: the same for some values only. `common` flags are shown in the short help;
    `secret` ones are never written to disk.
    """
    metadata = {
        "help": help,
        "refused": refused,
        "refused_values": dict(refused_values or {}),
        "common": common,
        "secret": secret,
    }
    return dataclasses.field(default=default, metadata=metadata)


def section(factory: Any, help: str, *, refused: str | None = None) -> Any:
    """A field that is a group of flags; `refused` holds for each of them."""
    return dataclasses.field(default_factory=factory, metadata={"help": help, "refused": refused})


_PLANNED = "is not in this version yet"


def planned(part: str) -> str:
    return f"{part} {_PLANNED}"


def is_planned(reason: str) -> bool:
    """Whether a flag is refused for the time being only; a plan can be made with it already."""
    return reason.endswith(_PLANNED)


def declined(part: str) -> str:
    return f"{part} is not supported"


@dataclass(frozen=True, slots=True)
class Flag:
    """One leaf of a config tree."""

    path: str
    type: Any
    default: Any
    help: str
    refused: str | None
    refused_values: Mapping[Any, str]
    common: bool
    secret: bool

    @property
    def is_bool(self) -> bool:
        return self.type is bool

    @property
    def arity(self) -> tuple[int, int | None]:
        """The least and the most values it takes on the command line (None: any number)."""
        inner = without_none(self.type)
        if typing.get_origin(inner) is not tuple:
            return 1, 1
        items = typing.get_args(inner)
        return (0, None) if items[-1] is Ellipsis else (len(items), len(items))

    @property
    def is_text(self) -> bool:
        """Made of plain strings, which need no conversion."""
        return without_none(self.type) in (str, tuple[str, ...])

    @property
    def is_optional(self) -> bool:
        return types.NoneType in typing.get_args(self.type)

    @property
    def type_name(self) -> str:
        """As a user reads it: `int`, `float float`, `ppo|gspo`, `text ...`."""
        inner = without_none(self.type)
        if typing.get_origin(inner) is Literal:
            return "|".join(str(choice) for choice in typing.get_args(inner))
        if typing.get_origin(inner) is tuple:
            items = typing.get_args(inner)
            if items[-1] is Ellipsis:
                return f"{_plain(items[0])} ..."
            return " ".join(_plain(item) for item in items)
        return _plain(inner)


def _plain(kind: type) -> str:
    return {str: "text", bool: "true|false"}.get(kind, kind.__name__)


def without_none(kind: Any) -> Any:
    """`T` of `T | None`, else the type itself."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        inner = [item for item in typing.get_args(kind) if item is not types.NoneType]
        assert len(inner) == 1, f"a flag has one type, not {kind}"
        return inner[0]
    return kind


def flags_of(command: type) -> Mapping[str, Flag]:
    """Every flag of a config class by its path, in the order of the tree."""
    return _flags_of(command)


@functools.cache
def _flags_of(command: Any) -> Mapping[str, Flag]:
    return {item.path: item for item in _walk(command, "", command())}


def sections_of(command: type) -> Mapping[str, str]:
    """The top-level sections of a config class with their one-line help."""
    return {
        item.name: item.metadata["help"]
        for item in dataclasses.fields(command)
        if item.default_factory is not dataclasses.MISSING
    }


def _walk(node: type, prefix: str, value: Any, refused: str | None = None) -> Iterator[Flag]:
    hints = typing.get_type_hints(node)
    for item in dataclasses.fields(node):
        path, child = prefix + item.name, getattr(value, item.name)
        if dataclasses.is_dataclass(child):
            yield from _walk(type(child), path + ".", child, refused or item.metadata["refused"])
        else:
            meta = item.metadata
            yield Flag(path, hints[item.name], child, meta["help"], refused or meta["refused"], meta["refused_values"],
                       meta["common"], meta["secret"])  # fmt: skip


def get(config: Any, path: str) -> Any:
    """The value at a path."""
    return functools.reduce(getattr, path.split("."), config)


def replaced(config: ConfigT, changes: Mapping[str, Any]) -> ConfigT:
    """A copy with the values at these paths changed."""
    for path, value in changes.items():
        config = _replaced(config, path.split("."), value)
    return config


def _replaced(node: Any, names: list[str], value: Any) -> Any:
    head, *rest = names
    child = _replaced(getattr(node, head), rest, value) if rest else value
    return dataclasses.replace(node, **{head: child})
