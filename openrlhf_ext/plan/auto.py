"""`--memory.auto`: the planner chooses how the effective batch asked for is cut, and who sleeps or is offloaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from openrlhf_ext.config import get, replaced
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.plan.changes import Search, as_text
from openrlhf_ext.plan.make import verdict_of
from openrlhf_ext.plan.moves import CHOSEN_ALONE
from openrlhf_ext.plan.trial import Command, Trials
from openrlhf_ext.plan.types import Change, DataSize, Hardware, Memory

RESERVE = 0.05
"""Of a GPU's and the machine's memory, which what is chosen leaves free."""
ENOUGH_TOKENS = 16_384
"""In one pass: a GPU has been kept busy for long by then, so nothing larger is chosen."""


def chosen(
    command: Command, config: Any, explicit: Iterable[str], hardware: Hardware, data: DataSize
) -> tuple[Any, tuple[Change, ...]]:
    """The config with what was chosen, and the flags that it changes.

    Only flags that were not set are changed, and only such as leave what is trained as it is: first as little as it
    takes to fit with RESERVE to spare, then the largest micro-batches that still do. Raises ConfigError where nothing
    makes it fit, and UserError for a model whose shape cannot be found.
    """
    explicit = frozenset(explicit)
    search = Search(Trials(command, config, explicit, hardware, data, RESERVE))
    search.climb(CHOSEN_ALONE, fixed=explicit)
    if not search.fits:
        raise ConfigError(
            f"--memory.auto found nothing that fits with {100 * RESERVE:.0f} % of the memory to spare: this "
            f"{verdict_of(search)}; openrlhf-ext plan lists what else would make it fit."
        )
    values = search.values()
    memory = search.trial.memory
    if memory.gpu_limit is None and memory.host_limit is None:
        return config, ()  # nothing is known that could be made use of
    for path in ("train.micro_batch_size", "rollout.micro_batch_size", *_budgets(config)):
        if path not in explicit and (path != "rollout.micro_batch_size" or command == "rl"):
            values |= _largest(search, values, path)
    return replaced(config, values), tuple(_as_changes(search, values))


def _budgets(config: Any) -> tuple[str, ...]:
    dynamic = getattr(config.train, "dynamic_batch_enable", False)
    return ("train.max_tokens_per_gpu",) if dynamic else ()


def _largest(search: Search, values: dict[str, Any], path: str) -> dict[str, Any]:
    """The largest value of a flag that still fits: memory only grows with it, so the search halves the choice."""
    config = search.trials.config
    now = values.get(path, get(config, path))
    choice = [value for value in _values(search, path) if value > now]
    low, high = 0, len(choice)
    while low < high:
        middle = (low + high) // 2
        trial = search.trials.of(values | {path: choice[middle]})
        if trial is not None and trial.fits:
            low = middle + 1
        else:
            high = middle
    return {path: choice[low - 1]} if low else {}


def _values(search: Search, path: str) -> list[int]:
    """What a flag may be, in order, for the effective batch asked for."""
    config, setup = search.trials.config, search.trial.setup
    length = min(config.data.max_len, setup.data.max_tokens)
    if path == "train.max_tokens_per_gpu":
        return list(range(length, ENOUGH_TOKENS + 1, max(length // 4, 1)))
    ranks = next(model.ranks for model in setup.models if model.role in ("policy", "model"))
    dynamic = getattr(config.train, "dynamic_batch_enable", False)
    if dynamic:
        return []
    rows = length * (2 if setup.command in ("rm", "dpo") else 1)
    most = max(ENOUGH_TOKENS // rows, 1)
    if path == "train.micro_batch_size":
        share = config.train.batch_size // ranks
        return [number for number in range(1, min(share, most) + 1) if share % number == 0]
    share = -(-config.rollout.batch_size * config.rollout.n_samples_per_prompt // ranks)
    return list(range(1, min(share, most) + 1))


def _as_changes(search: Search, values: dict[str, Any]) -> Iterator[Change]:
    """What `climb` took has its own words; a larger micro-batch costs what it takes of the memory."""
    said = {change.flag: change for change in search.changes()}
    for path, value in values.items():
        if value == get(search.trials.config, path):
            continue
        taken = said.get(f"--{path}")
        if taken is not None and taken.value == as_text(value):
            yield taken
            continue
        with_it, without = (
            search.trials.of(some) for some in (values, {name: v for name, v in values.items() if name != path})
        )
        assert with_it is not None and without is not None, "what was chosen was planned"
        more = _peak(with_it.memory) - _peak(without.memory)
        yield Change(f"--{path}", as_text(value), -more, "memory that was free, for fewer and larger passes")


def _peak(memory: Memory) -> int:
    return memory.gpu_peak or memory.host_peak
