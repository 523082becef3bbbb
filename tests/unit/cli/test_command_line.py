"""The console script: its commands, its help, and how errors end."""

from __future__ import annotations

import pytest

from openrlhf_ext.cli import boundary
from openrlhf_ext.cli.help import answer_help
from openrlhf_ext.cli.main import COMMANDS, dispatch
from openrlhf_ext.config import RLConfig, flags_of
from openrlhf_ext.errors import ConfigError, DataError


def ends(main, argv=()) -> int:
    with pytest.raises(SystemExit) as stop:
        boundary.run(main, argv)
    return stop.value.code


def test_alone_it_lists_its_commands(capsys):
    assert ends(dispatch) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_an_unknown_command(capsys):
    assert ends(dispatch, ["sfd"]) == 2
    assert capsys.readouterr().err == "openrlhf-ext sfd: there is no such command; did you mean sft.\n"


def test_errors_end_in_a_sentence_or_a_traceback(capsys):
    def user(argv):
        raise DataError("a.jsonl, line 3: not JSON; mend the line.")

    def remote(argv):
        error = DataError("a remote traceback\nDataError: b")
        error.cause = DataError("b")  # as Ray wraps an exception of an actor
        raise error

    def stopped(argv):
        raise KeyboardInterrupt

    def ours(argv):
        raise ZeroDivisionError

    assert ends(user) == 2
    assert capsys.readouterr().err == "a.jsonl, line 3: not JSON; mend the line.\n"
    assert ends(remote) == 2
    assert capsys.readouterr().err == "b\n"
    assert ends(stopped) == 130
    assert ends(lambda argv: 3) == 3
    with pytest.raises(ZeroDivisionError):
        boundary.run(ours, [])


def test_help_shows_sections_and_common_flags(capsys):
    assert answer_help("rl", ["--train.seed", "1", "--help"])
    shown = capsys.readouterr().out
    for flag in flags_of(RLConfig).values():
        assert (f"--{flag.path} " in shown) == (flag.common or "." not in flag.path), flag.path


@pytest.mark.parametrize("topic", ["algo", "algo.kl", "--algo.kl.init_coef", "all"])
def test_help_of_a_section_shows_all_of_it(topic: str, capsys):
    assert answer_help("rl", ["--help", topic])
    shown = capsys.readouterr().out
    prefix = "" if topic == "all" else topic.removeprefix("--")
    for path in flags_of(RLConfig):
        assert (f"--{path} " in shown) == path.startswith(prefix), path


def test_help_of_no_section():
    assert not answer_help("rl", ["--train.seed", "1"])
    with pytest.raises(ConfigError, match="did you mean rollout"):
        answer_help("rl", ["-h", "rolout"])
