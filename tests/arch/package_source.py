"""The package's source, parsed once."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "openrlhf_ext"


@dataclass(frozen=True)
class Module:
    path: Path
    tree: ast.Module
    lines: int

    @property
    def name(self) -> str:
        """`batch.split`, relative to the package; the package itself is the empty string."""
        parts = self.path.relative_to(PACKAGE).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def part(self) -> str:
        """The top-level package or module it belongs to: `batch`, `errors`."""
        return self.name.partition(".")[0]


@functools.cache
def modules() -> tuple[Module, ...]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found.append(Module(path, ast.parse(text, str(path)), text.count("\n")))
    assert len(found) > 20, "the package was not found"
    return tuple(found)


def lines_for_types(module: Module) -> set[int]:
    """The lines under `if TYPE_CHECKING:`, which never run."""
    return {
        line
        for node in ast.walk(module.tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for item in node.body
        for line in range(item.lineno, (item.end_lineno or item.lineno) + 1)
    }


def imports(module: Module) -> Iterator[tuple[str, int]]:
    """Every module that it imports, absolute, with the line; imports inside functions included."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["openrlhf_ext", *filter(None, module.name.split("."))]
                drop = node.level - (module.path.name == "__init__.py")
                base = ".".join([*here[: len(here) - drop], *filter(None, [base])])
            yield base, node.lineno
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno
