"""The cheapest changes that make a run fit, each tried by planning the changed run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from openrlhf_ext.plan.moves import GROUPS
from openrlhf_ext.plan.offers import Move, Offer
from openrlhf_ext.plan.trial import Command, Trial, Trials
from openrlhf_ext.plan.types import Change, DataSize, Hardware


@dataclass(slots=True)
class Taken:
    """An offer that was taken, at one of its levels."""

    offer: Offer
    level: int

    @property
    def values(self) -> dict[str, Any]:
        return self.offer.levels[self.level]


@dataclass(slots=True)
class Search:
    """`taken`, in order from the cheapest. `fits` tells whether they are enough; where not, they are all there is."""

    trials: Trials
    taken: list[Taken] = field(default_factory=list)

    @property
    def start(self) -> Trial:
        """The run as it was asked for."""
        trial = self.trials.of({})
        assert trial is not None, "a run as it was asked for is planned, or an error"
        return trial

    @property
    def trial(self) -> Trial:
        """The run with all that is taken."""
        trial = self.trials.of(self.values())
        assert trial is not None, "only what can be planned is taken"
        return trial

    @property
    def fits(self) -> bool:
        return self.trial.fits

    def values(self, without: Taken | None = None) -> dict[str, Any]:
        """Of all that is taken, a later offer over an earlier one."""
        return {path: value for one in self.taken if one is not without for path, value in one.values.items()}

    def climb(self, allowed: Collection[Move] | None = None, fixed: Collection[str] = ()) -> None:
        """Take what helps, group by group, until it fits; then give back what was not needed.

        `allowed`: the moves to choose from (None: all). `fixed`: paths that stay as they are.
        """
        for group in GROUPS:
            if self.fits:
                break
            for move in group:
                if allowed is None or move in allowed:
                    self._take(move, fixed)
        if self.fits:
            self._give_back()

    def _take(self, move: Move, fixed: Collection[str]) -> None:
        offer = move(self.trial.setup)
        if offer is None or set(offer.paths) & set(fixed):
            return
        before = self.trial.excess
        for level in reversed(range(len(offer.levels))):
            trial = self.trials.of(self.values() | offer.levels[level])
            if trial is not None and trial.excess <= before:
                self._add(Taken(offer, level))
                return

    def _add(self, new: Taken) -> None:
        """Further levels of what was taken already come after those."""
        for one in self.taken:
            if one.offer.paths == new.offer.paths:
                self.taken.remove(one)
                milder = one.offer.levels[: one.level + 1]
                new = Taken(replace(one.offer, levels=milder + new.offer.levels), len(milder) + new.level)
                break
        self.taken.append(new)

    def _give_back(self) -> None:
        """From the dearest: leave out what is not needed, and take the mildest level of what is."""
        for one in list(reversed(self.taken)):
            if self._holds(self.values(without=one)):
                self.taken.remove(one)
                continue
            mildest, strongest = 0, one.level
            while mildest < strongest:
                one.level = (mildest + strongest) // 2
                if self._holds(self.values()):
                    strongest = one.level
                else:
                    mildest = one.level + 1
            one.level = strongest

    def _holds(self, values: dict[str, Any]) -> bool:
        trial = self.trials.of(values)
        return trial is not None and trial.fits

    def changes(self) -> tuple[Change, ...]:
        return tuple(change for one in self.taken for change in self._of(one))

    def _of(self, one: Taken) -> Iterator[Change]:
        """A flag of several at a time carries what they save together."""
        saves, costs = self._saves(one), one.offer.costs(one.values)
        for path, value in one.values.items():
            yield Change(f"--{path}", as_text(value), saves, costs, one.offer.same_result)
            saves, costs = 0, f"it goes with --{next(iter(one.values))}"

    def _saves(self, one: Taken) -> int:
        """Bytes of the peak that are there without this change, beside all others.

        What another one needs cannot be left out by itself: then those after it are left out too.
        """
        without = self.trials.of(self.values(without=one))
        if without is None:
            before = self.taken[: self.taken.index(one)]
            without = (
                self.trials.of({path: value for item in before for path, value in item.values.items()}) or self.start
            )
        here, there = self.trial.memory, without.memory
        limit = there.gpu_limit
        if limit is not None and there.gpu_peak > limit:
            return there.gpu_peak - here.gpu_peak
        return max(there.gpu_peak - here.gpu_peak, there.host_peak - here.host_peak, 0)


def changes_for(
    command: Command, config: Any, explicit: frozenset[str], hardware: Hardware, data: DataSize
) -> tuple[Change, ...]:
    """The changes, in order from the cheapest, that together make the run fit; none where it fits or none do.

    None of them can be left out.
    """
    search = searched(command, config, explicit, hardware, data)
    return search.changes() if search.fits else ()


def searched(command: Command, config: Any, explicit: frozenset[str], hardware: Hardware, data: DataSize) -> Search:
    search = Search(Trials(command, config, frozenset(explicit), hardware, data))
    search.climb()
    return search


def as_text(value: Any) -> str:
    """As it is written on the command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
