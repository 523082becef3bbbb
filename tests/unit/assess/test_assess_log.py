"""The file of judgements: whatever is answered, withdrawn and torn, it comes to what was confirmed."""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import FIRST, NO, SECOND, YES, Office, assessment, table

from openrlhf_ext.assess.assessment import JUDGEMENTS
from openrlhf_ext.assess.desk import Desk
from openrlhf_ext.assess.log import JudgementLog, Ledger
from openrlhf_ext.assess.verdicts import Choice, Hallucination, Judgement, Undo, entry_of, entry_to_json
from openrlhf_ext.errors import DataError, ResourceError

MADE = assessment([table(FIRST, 3)])
KEYS = MADE.order("anna")
NOTES = st.text(max_size=8)
VERDICTS = st.sampled_from([NO, YES, Hallucination(True, "contradiction", ((0, 3), (5, 7)))])
# An answer (rater, item, verdict, note), or an undo (rater, how far back).
ACTS = st.one_of(
    st.tuples(st.sampled_from(MADE.raters), st.sampled_from(KEYS), VERDICTS, NOTES),
    st.tuples(st.sampled_from(MADE.raters), st.integers(0, 3)),
)


class Memory:
    """What the raters said, as they would tell it themselves."""

    def __init__(self) -> None:
        self.said: dict[str, list[tuple[str, str, Hallucination, str]]] = {rater: [] for rater in MADE.raters}

    def now(self) -> dict[str, dict[str, tuple[Hallucination, str]]]:
        return {rater: {item: (v, note) for _, item, v, note in said} for rater, said in self.said.items()}


def held(log: JudgementLog) -> dict[str, dict[str, tuple[Hallucination, str]]]:
    return {
        rater: {item: (each.verdict, each.note) for item, each in log.ledger.current(rater).items()}
        for rater in MADE.raters
    }


@settings(max_examples=60, deadline=None)
@given(acts=st.lists(ACTS, max_size=12), data=st.data())
def test_a_crash_at_any_byte_loses_nothing_that_was_confirmed(acts: list, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / JUDGEMENTS
        log, memory = JudgementLog(path, MADE), Memory()
        ends, states = [0], [memory.now()]
        for number, act in enumerate(acts):
            if len(act) == 4:
                rater, item, verdict, note = act
                log.append(Judgement(f"id{number}", rater, item, verdict, note))
                memory.said[rater].append((f"id{number}", item, verdict, note))
            else:
                rater, back = act
                said = memory.said[rater]
                of = said.pop(-1 - back)[0] if back < len(said) else "never"
                log.append(Undo(f"id{number}", rater, of))
            ends.append(path.stat().st_size)
            states.append(memory.now())
            assert held(log) == states[-1]
        log.close()

        cut = data.draw(st.integers(0, ends[-1]), label="bytes that reached the disk")
        whole = path.read_bytes()
        path.write_bytes(whole[:cut])
        confirmed = max(number for number, end in enumerate(ends) if end <= cut)
        complete = cut + 1 in ends  # only the line's end is missing
        again = JudgementLog(path, MADE)
        assert held(again) == states[confirmed + complete]
        assert (again.mended is None) == (cut in ends)
        # whoever got no answer sends again, and all is as it would have been
        for line in whole[ends[confirmed] :].splitlines():
            again.append(entry_of(json.loads(line)))
        assert held(again) == states[-1]
        assert path.read_bytes() == whole
        again.close()


def test_an_entry_is_what_it_was_in_json() -> None:
    office = [Judgement("i", "anna", KEYS[0], Hallucination(True, "fabricated", ((0, 2),)), "n", 1.5, "then"),
              Undo("j", "anna", "i", "later")]  # fmt: skip
    assert [entry_of(json.loads(json.dumps(entry_to_json(entry)))) for entry in office] == office


def test_an_entry_sent_twice_is_one(tmp_path: Path) -> None:
    log = JudgementLog(tmp_path / JUDGEMENTS, MADE)
    for _ in range(2):
        log.append(Judgement("one", "anna", KEYS[0], YES))
    log.append(Undo("two", "anna", "one"))
    log.append(Judgement("one", "anna", KEYS[0], YES))  # late, and withdrawn already
    assert not log.ledger.current("anna")
    assert len((tmp_path / JUDGEMENTS).read_text().splitlines()) == 2


def test_the_earlier_answer_holds_again_after_an_undo() -> None:
    ledger = Ledger()
    ledger.apply(Judgement("1", "anna", "k", NO))
    ledger.apply(Judgement("2", "anna", "k", YES))
    assert ledger.current("anna")["k"].verdict == YES
    ledger.apply(Undo("3", "anna", "2"))
    assert ledger.current("anna")["k"].verdict == NO
    ledger.apply(Undo("4", "ben", "1"))  # not his
    assert ledger.current("anna")["k"].verdict == NO


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "line 2: it is no judgement"),
        ("{", "line 2: it is no judgement"),
        ("[" * 100_000, "line 2: it is no judgement"),
        ("null", "line 2: it is no judgement (an entry must be an object)"),
        ('{"id": "x", "rater": "anna", "at": ""}', "the verdict must be an object"),
        ('{"id": "x", "rater": "carl", "at": "", "undo": "y"}', "line 2: 'carl' is no rater here"),
        ('{"id": "x", "rater": "anna", "at": "", "item": "z", "verdict": {"present": false}}', "line 2: item z is not"),
        (json.dumps({"id": "x", "rater": "anna", "at": "", "item": KEYS[0],
                     "verdict": {"present": True, "kind": "fabricated", "spans": [[0, 999]]}}), "ends behind"),
        (json.dumps({"id": "x", "rater": "anna", "at": "", "item": KEYS[0],
                     "verdict": {"preferred": None, "first": "f", "reasons": []}}), "was not compared so"),
    ],
)  # fmt: skip
def test_a_broken_line_is_named_and_stays(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / JUDGEMENTS
    good = [json.dumps(entry_to_json(Judgement(name, "anna", KEYS[0], NO))) for name in "ab"]
    content = f"{good[0]}\n{line}\n{good[1]}\n"
    path.write_text(content)
    with pytest.raises(DataError) as raised:
        JudgementLog(path, MADE)
    assert said in str(raised.value)
    assert path.read_text() == content


def test_a_preference_of_another_model(tmp_path: Path) -> None:
    office = Office(tmp_path, assessment([table(FIRST, 2), table(SECOND, 2)], task="preference"))
    office.prefer("anna", "stage-b says 1")
    (line,) = (tmp_path / JUDGEMENTS).read_text().splitlines()
    assert json.loads(line)["verdict"]["preferred"] == SECOND.fingerprint
    (tmp_path / JUDGEMENTS).write_text(line.replace(SECOND.fingerprint, "cccc3333") + "\n")
    with pytest.raises(DataError, match="line 1"):
        JudgementLog(tmp_path / JUDGEMENTS, office.assessment)


def _judge_some(folder: Path, rater: str) -> None:
    made = assessment([table(FIRST, 30)])
    desk = Desk(made, JudgementLog(folder / JUDGEMENTS, made), rater)
    for key in desk.keys:
        desk.judge(key, YES, note="x" * 5000)


def test_processes_that_write_at_the_same_time_keep_out_of_each_others_lines(tmp_path: Path) -> None:
    made = assessment([table(FIRST, 30)])
    early = Desk(made, JudgementLog(tmp_path / JUDGEMENTS, made), "ben")
    writers = [multiprocessing.get_context("fork").Process(target=_judge_some, args=(tmp_path, r)) for r in made.raters]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(early.judged) == 30  # it sees what others wrote
    assert len((tmp_path / JUDGEMENTS).read_text().splitlines()) == 60


def test_a_full_disk_is_said_and_a_second_try_works(tmp_path: Path) -> None:
    office = Office(tmp_path, MADE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))  # the file takes the first bytes of the line and no more
    try:
        with pytest.raises(ResourceError, match="cannot be written"):
            office.desks["anna"].judge(KEYS[0], YES, entry_id="one")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / JUDGEMENTS).stat().st_size == 20
    office.desks["anna"].judge(KEYS[0], YES, entry_id="one")
    assert len((tmp_path / JUDGEMENTS).read_text().splitlines()) == 1
    assert list(office.desks["anna"].judged) == [KEYS[0]]


def test_a_choice_comes_back_as_it_was_seen(tmp_path: Path) -> None:
    office = Office(tmp_path, assessment([table(FIRST, 12), table(SECOND, 12)], task="preference"))
    desk = office.desks["anna"]
    for key, side in zip(desk.keys, ["A", "B", "tie"] * 4):
        desk.judge(key, Choice(side, ("safe",)))
    assert [desk.judged[key].said for key in desk.keys] == [Choice(side, ("safe",)) for side in ["A", "B", "tie"] * 4]
    for key, side in zip(desk.keys, ["A", "B", "tie"] * 4):
        judgement = office.log.ledger.current("anna")[key]
        texts = {each.model: each.text for each in office.assessment.by_key[key].answers}
        seen = dict(zip(("A", "B"), desk.sheet(key).answers))
        assert texts.get(judgement.verdict.preferred) == seen.get(side)
        assert texts[judgement.verdict.first] == seen["A"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"present": True},
        {"present": False, "kind": "fabricated"},
        {"present": False, "spans": ((0, 1),)},
        {"present": True, "kind": "fabricated", "spans": ((3, 3),)},
        {"present": True, "kind": "fabricated", "spans": ((0, 5), (4, 6))},
        {"present": True, "kind": "fabricated", "spans": ((-1, 5),)},
    ],
)
def test_a_hallucination_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(ValueError):
        Hallucination(**wrong)
