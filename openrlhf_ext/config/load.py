"""From a command line and YAML files to a checked config tree.

Files are layered in their order, flags over files. Every value is text until tyro's constructors make it
the field's type, so a file and a flag mean the same by the same text (`off` stays `off`, `1e-6` is a float).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tyro.constructors import ConstructorRegistry, PrimitiveTypeInfo

from openrlhf_ext.config.aliases import GONE, OLD_LENGTHS, old_flags_of
from openrlhf_ext.config.dpo import DPOConfig
from openrlhf_ext.config.fields import ConfigT, Flag, flags_of, replaced, sections_of
from openrlhf_ext.config.layers import Setting, read_yaml, scan
from openrlhf_ext.config.nearest import nearest
from openrlhf_ext.config.presets import Preset, named_preset
from openrlhf_ext.config.rl import RLConfig
from openrlhf_ext.config.rm import RMConfig
from openrlhf_ext.config.rules import Violation, advice, broken_rules, idle_paths
from openrlhf_ext.config.serve_rm import ServeRMConfig
from openrlhf_ext.config.sft import SFTConfig
from openrlhf_ext.errors import ConfigError

# The commands that train, which can be planned and checked; and all that have flags.
COMMANDS: Mapping[str, type] = {"rl": RLConfig, "sft": SFTConfig, "rm": RMConfig, "dpo": DPOConfig}
TREES: Mapping[str, type] = {**COMMANDS, "serve-rm": ServeRMConfig}

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_YAML_FLOATS = {".inf": "inf", "-.inf": "-inf", ".nan": "nan"}


@dataclass(frozen=True, slots=True)
class Parsed:
    """A checked config.

    `explicit`: the paths that a flag set, or a file to another value than the default; a default that the
    device cannot honour may be replaced, an explicit value may not. `notes`: lines for the user, such as
    the new name of an old flag. `preset`: the one that lies under the flags.
    """

    config: Any
    explicit: frozenset[str]
    notes: tuple[str, ...]
    preset: Preset | None = None


def parse(command: str | type, argv: Sequence[str], *, planning: bool = False) -> Parsed:
    """Parse and check a command line (without the command's name).

    `planning`: what only keeps the command from starting is no error.

    Raises ConfigError, one line for each flag that is unknown, refused, malformed or at odds with another.
    """
    parsed, violations = examine(command, argv)
    violations = [item for item in violations if not (planning and item.plannable)]
    if violations:
        raise ConfigError("\n".join(dict.fromkeys(str(item) for item in violations)))
    return parsed


def examine(command: str | type, argv: Sequence[str]) -> tuple[Parsed, list[Violation]]:
    """The config as far as the command line can be understood, and all that is wrong with it.

    A flag that cannot be understood has its default, and rules are asked only where all of them can. Raises
    ConfigError for what is no list of flags at all: a stray value, a file that cannot be read.
    """
    tree = TREES[command] if isinstance(command, str) else command
    given = scan(argv)
    preset = named_preset(given, command) if isinstance(command, str) else None
    read = _read(tree, _with_old_lengths(tree, [*(preset.settings if preset else ()), *_layered(given)]))
    # An old flag that set several roles at once does not stumble over a role that is not there.
    config, explicit = replaced(tree(), read.values), read.explicit
    idle = read.shared & idle_paths(config)
    config = replaced(config, {path: flags_of(tree)[path].default for path in idle})
    violations = read.violations
    if not violations:
        violations = broken_rules(config, frozenset(explicit - idle))
    notes = [*read.notes, *(advice(config) if all(item.plannable for item in violations) else ())]
    return Parsed(config, frozenset(explicit - idle), tuple(dict.fromkeys(notes)), preset), violations


def parse_flags(tree: type[ConfigT], argv: Sequence[str]) -> ConfigT:
    """The flags of a small tree of its own, without rules. Raises ConfigError as `parse` does."""
    read = _read(tree, scan(argv))
    if read.violations:
        raise ConfigError("\n".join(dict.fromkeys(str(item) for item in read.violations)))
    return replaced(tree(), read.values)


@dataclass(slots=True)
class _Read:
    """What settings came to. `shared`: paths set only along with another one, by an old name."""

    values: dict[str, Any] = field(default_factory=dict)
    explicit: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)


def _layered(given: Sequence[Setting]) -> list[Setting]:
    """The lines of the files that are named, then the flags."""
    files = [Path(name) for item in given if item.name == "config" for name in item.values or ()]
    lines = [item for file in files for item in read_yaml(file)]
    return lines + [item for item in given if item.name not in ("config", "preset")]


def _read(tree: type, settings: Sequence[Setting]) -> _Read:
    result = _Read()
    for found in _resolved(tree, settings):
        if isinstance(found, Violation):
            result.violations.append(found)
        elif isinstance(found, str):
            result.notes.append(found)
        else:
            flag = flags_of(tree)[found.name]
            try:
                value = result.values[flag.path] = _convert(flag, found)
            except ValueError:
                shown = "(hidden)" if flag.secret else " ".join(found.values or ())
                result.violations.append(
                    Violation(found.origin, shown or "without a value", f"it takes {wanted(flag)}")
                )
                continue
            (result.shared.add if found.shared else result.shared.discard)(flag.path)
            if not found.file or value != flag.default:
                result.explicit.add(flag.path)
    return result


def _resolved(tree: type, settings: Sequence[Setting]) -> Iterator[Setting | Violation | str]:
    """Each setting under the name of a flag of this tree, or what is wrong with it; and notes."""
    flags = flags_of(tree)
    for item in settings:
        positive = re.sub(r"(^|\.)no_(?=[^.]+$)", r"\1", item.name)
        if item.name in flags:
            yield item
        elif item.name == "device":
            yield item.renamed("device.type")
        elif positive in flags and flags[positive].is_bool and item.values == ():
            yield item.renamed(positive, ("false",))
        elif item.name in GONE:
            yield Violation(item.origin, None, GONE[item.name])
        elif item.name in old_flags_of(tree):
            yield from _from_old_name(tree, item)
        elif item.name in sections_of(tree) and item.values is None:
            continue  # a section with nothing in it
        elif item.name in sections_of(tree):
            yield Violation(item.origin, None, f"it is a section; --help {item.name} lists its flags")
        else:
            near = nearest(item.name, [*flags, *old_flags_of(tree), "config", "preset", "device", "help"])
            ask = f"did you mean {near}" if near else "--help lists the flags there are"
            yield Violation(item.origin, None, f"there is no such flag; {ask}")


def _from_old_name(tree: type, item: Setting) -> Iterator[Setting | Violation | str]:
    old = old_flags_of(tree)[item.name]
    if old.value is not None and item.values and item.values != ("true",):
        yield Violation(item.origin, " ".join(item.values), "it is a switch; leave it out to turn it off")
        return
    for text in old.gone.keys() & set(item.values or ()):
        yield Violation(item.origin, text, old.gone[text])
        return
    values = item.values if old.value is None else (old.value,)
    values = values and tuple(old.translate.get(text, text) for text in values)
    fixed = f" {old.value}" if old.value is not None else ""
    yield f"{item.origin} is now {' and '.join('--' + path + fixed for path in old.targets)}"
    for path in old.targets:
        yield item.renamed(path, values, shared=path != old.targets[0])


def _with_old_lengths(tree: type, settings: Sequence[Setting]) -> list[Setting]:
    """The old prompt_max_len bounded the prompt alone; data.max_len bounds prompt and response together."""
    prompt_flag, response_flag, default = OLD_LENGTHS
    if prompt_flag not in old_flags_of(tree):
        return list(settings)
    response = next((item.values for item in reversed(settings) if item.name == response_flag), (str(default),))
    result = []
    for item in settings:
        numbers = (*(item.values or ()), *(response or ()))
        if item.name == prompt_flag and len(numbers) == 2 and all(text.isdigit() for text in numbers):
            item = dataclasses.replace(item, values=(str(int(numbers[0]) + int(numbers[1])),))
        result.append(item)
    return result


def _convert(flag: Flag, item: Setting) -> Any:
    """The setting's text as the flag's type. Raises ValueError."""
    values = item.values
    if flag.is_optional and (values is None or values == ("None",)):
        return None
    if flag.is_bool:
        if values == () and not item.file:
            return True
        word = _WORDS.get(values[0].lower()) if values and len(values) == 1 else None
        if word is None:
            raise ValueError("not a boolean")
        return word
    least, most = flag.arity
    if values is None or not (least <= len(values) and (most is None or len(values) <= most)):
        raise ValueError("wrong number of values")
    if item.file and not flag.is_text:
        values = tuple(_YAML_FLOATS.get(text.lower(), text) for text in values)
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(flag.type, set()))
    assert not hasattr(spec, "message"), f"tyro has no constructor for {flag.path}: {flag.type}"
    return spec.instance_from_str(list(values))


def wanted(flag: Flag) -> str:
    """What a flag takes, in words: `int`, `2 values: float float`, `one of ppo|gspo`."""
    least, most = flag.arity
    if "|" in flag.type_name:
        return f"one of {flag.type_name}"
    return f"{least} values: {flag.type_name}" if most == least != 1 else flag.type_name
