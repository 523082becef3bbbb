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
import os
import shlex
import sys
from pathlib import Path
from typing import NoReturn

NOT_ENDED = ("PENDING", "RUNNING")
IGNORED = [".git", ".venv", "outputs", "**/__pycache__"]
"""Of a working directory: what no job needs and what would fill the cluster's memory."""


def main() -> NoReturn:
    own, command = _words(sys.argv[1:])
    options = _options(own)
    # Ray reads these when it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or _token_file().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    sys.exit(_run(options, command))


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
    parser.add_argument("--name", help="submission id; not given: Ray makes one")
    parser.add_argument("--working-dir", help="folder that is sent along, and in which the command runs")
    parser.add_argument("--pip", help="requirements file that Ray installs for the job")
    parser.add_argument("--env", nargs="*", default=[], metavar="NAME", help="variables of this shell that go along")
    parser.add_argument("--cpus", type=float, default=0.0, help="logical CPUs of the driver (not of the roles)")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of the driver (the roles ask for their own)")
    parser.add_argument("--python", default=sys.executable, help="interpreter there (default: as here)")
    parser.add_argument("--no-follow", action="store_true", help="send it and return")
    return parser.parse_args(own)


def _run(options: argparse.Namespace, command: list[str]) -> int:
    if not command:
        return _refuse("name a command behind --, such as: -- rl --config rl.yaml; --help says more.")
    missing = [name for name in options.env if name not in os.environ]
    if missing:
        return _refuse(f"--env {' '.join(missing)}: this shell has no such variable.")
    for flag, path in (("--working-dir", options.working_dir), ("--pip", options.pip)):
        if path is not None and "://" not in path and not Path(path).exists():
            return _refuse(f"{flag} {path} does not exist.")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(options.address)
        job = client.submit_job(
            entrypoint=shlex.join([options.python, "-m", "openrlhf_ext.cli.main", *_joined(command)]),
            submission_id=options.name,
            runtime_env=_environment(options),
            entrypoint_num_cpus=options.cpus or None,
            entrypoint_num_gpus=options.gpus or None,
        )
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        return _refuse(f"{options.address} did not take the job: {reason}")
    print(f"job {job} at {options.address}", file=sys.stderr)
    if options.no_follow:
        return 0
    try:
        asyncio.run(_follow(client, job))
    except KeyboardInterrupt:
        print(f"stopping job {job}", file=sys.stderr)
        client.stop_job(job)
        asyncio.run(_ended(client, job))
        return 130
    return _exit_code(client, job)


def _refuse(sentence: str) -> int:
    print(f"ray_job.py: {sentence}", file=sys.stderr)
    return 2


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


async def _follow(client: object, job: str) -> None:
    """Print the job's log until it has ended. A connection that breaks off is taken up again where it was."""
    printed = 0
    while True:
        seen = 0
        try:
            async for text in client.tail_job_logs(job):  # type: ignore[attr-defined]
                if seen + len(text) > printed:
                    sys.stdout.write(text[max(printed - seen, 0) :])
                    sys.stdout.flush()
                seen += len(text)
                printed = max(printed, seen)
        except (ConnectionError, RuntimeError, OSError):
            await asyncio.sleep(2.0)
        if client.get_job_status(job) not in NOT_ENDED:  # type: ignore[attr-defined]
            return
        await asyncio.sleep(0.5)


async def _ended(client: object, job: str) -> None:
    while client.get_job_status(job) in NOT_ENDED:  # type: ignore[attr-defined]
        await asyncio.sleep(0.5)


def _exit_code(client: object, job: str) -> int:
    info = client.get_job_info(job)  # type: ignore[attr-defined]
    print(f"job {job}: {info.status}", file=sys.stderr)
    if info.status == "SUCCEEDED":
        return 0
    if info.driver_exit_code:
        return int(info.driver_exit_code) % 256
    if info.message:
        print(info.message, file=sys.stderr)
    return 1


def _token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"


if __name__ == "__main__":
    main()
