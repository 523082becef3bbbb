"""`ray job submit` for a training command: sent, followed, stopped by Ctrl-C, and its exit code is ours.

    python launchers/ray_job.py [--address http://HOST:8265] [--name NAME] [--gpus N] [--env NAME ...] \\
        [--working-dir DIR] [--pip FILE] -- rl --actor.model_name_or_path MODEL ...

What stands behind `--` is an openrlhf-ext command. It joins the cluster that it runs on, and goes on from its newest
checkpoint where there is one, so that the same line sent again resumes. The token of the cluster is taken from where
Ray looks for it (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

NOT_ENDED = ("PENDING", "RUNNING")
NAME = "name"
"""In a job's metadata: its --name, which all jobs that the same line has sent have in common."""
IGNORED = [".git", ".venv", "outputs", "**/__pycache__"]
"""Of a working directory: what no job needs and what would fill the cluster's memory."""
ANSWER_S, RETRY_S, GIVE_UP_S = 30.0, 2.0, 300.0
"""How long one answer may take, the pause until a cluster that gave none is asked again, and how long that goes on."""
STOPPED, UNANSWERED = 130, os.EX_UNAVAILABLE
"""Exit codes that no job gives: Ctrl-C, and a cluster that no longer answers, whose job may run on."""


class Refused(Exception):
    """Why nothing was sent."""


class Unanswered(Exception):
    """The cluster no longer says how the job is."""


def main() -> NoReturn:
    own, command = _words(sys.argv[1:])
    options = _options(own)
    # Ray reads these when it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or _token_file().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        sys.exit(_run(options, command))
    except Refused as why:
        _say(str(why))
        sys.exit(2)
    except Unanswered as why:
        _say(str(why))
        sys.exit(UNANSWERED)


def _words(argv: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in argv:
        return argv, []
    cut = argv.index("--")
    return argv[:cut], argv[cut + 1 :]


def _options(own: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ray_job.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--address", default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"),
                        help="the cluster's dashboard (default: %(default)s)")  # fmt: skip
    parser.add_argument("--name", help="submission id; sent again NAME-2, NAME-3, ...; not given: Ray makes one")
    parser.add_argument("--working-dir", help="folder that is sent along, and in which the command runs")
    parser.add_argument("--pip", help="requirements file that Ray installs for the job")
    parser.add_argument("--env", nargs="*", default=[], metavar="NAME", help="variables of this shell that go along")
    parser.add_argument("--cpus", type=float, default=0.0, help="logical CPUs of the driver (not of the roles)")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of the driver (the roles ask for their own)")
    parser.add_argument("--python", default=sys.executable, help="interpreter there (default: as here)")
    parser.add_argument("--no-follow", action="store_true", help="send it and return")
    return parser.parse_args(own)


def _run(options: argparse.Namespace, command: list[str]) -> int:
    _check(options, command)
    job = _send(options, command)
    print(f"job {job.name} at {job.address}", file=sys.stderr)
    if options.no_follow:
        return 0
    try:
        return _exit_code(job, asyncio.run(job.followed()))
    except KeyboardInterrupt:
        print(f"stopping job {job.name}", file=sys.stderr)
    try:
        asyncio.run(job.stopped())
    except KeyboardInterrupt:
        _say(f"not waiting until job {job.name} has stopped: {job.look_up()}.")
    return STOPPED


def _check(options: argparse.Namespace, command: list[str]) -> None:
    if not command:
        raise Refused("name a command behind --, such as: -- rl --config rl.yaml; --help says more.")
    missing = [name for name in options.env if name not in os.environ]
    if missing:
        raise Refused(f"--env {' '.join(missing)}: this shell has no such variable.")
    for flag, path in (("--working-dir", options.working_dir), ("--pip", options.pip)):
        if path is not None and "://" not in path and not Path(path).exists():
            raise Refused(f"{flag} {path} does not exist.")
    lost = _folders_in_the_copy(options.working_dir, command) if options.working_dir else []
    if lost:
        raise Refused(
            f"{' and '.join(lost)} would lie in Ray's copy of --working-dir, which Ray may delete: give absolute "
            "paths, on storage that every node reaches."
        )


def _folders_in_the_copy(working_dir: str, command: list[str]) -> list[str]:
    """The flags whose folders are relative to where the job runs. What only the cluster can read it will judge."""
    from openrlhf_ext.config import COMMANDS, examine
    from openrlhf_ext.errors import ConfigError

    if command[0] not in COMMANDS:
        return []
    here = os.getcwd()
    try:
        if Path(working_dir).is_dir():
            os.chdir(working_dir)  # its --config files are named from there
        ckpt = examine(command[0], command[1:])[0].config.ckpt
    except ConfigError:
        return []
    finally:
        os.chdir(here)
    folders = {"--ckpt.output_dir": ckpt.output_dir, "--ckpt.path": ckpt.path}
    return [f"{flag} {folder}" for flag, folder in folders.items() if not Path(folder).is_absolute()]


def _send(options: argparse.Namespace, command: list[str]) -> SentJob:
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(options.address)
        job = client.submit_job(
            entrypoint=shlex.join([options.python, "-m", "openrlhf_ext.cli.main", *_joined(command)]),
            submission_id=_free_name(client, options.name) if options.name else None,
            metadata={NAME: options.name} if options.name else None,
            runtime_env=_environment(options),
            entrypoint_num_cpus=options.cpus or None,
            entrypoint_num_gpus=options.gpus or None,
        )
    except _failures() as error:
        raise Refused(f"{options.address} did not take the job: {_reason(error)}") from None
    except KeyboardInterrupt:
        _say(f"interrupted while the job was sent: ray job list --address {options.address} says whether it arrived.")
        sys.exit(STOPPED)
    return SentJob(client, options.address, job)


def _free_name(client: Any, name: str) -> str:
    """The name, or with a number behind it: Ray keeps the ids of jobs that have ended, and gives none a second time."""
    jobs = client.list_jobs()
    before = [job for job in jobs if job.submission_id == name or (job.metadata or {}).get(NAME) == name]
    running = [job.submission_id for job in before if job.status in NOT_ENDED]
    if running:
        raise Refused(
            f"--name {name}: job {running[0]} has not ended; wait for it, stop it (ray job stop {running[0]}), or give "
            "another name and another --ckpt.path."
        )
    taken = {job.submission_id for job in jobs}
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    free = next(each for each in itertools.chain([name], numbered) if each not in taken)
    if free != name:
        _say(f"a job {name} has ended before; this one is {free}.")
    return free


def _joined(command: list[str]) -> list[str]:
    """On the cluster that runs it, and resumed where there is something to go on from."""
    joined = list(command)
    names = {word.partition("=")[0] for word in command}
    if "--ray.address" not in names:
        joined += ["--ray.address", "auto"]
    if not names & {"--ckpt.load_enable", "--ckpt.no_load_enable"}:
        joined.append("--ckpt.load_enable")
    return joined


def _environment(options: argparse.Namespace) -> dict[str, object]:
    environment: dict[str, object] = {"env_vars": {name: os.environ[name] for name in options.env}}
    if options.working_dir:
        environment |= {"working_dir": options.working_dir, "excludes": IGNORED}
    if options.pip:
        environment["pip"] = options.pip
    return environment


@dataclass(frozen=True)
class SentJob:
    """A job of the cluster, which runs whether or not the cluster answers us."""

    client: Any
    address: str
    name: str

    async def followed(self) -> Any:
        """Print the log until the job has ended, and say how. A connection that breaks off is taken up where it was."""
        printed = 0
        while True:
            seen = 0
            try:
                async for text in self.client.tail_job_logs(self.name):
                    if seen + len(text) > printed:
                        sys.stdout.write(text[max(printed - seen, 0) :])
                        sys.stdout.flush()
                    seen += len(text)
                    printed = max(printed, seen)
            except _failures():
                await asyncio.sleep(RETRY_S)
            details = await self._details()
            if details.status not in NOT_ENDED:
                return details
            await asyncio.sleep(0.5)

    async def stopped(self) -> None:
        await self._answer(lambda: self.client.stop_job(self.name))
        while (await self._details()).status in NOT_ENDED:
            await asyncio.sleep(0.5)

    def look_up(self) -> str:
        return f"ray job status {self.name} --address {self.address} says how it is"

    async def _details(self) -> Any:
        return await self._answer(lambda: self.client.get_job_info(self.name))

    async def _answer(self, ask: Callable[[], T]) -> T:
        """What the cluster says, which may be away for a while. Raises Unanswered where it stays away."""
        until = None
        while True:
            try:
                return await _in_time(_in_background(ask))
            except _failures() as error:
                if until is None:
                    until = time.monotonic() + GIVE_UP_S
                    _say(f"{self.address} does not say how job {self.name} is ({_reason(error)}); "
                         f"asking again for {GIVE_UP_S:.0f} s.")  # fmt: skip
                elif time.monotonic() > until:
                    raise Unanswered(
                        f"{self.address} has not answered for {GIVE_UP_S:.0f} s ({_reason(error)}): job {self.name} "
                        f"may run on; {self.look_up()}."
                    ) from None
            await asyncio.sleep(RETRY_S)


async def _in_time(answer: asyncio.Future[T]) -> T:
    """Not by `asyncio.wait_for`: Python 3.11's loses a Ctrl-C that comes together with the answer."""
    done, _ = await asyncio.wait([answer], timeout=ANSWER_S)
    if not done:
        raise asyncio.TimeoutError
    return answer.result()


def _in_background(ask: Callable[[], T]) -> asyncio.Future[T]:
    """In a thread that may be left behind: Ray's client would wait for ever for a dashboard that has frozen."""
    answer: Future[T] = Future()
    answer.set_running_or_notify_cancel()  # from here on it takes an answer that nobody waits for any longer

    def work() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return asyncio.wrap_future(answer)


def _failures() -> tuple[type[Exception], ...]:
    """What Ray's client raises where the cluster gives no answer, or one that is an error; requests' are OSErrors."""
    import aiohttp
    from ray.exceptions import RayError

    return RayError, aiohttp.ClientError, asyncio.TimeoutError, OSError, RuntimeError, ValueError


def _reason(error: Exception) -> str:
    first: BaseException = error
    while isinstance(error, OSError) and first.__context__ is not None:
        first = first.__context__  # requests wraps what the system said three times
    return " ".join(str(first).split())[:300] or "no answer in time"


def _exit_code(job: SentJob, details: Any) -> int:
    print(f"job {job.name}: {details.status}", file=sys.stderr)
    if details.status == "SUCCEEDED":
        return 0
    if details.driver_exit_code:
        return int(details.driver_exit_code) % 256
    if details.message:
        print(details.message, file=sys.stderr)
    return 1


def _say(sentence: str) -> None:
    print(f"ray_job.py: {sentence}", file=sys.stderr)


def _token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"


if __name__ == "__main__":
    main()
