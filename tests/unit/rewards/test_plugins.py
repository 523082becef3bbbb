"""Reward files in real processes: what works, what fails, and how each failure is told."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from openrlhf_ext.errors import RewardError
from openrlhf_ext.rewards.load import RewardSettings, load_reward
from openrlhf_ext.types import Prompt, Rollout, ScoreFailure

# As OpenRLHF's documentation describes it: torch, a dict, per-batch and per-sample logs, a print.
DOCUMENTED = """
import torch

def reward_func(queries, prompts, labels):
    print("scoring", len(queries), "queries", flush=True)
    hits = [float(q[len(p):].strip() == str(l)) for q, p, l in zip(queries, prompts, labels)]
    reward = torch.tensor(hits)
    return {
        "rewards": 2 * reward - 1,
        "scores": reward,
        "extra_logs": {"hit_rate": reward.mean().item(), "hits": reward},
    }
"""


def rollout(prompt: Prompt, sample: int, text: str) -> Rollout:
    return Rollout(prompt.id, sample, (1, 2), (False, True), (0.0, -0.5), text, "stop", (0, 0))


def group(name: str, label: object, *texts: str, **meta) -> tuple[Prompt, list[Rollout]]:
    prompt = Prompt(name, (1,), f"{name}? ", label, meta=meta)
    return prompt, [rollout(prompt, i, text) for i, text in enumerate(texts)]


@pytest.fixture
def reward(tmp_path):
    """Open reward files given as source texts; every process is ended with the test."""
    opened = []

    def open_reward(*sources: str, **settings):
        specs = []
        for index, source in enumerate(sources):
            path = tmp_path / ("reward.py" if index == 0 else f"reward{index}.py")
            path.write_text(textwrap.dedent(source))
            specs.append(str(path))
        reward = load_reward(specs, RewardSettings(**{"backoff_s": 0.01, "max_retries": 1, **settings}))
        opened.append(reward)
        return reward

    yield open_reward
    for each in opened:
        each.close()


FOUR_GROUPS = [group(name, name.upper(), name.upper(), "wrong") for name in "abcd"]


def test_documented_file_works_unchanged(reward, capfd):
    fn = reward(DOCUMENTED)
    fn.probe()
    scores = fn.score([group("a", "1", "1", "2"), group("b", "3", "4", "3")])
    assert [[s.value for s in g] for g in scores] == [[1, -1], [-1, 1]]
    assert [[s.filter_value for s in g] for g in scores] == [[1, 0], [0, 1]]
    assert scores[0][0].parts == {"reward": 1, "reward/hit_rate": 0.5, "reward/hits": 1}
    assert "scoring 2 queries\nscoring 4 queries" in capfd.readouterr().out  # once per batch, and shown


@pytest.mark.parametrize(
    "answer",
    [
        "[float(len(q)) for q in queries]",
        "tuple(len(q) for q in queries)",
        "__import__('numpy').array([len(q) for q in queries], dtype='float32')",
        "{'rewards': [len(q) for q in queries], 'scores': None, 'extra_logs': None}",
        "[__import__('numpy').float64(len(q)) for q in queries]",
    ],
)
def test_forms_of_answer(reward, answer):
    fn = reward(f"def reward_func(queries, prompts, labels, **kwargs):\n    return {answer}\n")
    scores = fn.score([group("a", None, "x", "xyz")])
    assert [s.value for s in scores[0]] == [4.0, 6.0]
    assert scores[0][0].filter_value is None


def test_async_function_keeps_its_event_loop(reward):
    fn = reward("""
        import asyncio
        loops = set()
        async def reward_func(queries, prompts, labels):
            await asyncio.sleep(0)
            loops.add(asyncio.get_running_loop())
            return [len(loops)] * len(queries)
        """)
    fn.probe()
    assert fn.score([group("a", None, "x")])[0][0].value == 1.0


def test_columns_of_the_row_as_keyword_arguments(reward):
    groups = [group("a", "l", "x", "y", bonus=1, unit="m"), group("b", "l", "z", bonus=2)]
    everything = reward("""
        def reward_func(queries, prompts, labels, **kwargs):
            assert kwargs["unit"] == ["m", "m", None], kwargs
            return kwargs["bonus"]
        """)
    assert [[s.value for s in g] for g in everything.score(groups)] == [[1, 1], [2]]
    named = reward("def reward_func(q, p, l, bonus, other=5):\n    return [b * other for b in bonus]\n")
    assert [[s.value for s in g] for g in named.score(groups)] == [[5, 5], [10]]


def test_weighted_sum_with_visible_parts(reward):
    fn = reward(
        "def reward_func(q, p, l):\n    return {'rewards': [1.0] * len(q), 'scores': [0.25] * len(q)}\n",
        "def reward_func(q, p, l):\n    return [float(len(x)) for x in q]\n",
        weights=(2.0, -0.5),
    )
    [[score]] = fn.score([group("a", None, "xy")])
    assert score.value == 2.0 * 1.0 - 0.5 * 5.0
    assert score.parts == {"reward": 1.0, "reward1": 5.0}
    assert score.filter_value == 0.25


def test_neighbour_modules_can_be_imported(reward, tmp_path):
    (tmp_path / "my_rules.py").write_text("SCALE = 3\n")
    fn = reward("from my_rules import SCALE\ndef reward_func(q, p, l):\n    return [SCALE] * len(q)\n")
    assert fn.score([group("a", None, "x")])[0][0].value == 3


def test_with_a_tokenizer_a_query_is_the_text_of_all_tokens(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"Q": 0, "A": 1, "<eos>": 2}, unk_token="Q"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")
    (tmp_path / "reward.py").write_text("def reward_func(q, p, l):\n    return [float(x == 'Q A <eos>') for x in q]\n")
    prompt = Prompt("a", (0,), "Q")
    whole = Rollout("a", 0, (0, 1, 2), (False, True, True), (0.0, -1.0, -1.0), " A", "stop", (0, 0))
    cut = Rollout("a", 1, (0, 1), (False, True), (0.0, -1.0), " A", "length", (0, 0))
    with load_reward([str(tmp_path / "reward.py")], RewardSettings(), tokenizer) as fn:
        assert [s.value for s in fn.score([(prompt, [whole, cut])])[0]] == [1.0, 0.0]


# --- before any model is loaded


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def reward_func(queries):\n    return [0]\n", "reward_func(queries)"),
        ("def reward_func(a, b, c, *, key):\n    return [0, 0]\n", "missing 1 required keyword-only argument: 'key'"),
        ("def reward_fn(queries, prompts, labels):\n    return [0]\n", "its functions: reward_fn"),
        ("def reward_func(queries, prompts, labels):\n    return 1.0\n", "the answer is float 1.0, not 2 numbers"),
        ("def reward_func(queries, prompts, labels):\n    return [1.0]\n", "1 numbers for 2 queries"),
        ("def reward_func(queries, prompts, labels):\n    return None\n", "the answer is None"),
        ("def reward_func(queries, prompts, labels):\n    return {'reward': [1, 2]}\n", "its keys: reward"),
        ("def reward_func(queries, prompts, labels):\n    return ['a', 'b']\n", "'a', not a number"),
        ("def reward_func(queries, prompts, labels):\n    return [float('nan'), 1]\n", "not_finite"),
        ("def reward_func(queries, prompts, labels):\n    return labels[7]\n", "IndexError: list index out of range"),
        ("import not_there_at_all\n", "No module named 'not_there_at_all'"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("import os\nos._exit(7)\n", "exit code 7"),
    ],
)
def test_probe_shows_expected_and_found(reward, source, found):
    with pytest.raises(RewardError) as error:
        reward(source).probe()
    message = str(error.value)
    assert found in message
    assert "reward.py" in message
    if "exit" not in source.lower():
        assert "expected reward_func(queries: list[str], prompts: list[str], labels: list, **kwargs)" in message


def test_syntax_error_names_file_and_line(reward, tmp_path):
    with pytest.raises(RewardError, match="line 3") as error:
        reward("x = 1\n\ndef reward_func(queries, prompts, labels)\n    return []\n").probe()
    assert str(tmp_path / "reward.py") in str(error.value)


def test_probe_uses_real_rows(reward):
    fn = reward("def reward_func(queries, prompts, labels):\n    return [int(l) for l in labels]\n")
    fn.probe([Prompt("a", (1,), "1+1", "2"), Prompt("b", (1,), "2+2", "4")])
    with pytest.raises(RewardError, match="invalid literal for int"):
        fn.probe([Prompt("a", (1,), "1+1", "two")])


@pytest.mark.parametrize(
    ("spec", "said"),
    [("rules/rewrd.py", "did you mean"), ("some-model", "neither a Python file"), ("http:///x", "names no host")],
)
def test_spec_that_names_no_source(tmp_path, spec, said):
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "reward.py").touch()
    with pytest.raises(RewardError, match=said):
        load_reward([str(tmp_path / spec) if spec.endswith(".py") else spec], RewardSettings())


# --- at run time

FAIL_ON_B = """
import os, time
def reward_func(queries, prompts, labels):
    if any(q.startswith("b") for q in queries):
        {act}
    return [1.0] * len(queries)
"""


@pytest.mark.parametrize(
    ("act", "reason", "detail"),
    [
        ("raise KeyError('boom')", "exception", "KeyError: 'boom'"),
        ("time.sleep(60)", "timeout", "no answer within"),
        ("os._exit(5)", "crashed", "exit code 5"),
        ("os.kill(os.getpid(), 11)", "crashed", "SIGSEGV"),
        ("return [float('nan') if q.startswith('b') else 1.0 for q in queries]", "not_finite", "2 of 2 rewards"),
        ("return [1.0]", "wrong_length", "1 numbers for"),
        ("return 'good'", "wrong_type", "str 'good'"),
    ],
)
def test_only_the_failing_group_is_dropped(reward, act, reason, detail):
    fn = reward(FAIL_ON_B.format(act=act), on_error="drop_group", timeout_s=1.0)
    results = fn.score(FOUR_GROUPS)
    failure = results[1]
    assert isinstance(failure, ScoreFailure)
    assert failure.reason == reason
    assert failure.detail.startswith("reward: ")
    assert detail in failure.detail
    assert [[s.value for s in results[i]] for i in (0, 2, 3)] == [[1.0, 1.0]] * 3
    assert fn.retries == {reason: 1}
    assert [s.value for s in fn.score(FOUR_GROUPS[:1])[0]] == [1.0, 1.0]  # and it still works afterwards


def test_abort_shows_the_end_of_the_users_traceback(reward):
    fn = reward(FAIL_ON_B.format(act="raise KeyError('boom')"), on_error="abort")
    assert len(fn.score(FOUR_GROUPS[:1])[0]) == 2
    with pytest.raises(RewardError, match="failed 2 times") as error:
        fn.score(FOUR_GROUPS)
    assert "line 5, in reward_func" in str(error.value)
    assert "child.py" not in str(error.value)


def test_a_retry_can_succeed(reward, tmp_path):
    fn = reward(f"""
        from pathlib import Path
        tried = Path({str(tmp_path / "tried")!r})
        def reward_func(queries, prompts, labels):
            if not tried.exists():
                tried.touch()
                raise ConnectionError
            return [1] * len(queries)
        """)
    assert fn.score(FOUR_GROUPS)[3][0].value == 1
    assert fn.retries == {"exception": 1}


def test_all_groups_failing_are_all_told(reward):
    fn = reward("def reward_func(q, p, l):\n    return [float('inf')] * len(q)\n", on_error="drop_group")
    results = fn.score(FOUR_GROUPS)
    assert [r.reason for r in results if isinstance(r, ScoreFailure)] == ["not_finite"] * 4


def test_no_groups_no_call(reward):
    assert reward("raise RuntimeError\n").score([]) == []


# --- the process


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


@pytest.mark.parametrize("hang", ["time.sleep(60)", "exec('while True: pass')"])
def test_it_dies_with_its_parent_even_while_user_code_hangs(tmp_path, hang):
    pid_file = tmp_path / "pids"
    (tmp_path / "reward.py").write_text(
        textwrap.dedent(f"""
        import os, subprocess, time
        def reward_func(queries, prompts, labels):
            helper = subprocess.Popen(["sleep", "60"])
            open({str(pid_file)!r}, "w").write(f"{{os.getpid()}} {{helper.pid}}\\n")
            {hang}
        """)
    )
    code = (
        "from openrlhf_ext.rewards.load import *\n"
        f"load_reward([{str(tmp_path / 'reward.py')!r}], RewardSettings()).probe()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    assert all(gone(int(pid)) for pid in pid_file.read_text().split())


def test_a_time_out_ends_what_user_code_started(reward, tmp_path):
    pid_file = tmp_path / "pid"
    fn = reward(
        f"""
        import subprocess, time
        def reward_func(queries, prompts, labels):
            open({str(pid_file)!r}, "w").write(str(subprocess.Popen(["sleep", "60"]).pid))
            time.sleep(60)
        """,
        timeout_s=0.5,
        max_retries=0,
    )
    with pytest.raises(RewardError, match="timeout"):
        fn.score(FOUR_GROUPS)
    assert gone(int(pid_file.read_text()))


def test_the_process_starts_light(reward):
    fn = reward("""
        import sys
        heavy = [m for m in ("torch", "numpy", "transformers", "tenacity", "asyncio") if m in sys.modules]
        def reward_func(queries, prompts, labels):
            return [float(len(heavy))] * len(queries)
        """)
    assert fn.score([group("a", None, "x")])[0][0].value == 0.0


def test_settings_do_not_fit():
    with pytest.raises(RewardError, match="2 reward weights for 1"):
        load_reward(["x.py"], RewardSettings(weights=(1.0, 2.0)))
