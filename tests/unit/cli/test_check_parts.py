"""What `check` is made of: sentences cut in two, checks side by side within their time, and what the driver lists."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from openrlhf_ext.cli.check import LIMIT_S, main
from openrlhf_ext.cli.checks import devices, packages
from openrlhf_ext.cli.checks.finding import Finding, error, in_two, of_error, ok, warning
from openrlhf_ext.cli.checks.lanes import Check, Findings, run_lanes
from openrlhf_ext.cli.checks.subject import NotThereError, Subject
from openrlhf_ext.config import examine
from openrlhf_ext.device import Device
from openrlhf_ext.device.cards import read_cards, visible
from openrlhf_ext.errors import ConfigError, DataError, ResourceError
from openrlhf_ext.track.same_files import content_marks

FLAGS = ["--model.model_name_or_path", "m", "--data.dataset", "d"]
LISTING = """\
0, GPU-8a7e, NVIDIA H200, 143771, 143260, 570.86.15
1, GPU-91bc, NVIDIA GB10, [N/A], [N/A], 570.86.15
"""


def subject(limit_s: float = 5.0, *, right: bool = True) -> Subject:
    parsed, violations = examine("sft", FLAGS)
    assert not violations
    return Subject("sft", parsed, flags_are_right=right, limit_s=limit_s)


def look(*lanes: list[Check], limit_s: float = 5.0, right: bool = True) -> Findings:
    return run_lanes(lanes, subject(limit_s, right=right), time.monotonic() + limit_s)


@pytest.mark.parametrize(
    ("sentence", "parts"),
    [
        ("trian.jsonl is not there: is it train.jsonl?", ("trian.jsonl is not there", "is it train.jsonl?")),
        ("a.py failed (x: y; z): mend it.", ("a.py failed (x: y; z)", "mend it.")),
        ("f, line 3: not JSON (a: b); one object a line.", ("f, line 3: not JSON (a: b)", "one object a line.")),
        ("http://a:80/b failed; start it; wait.", ("http://a:80/b failed", "start it; wait.")),
        ("nothing to be done about it", ("nothing to be done about it", "")),
    ],
)  # fmt: skip
def test_a_sentence_is_cut_before_its_remedy(sentence: str, parts: tuple[str, str]):
    assert in_two(sentence) == parts


def test_an_error_without_a_remedy_gets_one():
    assert of_error("data", DataError("f cannot be read.")) == error(
        "data", "f cannot be read.", "mend it, and check again."
    )
    with pytest.raises(AssertionError):
        Finding("data", "warning", "something is odd")


def test_lanes_run_side_by_side_and_their_checks_in_order():
    met = threading.Barrier(2, timeout=5)
    order: list[str] = []

    def first(_: Subject) -> Iterator[Finding]:
        met.wait()  # for the other lane, which could not come if this one had to end before
        order.append("first")
        yield ok("a", "first")

    def second(_: Subject) -> Iterator[Finding]:
        order.append("second")
        yield ok("b", "second")

    def other(_: Subject) -> Iterator[Finding]:
        met.wait()
        yield ok("c", "other")

    found = look([Check("a", first, 1.0), Check("b", second, 1.0)], [Check("c", other, 1.0)])
    assert found.findings == [ok("a", "first"), ok("b", "second"), ok("c", "other")]
    assert order == ["first", "second"]


def test_a_slow_check_is_left_and_what_it_found_is_kept():
    release = threading.Event()

    def slow(_: Subject) -> Iterator[Finding]:
        yield ok("slow", "so far")
        release.wait(10)

    start = time.monotonic()
    found = look([Check("slow", slow, 0.1), Check("next", lambda _: [ok("next", "done")], 0.5)], limit_s=2.0)
    assert time.monotonic() - start < 1.9
    release.set()
    assert found.findings[0] == ok("slow", "so far")
    assert (found.findings[1].level, found.findings[1].area) == ("warning", "slow")
    assert "not done after 0.2 s" in found.findings[1].text
    assert found.findings[2] == ok("next", "done")


def test_when_the_time_is_over_the_rest_is_not_begun():
    begun: list[str] = []
    release = threading.Event()
    late = [
        Check("late", lambda _: release.wait(10) and [], 1.0),
        Check("never", lambda _: begun.append("x") or [], 1.0),
    ]
    found = look(late, limit_s=0.2)
    release.set()
    assert [(item.area, item.level) for item in found.findings] == [("late", "warning"), ("never", "warning")]
    assert found.findings[1].text == "there was no time for it" and not begun


def test_users_errors_are_findings_and_ours_are_not():
    def refused(_: Subject) -> Iterator[Finding]:
        yield ok("a", "this much was well")
        raise ConfigError("--x 1: it is odd; give 2.")

    def wanting(subject: Subject) -> Iterator[Finding]:
        yield ok("b", str(subject.device))

    def defect(_: Subject) -> Iterator[Finding]:
        raise KeyError("ours")

    lane = [Check("a", refused, 1.0), Check("b", wanting, 1.0), Check("c", defect, 1.0)]
    found = look(lane)
    assert found.findings == [
        ok("a", "this much was well"),
        error("a", "--x 1: it is odd", "give 2."),
        warning("b", "not checked, for want of a device", "mend that, and check again."),
    ]
    assert [type(item) for item in found.defects] == [KeyError]
    among_wrong_flags = look(lane, right=False)
    assert not among_wrong_flags.defects
    assert among_wrong_flags.findings[-1].text == "not checked further (KeyError: 'ours')"


def test_what_our_code_says_while_it_is_checked_is_a_finding():
    def talking(_: Subject) -> Iterator[Finding]:
        logging.getLogger("openrlhf_ext.device").warning("the default %d becomes %d.", 8, 1)
        yield ok("a", "done")

    found = look([Check("a", talking, 1.0)])
    assert found.findings == [ok("a", "the default 8 becomes 1."), ok("a", "done")]


def test_a_subject_has_what_its_checks_made():
    asked = subject()
    for name in ("device", "tokenizer"):
        with pytest.raises(NotThereError):
            getattr(asked, name)
    assert asked.wait_for_prompts(0.0) == ()
    asked.settle_prompts(["a"])  # type: ignore[list-item]
    asked.settle_prompts(())  # the end of a check that had already settled them
    assert asked.wait_for_prompts(0.0) == ["a"]


def test_the_drivers_list():
    cards = read_cards(LISTING)
    assert [(card.name, card.bytes, card.free) for card in cards] == [
        ("NVIDIA H200", 143771 << 20, 143260 << 20),
        ("NVIDIA GB10", 0, 0),
    ]
    assert visible(cards, None) == cards
    assert visible(cards, "1,0") == [cards[1], cards[0]]
    assert visible(cards, "GPU-91") == [cards[1]]
    assert visible(cards, "") == []


def test_what_a_broken_library_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openrlhf_ext.cli.supervised_run", None)  # as Python marks what cannot be imported
    (found,) = packages.find_imports(subject())
    assert found.level == "error" and "openrlhf_ext.cli.supervised_run cannot be imported" in found.text


@pytest.mark.parametrize(
    "flags", [["rlx"], ["sft", "--limit_s", "soon"], ["sft", "--limit_s"], ["sft", "--limit_s", "-1"]]
)
def test_a_command_line_that_is_not_checks_own(flags: list[str]):
    with pytest.raises(ConfigError, match=r"name one of them|takes seconds"):
        main(flags)


def test_help_is_light(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    assert f"{LIMIT_S:g} seconds" in " ".join(capsys.readouterr().out.split())
    code = "import sys, openrlhf_ext.cli.check; print([name for name in ('torch', 'ray') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_what_cannot_be_read_at_all(capsys: pytest.CaptureFixture[str]):
    assert main(["sft", "train.jsonl", "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert not answer["ok"]
    worst = answer["findings"][-1]
    assert (worst["area"], worst["level"]) == ("flags", "error") and "'train.jsonl' is not a flag" in worst["text"]
    assert {"packages", "machine"} <= {item["area"] for item in answer["findings"]}


GPUS = Device("cuda", 2, frozenset({"sleep", "ipc", "bf16", "varlen", "4bit", "flash_attention"}))
RL = (
    "--actor.model_name_or_path m --data.prompt_dataset d --reward.remote_url r.py --algo.advantage.estimator reinforce"
)


@pytest.mark.parametrize(
    ("command", "flags", "level", "words"),
    [
        ("rm", "--model.num_gpus_per_node 4", "error", "--model.num_gpus_per_node 4 asks for more GPUs than the 2"),
        ("dpo", "--model.num_gpus_per_node 2", "ok", "2 ranks on each machine"),
        (
            "rl",
            "--actor.num_gpus_per_node 4 --ref.num_gpus_per_node 4",
            "error",
            "9 GPUs (actor 4 x 1, ref 4 x 1, vllm",
        ),
        (
            "rl",
            "--train.colocate_all --vllm.num_engines 2",
            "ok",
            "actor 2 x 1 (all), ref 2 x 1 (all), vllm 2 x 1 (all)",
        ),
    ],
)
def test_gpus_that_are_asked_for_and_those_there(command: str, flags: str, level: str, words: str):
    parsed, violations = examine(command, [*(RL.split() if command == "rl" else FLAGS), *flags.split()])
    assert not violations
    asked = Subject(command, parsed, flags_are_right=True, limit_s=5.0)
    asked.device = GPUS
    found = run_lanes([[Check("device", devices.find_ranks, 1.0)]], asked, time.monotonic() + 60)
    assert not found.defects
    assert any(item.level == level and words in item.text for item in found.findings), found.findings
    assert (level == "error") == any(item.level == "error" for item in found.findings)


def test_a_cluster_is_laid_out_and_its_nodes_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    own = content_marks([str(tmp_path)])
    there = [{"name": name, "CPU": 8, "GPU": 2, "marks": dict(own)} for name in ("node1", "node2", "node3")]
    monkeypatch.setattr(devices, "_cluster", lambda *_: there)
    flags = f"--model.model_name_or_path {tmp_path} --data.dataset d --ray.address 10.0.0.1:6379"
    flags += " --model.num_nodes 2 --model.num_gpus_per_node 2 --train.batch_size 8"
    parsed, _ = examine("sft", flags.split())
    subject = Subject("sft", parsed, flags_are_right=True, limit_s=LIMIT_S)
    subject.device = Device("cuda", 2, frozenset())
    assert [found.level for found in devices.find_ranks(subject)] == ["ok"] * 3
    there[2]["marks"][str(tmp_path)] = None  # no rank will be there
    assert list(devices.find_ranks(subject))[-1].text == f"the same files as here on node1, node2: {tmp_path}"
    there[1]["marks"][str(tmp_path)] = None
    with pytest.raises(DataError, match=f"node2 has no {tmp_path}, which is read there by the model: put it on"):
        list(devices.find_ranks(subject))
    for node in there:
        node["GPU"] = 1
    with pytest.raises(ResourceError, match=r"The roles ask for 4 GPUs .* and there are 3: lower"):
        list(devices.find_ranks(subject))
