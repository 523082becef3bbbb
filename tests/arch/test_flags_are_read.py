"""No flag is parsed and ignored: what is not refused is read by the command that takes it."""

from __future__ import annotations

import ast

import pytest
from package_source import modules

from openrlhf_ext.cli.main import COMMANDS as STARTED
from openrlhf_ext.config import TREES, Flag, flags_of


def attributes_read() -> set[str]:
    """The attribute names that the command line's own modules read."""
    return {
        node.attr
        for module in modules()
        if module.part == "cli"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def has_one_value(flag: Flag) -> bool:
    """All values but the default are refused."""
    others = set(flag.type_name.split("|")) - {flag.default}
    return flag.refused is not None or others == set(flag.refused_values)


@pytest.mark.parametrize("command", [name for name in TREES if name in STARTED])
def test_every_flag_is_read(command: str):
    read = attributes_read()
    flags = [flag for flag in flags_of(TREES[command]).values() if not has_one_value(flag)]
    assert not [flag.path for flag in flags if flag.path.rpartition(".")[2] not in read]
