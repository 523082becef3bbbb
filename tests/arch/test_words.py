"""Code asks what the device can do, never which it is: its names live in device/ only."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from package_source import Module, modules

WORDS = re.compile(r"(?<![a-z0-9])(cuda|nccl|gloo)(?![a-z0-9])", re.IGNORECASE)

# (file, the name or string that holds the word): at most five.
EXCEPTIONS = {
    ("config/sections.py", "cuda"): "the value --device.type cuda",
    ("config/rl.py", "nccl"): "the default of --vllm.sync_backend, OpenRLHF's",
    ("cli/plan_hardware.py", "CUDA_VISIBLE_DEVICES"): "a plan looks for GPUs without torch, which device/ imports",
}


def texts(module: Module) -> Iterator[tuple[str, int]]:
    """Names and strings of the code; comments and docstrings do not count."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value, node.lineno
        for attribute in ("id", "attr", "arg", "name"):
            value = getattr(node, attribute, None)
            if isinstance(value, str):
                yield value, getattr(node, "lineno", 0)


def found(module: Module) -> list[tuple[str, str, int]]:
    file = module.path.as_posix().rpartition("openrlhf_ext/")[2]
    # A phrase, such as "CUDA context", tells a person something; a word by itself is what code decides by.
    return [(file, text, line) for text, line in texts(module) if WORDS.search(text) and " " not in text.strip()]


def test_device_names_live_in_device():
    hits = [hit for module in modules() if module.part != "device" for hit in found(module)]
    assert not [hit for hit in hits if hit[:2] not in EXCEPTIONS]
    assert not EXCEPTIONS.keys() - {hit[:2] for hit in hits}, "an exception that nothing needs"
    assert len(EXCEPTIONS) <= 5


def test_the_walk_sees_a_word():
    code = '"""cuda"""\nimport torch\nx = torch.cuda\nw = "a CUDA card"\n'
    code += 'y = "CUDA_VISIBLE_DEVICES"\nz = is_nccl\nbarracuda = 1  # gloo\n'
    module = Module(Path("openrlhf_ext/ops/x.py"), ast.parse(code), 7)
    assert sorted(text for _, text, _ in found(module)) == ["CUDA_VISIBLE_DEVICES", "cuda", "is_nccl"]
