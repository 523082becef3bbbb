"""Model folders and hub names: what their files tell without being loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf_ext.cli.checks.finding import Finding, of_error, ok
from openrlhf_ext.cli.checks.subject import Subject
from openrlhf_ext.errors import UserError

if TYPE_CHECKING:
    from openrlhf_ext.models.spec import ModelSpec

AREA = "model"
ROLES = {"causal_lm": "model", "value": "critic", "reward": "reward model"}


def find_models(subject: Subject) -> Iterator[Finding]:
    from openrlhf_ext.models.build import check_spec
    from openrlhf_ext.models.load import has_vision_tower

    for name, spec in specs_of(subject):
        try:
            check_spec(spec)
        except UserError as raised:
            yield of_error(AREA, raised)
            subject.broken_models.add(spec.path)
            continue
        if not Path(spec.path).is_dir():
            yield ok(AREA, f"{name} {spec.path}: the hub or its local cache has it")
            continue
        shapes = weight_shapes(spec.path)
        parameters = sum(math.prod(shape) for shape in shapes.values())
        part = ", of which the text tower alone is trained" if has_vision_tower(spec.path) else ""
        yield ok(AREA, f"{name} {spec.path}: {parameters:,} parameters in {len(shapes)} tensors{part}")


def specs_of(subject: Subject) -> list[tuple[str, ModelSpec]]:
    """Every model that the command loads, and what it calls it. Raises ConfigError as the command does."""
    if subject.command == "rl":
        from openrlhf_ext.cli.rl_roles import model_specs

        specs = model_specs(subject.parsed, subject.device)
        return [(_role_of(spec), spec) for spec in specs]
    from openrlhf_ext.cli.specs import model_spec
    from openrlhf_ext.cli.supervised_model import base_path

    config, device = subject.config, subject.device
    chosen = "ds.attn_implementation" in subject.parsed.explicit
    spec = model_spec(base_path(config.model.model_name_or_path), config.model, config.ds, device, explicit=chosen)
    if subject.command == "rm":
        spec = replace(spec, kind="reward", new_head=True, value_head=config.ds.value_head_prefix)
    if subject.command != "dpo" or config.ref.model_name_or_path is None:
        return [("model", spec)]
    reference = model_spec(config.ref.model_name_or_path, config.model, config.ds, device, explicit=chosen)
    return [("model", spec), ("reference", replace(reference, lora=None))]


def _role_of(spec: ModelSpec) -> str:
    if spec.kind == "causal_lm":
        return "policy" if spec.served else "student"
    return ROLES[spec.kind]


def weight_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a folder, from the heads of its files."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in Path(path).glob("*.safetensors"):
        with safe_open(file, framework="numpy") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    return shapes
