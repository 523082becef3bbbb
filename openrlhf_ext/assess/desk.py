"""What one rater sees and does, blind: the same for the page and the terminal."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from openrlhf_ext.assess.assessment import Assessment
from openrlhf_ext.assess.log import JudgementLog
from openrlhf_ext.assess.verdicts import Choice, Hallucination, Judgement, Preference, Side, Undo, now
from openrlhf_ext.errors import DataError
from openrlhf_ext.rewards.judge.fence import UNSEEN


def visible(text: str) -> str:
    """The text with a sign in place of each character that acts or hides. It has the same length: places stay valid."""
    return UNSEEN.sub(_sign, text)


def _sign(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code == 0x0D:
        return " "  # of a line end \r\n
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"


@dataclass(frozen=True, slots=True)
class Sheet:
    """One item as a rater sees it: `answers` has one, or A and B."""

    key: str
    prompt: str
    answers: tuple[str, ...]
    context: str | None
    reference: str | None


@dataclass(frozen=True, slots=True)
class Said:
    """What a rater said of an item, as it was shown: a judgement without its models."""

    id: str
    item: str
    said: Hallucination | Choice
    note: str


class Desk:
    """One rater's items in their order. Raises ConfigError for a rater who is not of the assessment."""

    def __init__(self, assessment: Assessment, log: JudgementLog, rater: str) -> None:
        self.assessment = assessment
        self.rater = rater
        self.keys = assessment.order(rater)
        self._known = frozenset(self.keys)
        self._log = log

    @property
    def history(self) -> list[Said]:
        """What an undo can take back, oldest first."""
        self._log.refresh()
        judgements = self._log.ledger.history(self.rater)
        return [
            Said(each.id, each.item, self._blind(each), each.note) for each in judgements if each.item in self._known
        ]

    @property
    def judged(self) -> dict[str, Said]:
        """What holds of each item: the latest."""
        return {said.item: said for said in self.history}

    def sheet(self, key: str) -> Sheet:
        """Raises DataError for an item that is not this rater's."""
        self._require(key)
        item = self.assessment.by_key[key]
        texts = [visible(answer.text) for answer in item.answers]
        return Sheet(
            key=key,
            prompt=visible(item.prompt),
            answers=tuple(texts[::-1] if self._turned(key) else texts),
            context=None if item.context is None else visible(item.context),
            reference=None if item.reference is None else visible(item.reference),
        )

    def judge(
        self,
        key: str,
        said: Hallucination | Choice,
        note: str = "",
        seconds: float | None = None,
        *,
        entry_id: str | None = None,
    ) -> None:
        """It is on the disk on return. Raises DataError for what does not fit, ResourceError for a full one."""
        self._require(key)
        verdict = said if isinstance(said, Hallucination) else self._unblind(key, said)
        self._log.append(Judgement(entry_id or new_id(), self.rater, key, verdict, note, seconds, now()))

    def undo(self, of: str, *, entry_id: str | None = None) -> None:
        """Withdraw a judgement of this rater; one that is withdrawn already, or never came, stays so."""
        self._log.append(Undo(entry_id or new_id(), self.rater, of, now()))

    def _require(self, key: str) -> None:
        if key not in self._known:
            raise DataError(f"item {key[:40]!r} is not among those of {self.rater}: reload the page.")

    def _turned(self, key: str) -> bool:
        return len(self.assessment.by_key[key].answers) == 2 and self.assessment.turned(self.rater, key)

    def _sides(self, key: str) -> tuple[str, ...]:
        models = tuple(answer.model for answer in self.assessment.by_key[key].answers)
        return models[::-1] if self._turned(key) else models

    def _unblind(self, key: str, choice: Choice) -> Preference:
        models = self._sides(key)
        preferred = None if choice.side == "tie" else models[0 if choice.side == "A" else -1]
        return Preference(preferred, models[0], choice.reasons)

    def _blind(self, judgement: Judgement) -> Hallucination | Choice:
        verdict = judgement.verdict
        if isinstance(verdict, Hallucination):
            return verdict
        sides: dict[str | None, Side] = {None: "tie", **dict(zip(self._sides(judgement.item), ("A", "B")))}
        return Choice(sides[verdict.preferred], verdict.reasons)


def new_id() -> str:
    return secrets.token_hex(8)
