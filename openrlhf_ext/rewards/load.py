"""Reward sources by their specs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from openrlhf_ext.errors import RewardError, missing_file
from openrlhf_ext.rewards.builtin import BUILTIN, is_builtin, open_builtin
from openrlhf_ext.rewards.process import AsksJudge, PluginSource
from openrlhf_ext.rewards.sources import RewardSettings, RewardSource, RoleSource
from openrlhf_ext.rewards.weighted import PROBE_RESPONSES, WeightedReward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PROBE_RESPONSES", "RewardSettings", "RewardSource", "RoleSource", "WeightedReward", "load_reward"]


def load_reward(
    specs: Sequence[str],
    settings: RewardSettings,
    tokenizer: PreTrainedTokenizerBase | None = None,
    roles: Sequence[RoleSource] = (),
    judge: AsksJudge | None = None,
) -> WeightedReward:
    """The weighted sum of the sources that `specs` name (paths of Python files, http(s) URLs, rules) and of the roles.

    With a tokenizer a query is the text of all tokens of a rollout, special ones included, as in
    OpenRLHF; without one it is the prompt's text and the response's. Reward files may ask `judge`. No user code runs
    before `probe` or the first `score`. Raises RewardError for a spec that is neither, or a file that is not there.
    """
    count = len(specs) + len(roles)
    if not count:
        raise RewardError(
            "no reward is named: give --reward.remote_url a Python file or a URL, or --reward.model_name_or_path."
        )
    if settings.weights and len(settings.weights) != count:
        raise RewardError(f"{len(settings.weights)} reward weights for {count} rewards: give one for each.")
    if len(settings.normalize) not in (0, 1, count):
        raise RewardError(
            f"{len(settings.normalize)} normalisations for {count} rewards: give one for each, or one for all."
        )
    names = _source_names([*specs, *(role.name for role in roles)])
    for role, name in zip(roles, names[len(specs) :], strict=True):
        role.name = name
    sources = [_open(spec, name, settings, judge) for spec, name in zip(specs, names, strict=False)]
    return WeightedReward(sources, settings, tokenizer, roles)


def _open(spec: str, name: str, settings: RewardSettings, judge: AsksJudge | None) -> RewardSource:
    if spec.startswith(("http://", "https://")):
        from openrlhf_ext.rewards.http import HttpSource

        retries, backoff_s = settings.max_retries, settings.backoff_s
        return HttpSource(name, spec, settings.http, max_retries=retries, backoff_s=backoff_s)
    if is_builtin(spec):
        return open_builtin(spec, name, settings)
    path = Path(spec).expanduser()
    if path.suffix != ".py":
        raise RewardError(
            f"reward {spec!r} is neither a Python file (.py) nor an http(s) URL, nor one of {', '.join(BUILTIN)}."
        )
    if not path.is_file():
        raise RewardError(f"reward file {missing_file(path)}")
    return PluginSource(name, path.resolve(), load_timeout_s=settings.load_timeout_s, judge=judge)


def _source_names(specs: Sequence[str]) -> list[str]:
    """The file's stem, the URL's host and port or the rule's name, numbered where several are alike."""
    seen: Counter[str] = Counter()
    names = []
    for spec in specs:
        if is_builtin(spec):
            name = spec.partition(":")[2]
        else:
            name = urlsplit(spec.partition("|")[0]).netloc if "://" in spec else Path(spec).stem
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return names
