"""The terminal's page: the same desk and the same keys as the browser's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from rich.text import Text
from textual.app import App, ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.events import Event, Key
from textual.screen import ModalScreen
from textual.widgets import Input, ProgressBar, Static

from openrlhf_ext.assess.desk import Desk
from openrlhf_ext.assess.marks import Marks
from openrlhf_ext.assess.verdicts import KINDS, LONGEST_NOTE, REASONS, Choice, Hallucination, Kind, Reason, Side
from openrlhf_ext.errors import UserError

Act = Callable[[], object]

MARKED, CHOOSING, CARET = "black on #ffd75f underline", "white on #005f87", "reverse bold"
REASON_WORDS: Mapping[Reason, str] = {
    "accurate": "more accurate", "complete": "more complete", "clear": "clearer", "concise": "more concise",
    "safe": "safer",
}  # fmt: skip
MOVES = """\
m       mark a passage: ←→ words, ↑↓ sentences, Space begins and ends it,
        Backspace removes it, Esc leaves
c       write a note (Enter or Esc: leave it)
u       take back the last answer
s       skip: to the next open item
← →     the item before, the next one
o       the first open item
j k     scroll the source (Tab: another text, then ↑ ↓)
?       this list
q       leave; everything is saved"""


class AssessApp(App[None]):
    """One rater at work. Every answer is on the disk before the next item is shown."""

    CSS = """
    #bar { height: 1; background: $panel; }
    #position { width: auto; padding: 0 1; text-style: bold; }
    #progress { width: 1fr; } #progress Bar { width: 1fr; }
    #judged { width: auto; padding: 0 1; color: $text-muted; }
    VerticalScroll { border: round $surface-lighten-2; padding: 0 1; }
    VerticalScroll:focus { border: round $accent; }
    #prompt { height: auto; max-height: 30%; }
    #answers, #columns { height: 1fr; }
    #columns.stacked { layout: vertical; }
    #source { background: $boost; }
    #verdicts { height: auto; padding: 0 1; }
    #note { border: none; height: 1; padding: 0 1; background: $boost; }
    #hint { height: 1; padding: 0 1; color: $text-muted; }
    """
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None  # keys are the app's until somebody tabs to a text
    TITLE = "assess"

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.desk = desk
        self._hallucination = desk.assessment.task == "hallucination"
        self._place = 0
        self._marks = Marks("")
        self._reasons: set[Reason] = set()
        self._shown_at = 0.0
        self._asks = False  # y was pressed: of which type?

    def compose(self) -> ComposeResult:
        with Horizontal(id="bar"):
            yield Static(id="position")
            yield ProgressBar(total=len(self.desk.keys), show_eta=False, show_percentage=False, id="progress")
            yield Static(id="judged")
        with VerticalScroll(id="prompt"):
            yield Static(id="prompt-text")
        with Horizontal(id="columns", classes="" if self._hallucination else "stacked"):
            with Horizontal(id="answers"):
                for place, title in enumerate(["Answer"] if self._hallucination else ["A", "B"]):
                    with VerticalScroll(id=f"answer-{place}") as box:
                        box.border_title = title
                        yield Static(id=f"answer-{place}-text")
            with VerticalScroll(id="source"):
                yield Static(id="source-text")
        yield Static(id="verdicts")
        yield Input(id="note", placeholder="note (c)", max_length=LONGEST_NOTE, compact=True)
        yield Static(id="hint")

    def on_mount(self) -> None:
        self.theme = "textual-dark"
        self.query_one("#prompt").border_title = "Prompt"
        self.query_one("#source").border_title = "Source"
        self._show(self._next_open(-1))

    async def on_event(self, event: Event) -> None:
        """Each key acts before the next one is looked at: widgets have queues of their own, in which an answer could
        overtake the end of its note.
        """
        if isinstance(event, Key):
            act = self.pop_screen if isinstance(self.screen, Help) else self._act_of(event)
            if act is not None:
                act()
                return
        await super().on_event(event)

    def _act_of(self, event: Key) -> Act | None:
        note = self.query_one("#note", Input)
        if self.focused is note:
            if event.is_printable and event.character is not None:
                return partial(note.insert_text_at_cursor, event.character)
            return self._note_keys(note).get(event.key)
        if self._marks.active and (act := self._marking_keys().get(event.key)):
            return act
        keys = self._keys()
        return keys.get(event.key) or keys.get(event.character or "")

    def _note_keys(self, note: Input) -> dict[str, Act]:
        leave = partial(self.set_focus, None)
        return {
            "enter": leave, "escape": leave, "backspace": note.action_delete_left, "delete": note.action_delete_right,
            "left": note.action_cursor_left, "right": note.action_cursor_right, "home": note.action_home,
            "end": note.action_end,
        }  # fmt: skip

    def _marking_keys(self) -> dict[str, Act]:
        marks = self._marks
        acts: dict[str, Act] = {
            "left": partial(marks.move, -1), "right": partial(marks.move, 1),
            "up": partial(marks.sentence, -1), "down": partial(marks.sentence, 1),
            "space": marks.begin_or_end, "enter": marks.begin_or_end,
            "backspace": marks.remove, "delete": marks.remove,
            "escape": marks.leave, "m": marks.leave,
        }  # fmt: skip
        return {key: partial(self._mark, act) for key, act in acts.items()}

    def _keys(self) -> dict[str, Act]:
        """What each key does now."""
        keys: dict[str, Act] = {
            "q": self.exit, "u": self._undo, "o": lambda: self._show(self._next_open(-1)),
            "s": lambda: self._show(self._next_open(self._place)),
            "left": lambda: self._show(self._place - 1), "right": lambda: self._show(self._place + 1),
            "j": lambda: self.query_one("#source").scroll_relative(y=5),
            "k": lambda: self.query_one("#source").scroll_relative(y=-5),
            "?": lambda: self.push_screen(Help(self._help())),
        }  # fmt: skip
        if self._place >= len(self.desk.keys):
            return keys
        keys["c"] = partial(self.set_focus, self.query_one("#note", Input))
        if self._hallucination:
            keys |= {"m": partial(self._mark, self._marks.enter), "y": self._ask_type, "n": self._say_no}
            keys |= {str(place): partial(self._say_kind, kind) for place, kind in enumerate(KINDS, 1)}
        else:
            sides: dict[str, Side] = {"a": "A", "b": "B", "t": "tie"}
            keys |= {key: partial(self._prefer, side) for key, side in sides.items()}
            keys |= {str(place): partial(self._toggle, reason) for place, reason in enumerate(REASONS, 1)}
        return keys

    def _help(self) -> str:
        if self._hallucination:
            kinds = [f"{place}       {_words(kind)}" for place, kind in enumerate(KINDS, 1)]
            return "\n".join(["n       no hallucination", *kinds, "y       there is one: asks for its type", MOVES])
        reasons = [f"{place}       because it is {REASON_WORDS[reason]}" for place, reason in enumerate(REASONS, 1)]
        moves = MOVES[MOVES.index("c   ") :]
        return "\n".join(["a b t   A is better, B is better, tie", *reasons, moves])

    def _say_no(self) -> None:
        self._judge(Hallucination(False))

    def _say_kind(self, kind: Kind) -> None:
        self._marks.finish()
        self._judge(Hallucination(True, kind, tuple(self._marks.spans)))

    def _prefer(self, side: Side) -> None:
        self._judge(Choice(side, tuple(reason for reason in REASONS if reason in self._reasons)))

    def _toggle(self, reason: Reason) -> None:
        self._reasons ^= {reason}
        self._paint()

    def _ask_type(self) -> None:
        self._asks = True
        self._paint()

    def _mark(self, act: Act) -> None:
        act()
        self._paint()

    def _judge(self, said: Hallucination | Choice) -> None:
        """Save, and show the next open item; what cannot be saved stays where it is."""
        key, note = self.desk.keys[self._place], self.query_one("#note", Input).value
        if self._saved(lambda: self.desk.judge(key, said, note, time.monotonic() - self._shown_at)):
            self._show(self._next_open(self._place))

    def _undo(self) -> None:
        """The last answer is taken back, and its item is shown as it was answered."""
        history = self.desk.history
        if not history:
            self.notify("there is nothing to take back")
            return
        last = history[-1]
        if self._saved(lambda: self.desk.undo(last.id)):
            self._show(self.desk.keys.index(last.item))
            self._draft(last.said, last.note)

    def _saved(self, act: Callable[[], None]) -> bool:
        """Whether it is on the disk; why not is said."""
        try:
            act()
        except UserError as error:
            self.notify(f"not saved: {error}", severity="error", timeout=30, markup=False)
            return False
        return True

    def _next_open(self, place: int) -> int:
        """The first open item behind `place`, or before it; the end where none is open."""
        keys, judged = self.desk.keys, self.desk.judged
        around = [*range(place + 1, len(keys)), *range(max(place, 0))]
        return next((each for each in around if keys[each] not in judged), len(keys))

    def _show(self, place: int) -> None:
        keys, judged = self.desk.keys, self.desk.judged
        self._place = max(0, min(place, len(keys)))
        over = self._place == len(keys)
        self.query_one("#position", Static).update("The end" if over else f"Item {self._place + 1} of {len(keys)}")
        self.query_one("#judged", Static).update(f"{len(judged)} judged, saved")
        self.query_one("#progress", ProgressBar).update(progress=len(judged))
        for box in self.query(VerticalScroll):
            box.scroll_home(animate=False)
        self.query_one("#columns").display = self.query_one("#note").display = not over
        self.set_focus(None)
        self._asks = False
        self._shown_at = time.monotonic()
        if over:
            words = f"All {len(keys)} items are judged. q: leave; ←: look back."
            self.query_one("#prompt-text", Static).update(Text(words))
            self._draft(None, "")
            return
        sheet = self.desk.sheet(keys[self._place])
        self.query_one("#prompt-text", Static).update(Text(sheet.prompt))
        for number, answer in enumerate(sheet.answers):
            self.query_one(f"#answer-{number}-text", Static).update(Text(answer or "(an empty answer)"))
        parts = [sheet.context or "", "" if sheet.reference is None else f"Reference answer: {sheet.reference}"]
        self.query_one("#source-text", Static).update(Text("\n\n".join(filter(None, parts))))
        self.query_one("#source").display = sheet.context is not None or sheet.reference is not None
        said = judged.get(sheet.key)
        self._draft(said.said if said else None, said.note if said else "")

    def _draft(self, said: Hallucination | Choice | None, note: str) -> None:
        """Begin with what was said before."""
        over = self._place == len(self.desk.keys)
        answer = "" if over else self.desk.sheet(self.desk.keys[self._place]).answers[0]
        self._marks = Marks(answer, said.spans if isinstance(said, Hallucination) else ())
        self._reasons = set(said.reasons) if isinstance(said, Choice) else set()
        self.query_one("#note", Input).value = note
        self._paint()

    def _paint(self) -> None:
        """What changes without another item: marks, reasons, what the keys do."""
        over = self._place == len(self.desk.keys)
        hint = "?: all keys   q: leave"
        if self._marks.active:
            hint = "←→ words  ↑↓ sentences  Space: begin, end  Backspace: remove  Esc: leave"
        self.query_one("#hint", Static).update(Text(hint))
        self.query_one("#verdicts", Static).update(Text("") if over else self._verdicts())
        if over or not self._hallucination:
            return
        answer = self.desk.sheet(self.desk.keys[self._place]).answers[0]
        text = Text(answer or "(an empty answer)")
        for span in self._marks.spans:
            text.stylize(MARKED, *span)
        for style, chosen in ((CHOOSING, self._marks.choosing), (CARET, self._marks.caret)):
            if chosen is not None:
                text.stylize(style, *chosen)
        self.query_one("#answer-0-text", Static).update(text)

    def _verdicts(self) -> Text:
        """The answers with their keys; the one that holds is reversed."""
        known = self.desk.judged.get(self.desk.keys[self._place])
        said = known.said if known else None
        if self._hallucination:
            question = "Of which type?" if self._asks else "Does the answer hallucinate?"
            held: str | None = (said.kind or "none") if isinstance(said, Hallucination) else None
            options = [("n", "No", "none"), *((str(place), _words(kind), kind) for place, kind in enumerate(KINDS, 1))]
        else:
            question = "Which answer is better?"
            held = said.side if isinstance(said, Choice) else None
            options = [("a", "A", "A"), ("t", "Tie", "tie"), ("b", "B", "B")]
        text = Text().append(f"{question}\n", style="bold")
        for key, words, value in options:
            text.append(f" {key} {words} ", style="reverse" if value == held else "")
        if not self._hallucination:
            text.append("\nReasons: ", style="bold")
            for place, reason in enumerate(REASONS, 1):
                text.append(f" {place} {REASON_WORDS[reason]} ", style="reverse" if reason in self._reasons else "")
        return text


class Help(ModalScreen[None]):
    """The keys; any key closes it."""

    CSS = """
    Help { align: center middle; }
    #keys { width: auto; height: auto; padding: 1 2; border: round $accent; background: $panel; }
    """

    def __init__(self, keys: str) -> None:
        super().__init__()
        self._list = keys

    def compose(self) -> ComposeResult:
        yield Static(Text(self._list), id="keys")


def _words(kind: Kind) -> str:
    return kind.replace("_", " ").capitalize()
