"""Presets: shipped YAML files of flags for one purpose and one kind of machine, `--preset NAME`.

Such a file says under `preset` what it is for; everything else in it are flags as in any `--config` file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openrlhf_ext.config.layers import Setting, read_yaml
from openrlhf_ext.config.nearest import nearest
from openrlhf_ext.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "presets"


@dataclass(frozen=True, slots=True)
class Preset:
    """`commands` it is for; `card` and `count`: the GPUs of each of `nodes` machines it was made for (none: a CPU)."""

    name: str
    about: str
    commands: tuple[str, ...]
    card: str | None
    count: int
    nodes: int
    settings: tuple[Setting, ...]


def preset_names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def named_preset(given: Sequence[Setting], command: str) -> Preset | None:
    """The preset that these settings ask for. Raises ConfigError for one that is not there, or of another command."""
    names = [name for item in given if item.name == "preset" for name in item.values or ("",)]
    if not names:
        return None
    if len(names) > 1:
        raise ConfigError(f"--preset {' '.join(names)}: give one; further files go under --config.")
    if names[0] not in preset_names():
        near = nearest(names[0], preset_names(), dashes=False)
        ask = f"did you mean {near}" if near else f"the presets are {', '.join(preset_names())}"
        raise ConfigError(f"--preset {names[0]}: there is no such preset; {ask}.")
    preset = load_preset(names[0])
    if command not in preset.commands:
        raise ConfigError(f"--preset {preset.name}: it is for {' and '.join(preset.commands)}, not for {command}.")
    return preset


def load_preset(name: str) -> Preset:
    lines = read_yaml(FOLDER / f"{name}.yaml")
    about = {item.name.partition(".")[2]: item.values or () for item in lines if item.name.startswith("preset.")}
    return Preset(
        name=name,
        about=" ".join(about["about"]),
        commands=tuple(about["commands"]),
        card=" ".join(about.get("card", ())) or None,
        count=int(*about.get("count", ("1",))),
        nodes=int(*about.get("nodes", ("1",))),
        settings=tuple(item for item in lines if not item.name.startswith("preset.")),
    )
