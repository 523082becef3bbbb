"""Files and functions that a reader can hold in mind."""

from __future__ import annotations

import ast
import re

from package_source import modules

FILE_LINES, FUNCTION_LINES = 350, 60
FORBIDDEN_NAMES = {"util", "utils", "helper", "helpers", "manager", "managers", "args", "misc"}
MACHINE_PATH = re.compile(r"[\"']/(home|root|mnt|opt|srv|tmp|var)/")

# What may be longer, and why.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}


def test_files_are_short():
    long = {module.name: module.lines for module in modules() if module.lines > FILE_LINES}
    assert long.keys() == LONG_FILES.keys(), long


def test_functions_are_short():
    long = {}
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > FUNCTION_LINES:
                    long[f"{module.name}.{node.name}"] = length
    assert long.keys() == LONG_FUNCTIONS.keys(), long


def test_modules_are_named_for_what_they_hold():
    parts = {part for module in modules() for part in module.name.split(".")}
    assert not parts & FORBIDDEN_NAMES


def test_no_path_of_a_machine():
    assert not [module.name for module in modules() if MACHINE_PATH.search(module.path.read_text(encoding="utf-8"))]
