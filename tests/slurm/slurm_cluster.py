"""A real Slurm on this machine: every node has a network, a host name, a /tmp/ray and an /etc/hosts of its own.

Namespaces keep all of it away from the machine's own network and files; it needs root, and slurm-wlm and munge.
The GPUs are declared, not there: what a script asks for is taken, granted and bound as on a cluster that has them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "nsenter", "ip")
GPUS = 8
"""Declared on each node; Slurm wants a device file for each."""
MEMORY_MB = 64_000
"""Declared as well: what runs here is tiny."""


def missing() -> str | None:
    """Why no cluster can be started here; None where it can."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    absent = [program for program in NEEDED if shutil.which(program, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "this kernel gives us no namespaces"


@dataclass
class Host:
    """A namespace that looks like a machine."""

    name: str
    address: str
    folder: Path
    holder: subprocess.Popen[bytes]
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, *words: str) -> list[str]:
        return ["nsenter", "-t", str(self.holder.pid), "-n", "-u", "-m", f"--wd={self.folder}", *words]


class SlurmCluster:
    """`run("sbatch", ...)` on the head node; `jobs` and files are those of `folder`."""

    def __init__(self, folder: Path, nodes: int = 2) -> None:
        self.folder = folder
        self.names = [f"node{number}" for number in range(1, nodes + 1)]
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> SlurmCluster:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *words: str, env: dict[str, str] | None = None, check: bool = True, host: str = "head") -> str:
        """What the command printed. Raises AssertionError with all of it where it failed and `check`."""
        done = subprocess.run(
            self.hosts[host].command(*words),
            env=self.environment | (env or {}),
            cwd=self.folder, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    @property
    def environment(self) -> dict[str, str]:
        """As a user of the cluster has it. What Ray or Slurm left in ours is not theirs."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_", "OMP_"))}
        path = os.pathsep.join(["/usr/sbin", "/sbin", own.get("PATH", "")])
        return own | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def submit(self, *words: str, env: dict[str, str] | None = None) -> int:
        """The number of the job that `sbatch WORDS` makes."""
        said = self.run("sbatch", "--parsable", *words, env=env)
        return int(said.strip().splitlines()[-1].partition(";")[0])

    def fields(self, job: int) -> dict[str, str]:
        said = self.run("scontrol", "show", "job", str(job), "-o", check=False)
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def state(self, job: int) -> str:
        return self.fields(job).get("JobState", "GONE")

    def wait(self, job: int, *states: str, seconds: float = 600.0) -> dict[str, str]:
        """The job's fields once it is in one of the states."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.fields(job)
            if found.get("JobState") in states:
                return found
            time.sleep(0.5)
        raise AssertionError(f"job {job} is {found.get('JobState')} after {seconds:g} s\n{self.output(job)}")

    def output(self, job: int) -> str:
        """All that the job's scripts and ranks wrote beside its folder."""
        files = sorted(self.folder.glob(f"*-{job}.out")) + sorted(self.folder.glob(f"*-{job}_*.out"))
        files += sorted(self.folder.glob(f"*/*-{job}*/logs/*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')}" for path in files)

    def processes(self, host: str) -> list[psutil.Process]:
        """What runs on a host beside its daemons."""
        space = os.readlink(f"/proc/{self.hosts[host].holder.pid}/ns/net")
        own = {self.hosts[host].holder.pid}
        found = []
        for process in psutil.process_iter():
            try:
                there = os.readlink(f"/proc/{process.pid}/ns/net") == space and process.pid not in own
                if there and process.name() not in ("slurmd", "slurmctld", "munged"):
                    found.append(process)
            except (OSError, psutil.Error):
                continue
        return found

    # --- its parts --------------------------------------------------------------------------

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        addresses = {name: f"10.77.0.{number}" for number, name in enumerate(["head", *self.names], 1)}
        for name, address in addresses.items():
            # As Debian's installer leaves it: a node's own name stands for a loopback address.
            others = "".join(f"{addresses[other]} {other}\n" for other in addresses if other != name)
            (self.folder / f"{name}.hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n{others}")
            self.hosts[name] = self._host(name, address)
        self._network()
        self._munge()
        self._configure()
        self.daemon("head", "slurmctld", "-D")
        for name in self.names:
            self.start_node(name)
        self.until_idle()

    def _host(self, name: str, address: str) -> Host:
        ray = self.folder / name / "ray"
        ray.mkdir(parents=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        prepare = (
            f"mount --make-rprivate / && mount --bind {self.folder}/{name}.hosts /etc/hosts && "
            f"mount --bind {ray} /tmp/ray && hostname {name} && ip link set lo up && echo ready && exec sleep infinity"
        )
        holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "bash", "-c", prepare],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n", f"no namespace for {name}"
        return Host(name, address, self.folder, holder)

    def _network(self) -> None:
        """A switch in the head's namespace, and a cable from every node to it."""
        head = self.hosts["head"]
        self.run("ip", "link", "add", "switch", "type", "bridge")
        self.run("ip", "addr", "add", f"{head.address}/24", "dev", "switch")
        self.run("ip", "link", "set", "switch", "up")
        for name in self.names:
            node = self.hosts[name]
            there, ours = str(node.holder.pid), f"to-{name}"
            self.run("ip", "link", "add", ours, "type", "veth", "peer", "name", "eth0", "netns", there)
            self.run("ip", "link", "set", ours, "master", "switch", "up")
            self.run("ip", "addr", "add", f"{node.address}/24", "dev", "eth0", host=name)
            self.run("ip", "link", "set", "eth0", "up", host=name)

    def _munge(self) -> None:
        folder = self.folder / "munge"
        folder.mkdir(mode=0o755)
        key = folder / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        flags = [f"--{flag}={folder / name}" for flag, name in files.items()]
        self.daemon("head", "munged", "--foreground", "--force", f"--key-file={key}", *flags)

    def _configure(self) -> None:
        for name in ("head", *self.names):
            (self.folder / name / "spool").mkdir(parents=True)
        (self.folder / "state").mkdir()
        devices = " ".join(self.names)
        nodes = ",".join(self.names)
        cores = os.cpu_count() or 1
        (self.folder / "gres.conf").write_text(f"Name=gpu Type=declared File=/dev/tty[0-{GPUS - 1}]\n")
        # A job that was put back waits until its credential has expired.
        (self.folder / "slurm.conf").write_text(
            f"""# {devices}
ClusterName=declared
SlurmctldHost=head(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge/socket,cred_expire=20
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SlurmdTimeout=20
MinJobAge=3600
BatchStartTimeout=20
JobRequeue=1
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
JobCompType=jobcomp/filetxt
JobCompLoc={self.folder}/jobs.txt
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/%n/spool
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/%n/slurmd.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/%n/slurmd.log
GresTypes=gpu
NodeName={nodes} CPUs={max(32, cores)} RealMemory={MEMORY_MB} Gres=gpu:declared:{GPUS} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
        )

    def daemon(self, host: str, *words: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{host}-{words[0]}.log").open("ab")
        started = subprocess.Popen(
            self.hosts[host].command(*words),
            env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        self.hosts[host].daemons.append(started)
        return started

    def start_node(self, name: str) -> None:
        self.daemon(name, "slurmd", "-D", "-N", name)

    @contextmanager
    def without(self, name: str, *, power: bool = True) -> Iterator[None]:
        """The node is lost, and there again afterwards: its daemon, and with its power all that it had started."""
        for process in self.processes(name) if power else []:
            process.kill()
        for daemon in self.hosts[name].daemons:
            daemon.kill()
        try:
            yield
        finally:
            self.start_node(name)
            self.until_idle()

    def until_idle(self) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if self.run("sinfo", "-h", "-o", "%t %D", check=False).split() == ["idle", str(len(self.names))]:
                return
            time.sleep(0.2)
        logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.rglob("*.log"))
        raise AssertionError(f"the nodes are not idle:\n{self.run('sinfo', '-N', '-l', check=False)}\n{logs}")

    def close(self) -> None:
        for host in self.hosts.values():
            for process in self.processes(host.name):
                with suppress(ProcessLookupError, psutil.NoSuchProcess):
                    process.kill()
            for daemon in [*host.daemons, host.holder]:
                with suppress(ProcessLookupError, psutil.NoSuchProcess):
                    os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()
