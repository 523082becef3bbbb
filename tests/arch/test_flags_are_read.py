"""No flag is parsed and ignored: what is not refused is read by the command that takes it."""

from __future__ import annotations

import ast

import pytest
from package_source import modules

from openrlhf_ext.cli.main import COMMANDS as STARTED
from openrlhf_ext.config import TREES, Flag, flags_of
from openrlhf_ext.config.evaluation import EvalConfig


def attributes_read() -> set[str]:
    """The attribute names read by the command line's own modules and by the plan's functions that they call."""
    parts = {part: [module.tree for module in modules() if module.part == part] for part in ("cli", "plan")}
    called = {
        alias.name
        for tree in parts["cli"]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("openrlhf_ext.plan")
        for alias in node.names
    }
    functions = [
        node
        for tree in parts["plan"]
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name in called
    ]
    return {
        node.attr
        for part in [*parts["cli"], *functions]
        for node in ast.walk(part)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def has_one_value(flag: Flag) -> bool:
    """All values but the default are refused."""
    others = set(flag.type_name.split("|")) - {flag.default}
    return flag.refused is not None or others == set(flag.refused_values)


COMMANDS = {name: tree for name, tree in TREES.items() if name in STARTED} | {"eval": EvalConfig}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_read(command: str):
    read = attributes_read()
    flags = [flag for flag in flags_of(COMMANDS[command]).values() if not has_one_value(flag)]
    assert not [flag.path for flag in flags if flag.path.rpartition(".")[2] not in read]
