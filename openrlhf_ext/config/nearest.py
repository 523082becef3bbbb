"""The names a misspelled one may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

_CUTOFF = 0.6


def nearest(name: str, known: Iterable[str], dashes: bool = True) -> str:
    """The three likeliest names as `--a, --b or --c`; empty if nothing is near."""
    wanted = name.replace("-", "_").lower()

    def likeness(candidate: str) -> float:
        # `batch_size` should find `train.batch_size`, and `train.bach_size` too.
        whole = SequenceMatcher(None, wanted, candidate).ratio()
        last = SequenceMatcher(None, wanted.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, 0.95 * last)

    scored = sorted(((likeness(item), item) for item in known), key=lambda pair: (-pair[0], pair[1]))
    best = [("--" if dashes else "") + item for score, item in scored[:3] if score >= _CUTOFF]
    return " or ".join([", ".join(best[:-1]), best[-1]]) if len(best) > 1 else "".join(best)
