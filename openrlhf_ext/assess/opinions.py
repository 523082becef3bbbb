"""What the raters of an assessment hold together: their votes on each item, and what most of them say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from openrlhf_ext.assess.assessment import Assessment
from openrlhf_ext.assess.items import Item
from openrlhf_ext.assess.log import JudgementLog
from openrlhf_ext.assess.verdicts import Hallucination, Judgement, Kind, Preference

Word = TypeVar("Word", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Opinions:
    """One item with what holds of it, by rater."""

    item: Item
    judgements: Mapping[str, Judgement]

    @property
    def words(self) -> dict[str, bool | str | None]:
        """By rater: whether there is a hallucination, or the better model's fingerprint (None: a tie)."""
        return {rater: word_of(judgement) for rater, judgement in self.judgements.items()}

    @property
    def disputed(self) -> bool:
        """Somebody has judged, and no word has more votes than all others."""
        return bool(self.judgements) and len(_most_said(self.words.values())) != 1

    @property
    def verdict(self) -> bool | str | None:
        """The word of most raters. Only where it was judged and is not disputed."""
        (word,) = _most_said(self.words.values())
        return word

    @property
    def settled(self) -> bool:
        return bool(self.judgements) and not self.disputed

    @property
    def kind(self) -> Kind | None:
        """The type that most of those name who see a hallucination; None where that is disputed."""
        said = [each.verdict.kind for each in self.judgements.values() if isinstance(each.verdict, Hallucination)]
        most = _most_said(kind for kind in said if kind is not None)
        return most[0] if len(most) == 1 else None

    @property
    def votes(self) -> str:
        """`2 of 3`: how many raters say what most say."""
        return f"{Counter(self.words.values())[self.verdict]} of {len(self.judgements)}"


def word_of(judgement: Judgement) -> bool | str | None:
    verdict = judgement.verdict
    return verdict.preferred if isinstance(verdict, Preference) else verdict.present


def opinions(assessment: Assessment, log: JudgementLog) -> list[Opinions]:
    """Of every item, in the order of the assessment."""
    current = {rater: log.ledger.current(rater) for rater in assessment.raters}
    return [
        Opinions(item, {rater: held[item.key] for rater, held in current.items() if item.key in held})
        for item in assessment.items
    ]


def _most_said(words: Iterable[Word]) -> list[Word]:
    counts = Counter(words)
    return [word for word, n in counts.items() if n == max(counts.values())]
