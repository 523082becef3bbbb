"""The rubric's instructions as a Jinja template: checked when it is read, rendered for each case.

Whatever an expression of the template gives (`{{ response }}`, `{{ columns.note | trim }}`) is data of others and
is shown inside a fence; numbers and truth values stand as they are. The template's own text is the only instruction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

VARIABLES = ("prompt", "response", "label", "reference", "columns")
# What puts rendered text, fences included, through further code.
REFUSED: tuple[type[nodes.Node], ...] = (
    nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock, nodes.Block, nodes.Include, nodes.Import,
    nodes.FromImport, nodes.Extends,
)  # fmt: skip


class TemplateError(Exception):
    """What is wrong with a template, or with a row for it, in part of a sentence."""


class TwoResponses:
    """The responses of a pair. They are shown, each in its own fence, where the template has `{{ response }}`."""

    def __init__(self, first: str, second: str) -> None:
        self.texts = (first, second)

    def __str__(self) -> str:
        raise TemplateError(
            "in pairwise mode {{ response }} is two responses, and stands by itself: no filter or test reads it"
        )


def check_template(text: str) -> set[str]:
    """The variables that a template uses. Raises TemplateError: syntax, an unknown variable, filter or construct."""
    environment = _environment()
    try:
        tree = environment.parse(text)
        environment.compile(tree)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"line {error.lineno} is not Jinja ({error.message})") from None
    refused = next((node for kind in REFUSED for node in tree.find_all(kind)), None)
    if refused is not None:
        name = type(refused).__name__.lower()
        raise TemplateError(f"line {refused.lineno} has a Jinja {name}: only expressions, if, for and set are taken")
    used = meta.find_undeclared_variables(tree) - set(environment.globals)
    unknown = sorted(used - set(VARIABLES))
    if unknown:
        raise TemplateError(f"{{{{ {unknown[0]} }}}} is no variable: there are {', '.join(VARIABLES)}")
    return used


def render(text: str, values: Mapping[str, Any], fence: Callable[[str], str]) -> str:
    """The template with its values, each text in its fence. Raises TemplateError for what the row does not have."""
    try:
        return _compiled(text).render(**values, _fence=fence).strip()
    except jinja2.UndefinedError as error:
        raise TemplateError(f"the row does not have what they ask for ({error.message})") from None
    except TemplateError:
        raise
    except Exception as error:  # whatever the author's expressions raise on this row
        raise TemplateError(f"an expression failed on the row ({type(error).__name__}: {error})") from None


@lru_cache(maxsize=64)
def _compiled(text: str) -> jinja2.Template:
    return _environment().from_string(text)


def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, finalize=_shown, trim_blocks=True, lstrip_blocks=True
    )


@jinja2.pass_context
def _shown(context: jinja2.runtime.Context, value: Any) -> str:
    """What an expression's value looks like in the prompt."""
    fence = context["_fence"]
    if isinstance(value, TwoResponses):
        first, second = value.texts
        return f"Response A:\n{fence(first)}\nResponse B:\n{fence(second)}"
    if isinstance(value, bool | int | float) or value is None:
        return json.dumps(value)
    if isinstance(value, Mapping | list | tuple):
        return str(fence(json.dumps(value, ensure_ascii=False, default=str)))
    return str(fence(str(value)))
