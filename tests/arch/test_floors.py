"""Imports point down only (DESIGN: the floors), those inside functions included."""

from __future__ import annotations

import ast
import sys

import pytest
from package_source import PACKAGE, Module, imports, lines_for_types, modules

FLOORS = {
    "errors": 0, "types": 0, "condition": 0, "cores": 0, "config": 0, "plan": 0,
    "ops": 1, "batch": 1, "device": 1, "track": 1,
    "ports": 2, "data": 2, "rewards": 2,
    "models": 3, "engine": 3, "rollout": 3,
    "trainers": 4, "evaluation": 4, "assess": 4,
    "cluster": 5,
    "cli": 6,
}  # fmt: skip

# A third-party package and the only parts that may import it.
HOMES = {
    "ray": {"cluster"},
    "deepspeed": {"engine"},
    "vllm": {"rollout"},
    "peft": {"models"},
    "bitsandbytes": {"models", "engine"},
    "transformers": {"data", "rewards", "models", "engine", "rollout"},
    "torch": set(FLOORS) - {"errors", "types", "condition", "cores", "config", "plan", "cli"},
    "tyro": {"config", "cli"},
    "yaml": {"config", "rewards", "evaluation"},
    "textual": {"assess"},
    "aiohttp": {"assess", "rewards"},
    "openrlhf": set(),
}
FLOOR_0_MAY = {"tyro", "yaml"}
ROLLOUTS_MAY = {"numpy"}  # inside a function of `types`: test_import_weight sees that its import stays light


def wrongs(module: Module) -> list[str]:
    """What this module imports and may not."""
    found = []
    unrun = lines_for_types(module)
    for target, line in imports(module):
        top, _, rest = target.partition(".")
        where = f"{module.name or 'openrlhf_ext'}:{line} imports {target}"
        if top == "openrlhf_ext":
            part = rest.partition(".")[0]
            if part not in FLOORS or not module.part:
                continue
            if FLOORS[part] > FLOORS[module.part]:
                found.append(f"{where}: floor {FLOORS[part]} from floor {FLOORS[module.part]}")
            if (module.part, part) == ("rollout", "engine"):
                found.append(f"{where}: rollout never knows engine")
        elif line in unrun:
            continue  # a third-party type's name weighs nothing
        elif top in HOMES and module.part not in HOMES[top]:
            found.append(f"{where}: only {sorted(HOMES[top])} may")
        elif module.part == "types" and top in ROLLOUTS_MAY:
            continue
        elif FLOORS.get(module.part) == 0 and top not in sys.stdlib_module_names | FLOOR_0_MAY:
            found.append(f"{where}: floor 0 is the standard library, tyro and pyyaml")
    return list(dict.fromkeys(found))


def test_every_part_has_a_floor():
    parts = {module.part for module in modules() if module.part}
    assert parts <= set(FLOORS), "a new package needs a floor"


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name or "openrlhf_ext")
def test_imports_point_down(module: Module):
    assert not wrongs(module)


def test_parts_of_one_floor_have_no_cycle():
    edges = {
        (module.part, target.split(".")[1])
        for module in modules()
        for target, _ in imports(module)
        if target.startswith("openrlhf_ext.") and target.split(".")[1] in FLOORS and module.part
    }
    reach = {(a, b) for a, b in edges if a != b}
    while more := {(a, d) for a, b in reach for c, d in reach if b == c} - reach:
        reach |= more
    assert not {(a, b) for a, b in reach if (b, a) in reach}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ops/x.py", "def f():\n    from openrlhf_ext.trainers import rl"),
        ("rollout/x.py", "from ..engine import spec"),
        ("trainers/x.py", "import ray.util"),
        ("config/x.py", "import rich"),
        ("trainers/x.py", "from openrlhf_ext import cluster"),
        ("trainers/x.py", "if TYPE_CHECKING:\n    from openrlhf_ext.cluster import build"),
    ],
)
def test_the_walk_sees_a_wrong_import(name: str, code: str):
    assert wrongs(Module(PACKAGE / name, ast.parse(code), 1))
