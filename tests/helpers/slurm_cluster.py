"""A real Slurm cluster on this machine: munge, MariaDB, slurmdbd, slurmctld and nodes with four fake GPUs each.

python -m tests.helpers.slurm_cluster    starts one and prints the environment of its clients; Ctrl-C ends it
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from jobs.slurm.scontrol import JOB, facts_of
from tests.helpers.paths import CHECKOUT
from tests.helpers.slurm_config import NODES, SEARCH_PATH, Node, changed, client_environment, write_nodes
from tests.helpers.waiting import wait_for

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "mariadb", "slurmdbd", "slurmctld", "slurmd")
PACKAGES = "slurmctld slurmd slurmdbd slurm-client munge mariadb-server-core mariadb-client-core"


def missing() -> str:
    """Why no cluster can be started on this machine; "" if one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=SEARCH_PATH) is None]
    if absent:
        return f"{', '.join(absent)} not found (apt-get install {PACKAGES})"
    return "" if os.geteuid() == 0 else "starting a Slurm cluster needs root"


class Cluster:
    """The cluster as tests use it: through Slurm's own commands and real signals.

    It has `nodes` nodes, n1, n2, …, or those listed.  `settings` and `partitions` change its slurm.conf (see
    slurm_config.changed).  With NO_ACCOUNTING there is neither a database nor slurmdbd.
    """

    def __init__(
        self,
        settings: Mapping[str, str | None] | None = None,
        partitions: Sequence[str] = (),
        nodes: int | Sequence[Node] = len(NODES),
    ) -> None:
        # A short path: that of a socket may have 107 characters.
        self.dir = Path(tempfile.mkdtemp(prefix="slurm-"))
        listed = [Node(f"n{number + 1}") for number in range(nodes)] if isinstance(nodes, int) else nodes
        self.nodes = [node.name for node in listed]
        write_nodes(self.dir, listed)
        self.environment = client_environment(self.dir)
        changes = json.dumps([settings or {}, partitions])
        self._daemons = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.slurm_daemons", str(self.dir), changes],
            cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._daemons.stdout is not None
        if self._daemons.stdout.readline() != "ready\n":
            logs = self.logs()
            self.stop()
            raise RuntimeError(f"the cluster did not start:\n{logs}")

    def stop(self) -> None:
        """Ends all processes of the cluster and of its jobs, and removes its folder."""
        self._daemons.communicate()  # closes its standard input, on which it ends
        shutil.rmtree(self.dir, ignore_errors=True)

    def call(self, *command: str, check: bool = True) -> str:
        """Runs one of Slurm's commands; returns what it prints."""
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        return facts_of(self.call(*JOB, job, check=False))

    def state(self, job: str) -> str:
        """A job's state: PENDING, RUNNING, COMPLETING, COMPLETED, …"""
        return self.job(job).get("JobState", "")

    def nodes_idle(self) -> bool:
        """Whether all nodes are idle."""
        return self.call("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split() == ["idle"] * len(self.nodes)

    def wait_until_idle(self, seconds: float = 60) -> None:
        """Waits until all nodes are idle.  Raises AssertionError with what keeps them."""
        try:
            wait_for(self.nodes_idle, "all nodes to be idle", seconds)
        except AssertionError as error:
            commands = (("sinfo", "-N", "-p", "low", "--long"), ("sinfo", "-R"), ("squeue", "-o", "%i %T %r %N %S"))
            raise AssertionError("\n".join([str(error), *(self.call(*words) for words in commands)])) from error

    def resume_drained(self) -> None:
        """Makes nodes usable that Slurm drained because a controller that was killed started a job on them twice."""
        for line in self.call("sinfo", "-h", "-N", "-p", "low", "-o", "%N|%T|%E").splitlines():
            node, state, reason = line.split("|", 2)
            if state in ("drained", "draining") and reason == "Duplicate jobid":
                self.call("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def responds(self) -> bool:
        """Whether the controller responds."""
        return "UP" in self.call("scontrol", "ping", check=False)

    def daemon(self, name: str) -> psutil.Process:
        """A running daemon: munged, mariadbd, slurmdbd, slurmctld, slurmd-n1, slurmd-n2, …"""
        return psutil.Process(int((self.dir / "run" / f"{name}.started").read_text()))

    def restart(self, name: str, hide: Path | None = None) -> None:
        """Restarts a daemon, which may have died.  It and its jobs see an empty folder in place of `hide`."""
        before = self.daemon(name).pid if self.is_alive(name) else 0
        request = self.dir / "run" / f"{name}.request"
        request.write_text(str(hide or ""))
        request.rename(request.with_suffix(".restart"))

        def restarted() -> bool:
            with suppress(psutil.NoSuchProcess):  # it may end at this moment
                return self.is_alive(name) and self.daemon(name).pid != before
            return False

        wait_for(restarted, f"{name} to restart")

    def is_alive(self, name: str) -> bool:
        """Whether a daemon runs."""
        try:
            return self.daemon(name).status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, OSError, ValueError):
            return False

    def node_processes(self, node: str) -> list[psutil.Process]:
        """All processes of a node: its slurmd, the slurmstepd of each job step, and their descendants."""
        out = [self.daemon(f"slurmd-{node}")] if self.is_alive(f"slurmd-{node}") else []
        for process in psutil.Process(self._daemons.pid).children(recursive=True):
            with suppress(psutil.Error):
                if process.environ().get("SLURMD_NODENAME") == node or f"spool/{node}" in " ".join(process.cmdline()):
                    out += [process, *process.children(recursive=True)]
                elif process.name() == "slurmstepd" and self._node_of(process) == node:
                    out.append(process)
        return list({process.pid: process for process in out}.values())

    def kill_node(self, node: str) -> None:
        """Kills all processes of a node, slurmd first."""
        for process in self.node_processes(node):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _node_of(self, stepd: psutil.Process) -> str:
        """The node of a slurmstepd, from its open log file."""
        files = " ".join(os.path.realpath(f"/proc/{stepd.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{stepd.pid}/fd"))
        return next((node for node in self.nodes if f"slurmd-{node}.log" in files or f"spool/{node}/" in files), "")

    def set_user_signal(self, on: bool) -> None:
        """Whether preempted jobs get their own signal at once (`preempt_send_user_signal`)."""
        self.configure({"SlurmctldParameters": "preempt_send_user_signal" if on else None})

    def enforce_accounts(self, on: bool, limits: bool = False) -> None:
        """Whether jobs must name an account that their user may use, and keep its limits; this one is in `vision`."""
        if on:
            self.call("sacctmgr", "-i", "add", "account", "vision", check=False)
            self.call("sacctmgr", "-i", "add", "user", "root", "account=vision", check=False)
        enforced = f"associations,qos{',limits' if limits else ''}"
        self.configure({"AccountingStorageEnforce": enforced if on else None})

    def configure(self, settings: Mapping[str, str | None], partitions: Sequence[str] = ()) -> None:
        """Changes Slurm's configuration and restarts the controller; jobs go on."""
        file = self.dir / "etc" / "slurm.conf"
        file.write_text(changed(file.read_text(), settings, partitions))
        self.restart("slurmctld")
        wait_for(self.responds, "slurmctld to respond")

    def logs(self) -> str:
        """The last lines of all daemons' logs."""
        files = sorted((self.dir / "log").glob("*.log"))
        return "\n".join(f"== {f.name}\n" + "\n".join(f.read_text().splitlines()[-8:]) for f in files)


def main() -> None:
    """Runs a cluster until Ctrl-C."""
    if why := missing():
        sys.exit(why)
    cluster = Cluster()
    print("\n".join(f"export {name}={cluster.environment[name]}" for name in ("SLURM_CONF", "PATH")))
    with suppress(KeyboardInterrupt):
        signal.pause()
    cluster.stop()


if __name__ == "__main__":
    main()
