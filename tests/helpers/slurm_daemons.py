"""The process above all daemons of the test cluster: starts, restarts and ends them.

python -m tests.helpers.slurm_daemons FOLDER CHANGES    runs until its standard input is closed

CHANGES is a JSON list: settings of slurm.conf, and partitions (see slurm_config.changed).

All processes that Slurm ever starts stay below this one, which is a subreaper.  When it ends, or the process that
started it does, in whatever way, it kills exactly its own descendants.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.helpers.slurm_config import client_environment, has_accounting, nodes_in, write_config
from tests.helpers.waiting import wait_for


class Daemons:
    """munge, MariaDB, slurmdbd, slurmctld and a slurmd for each node."""

    def __init__(self, folder: Path) -> None:
        self.dir, nodes = folder, nodes_in(folder)
        self.nodes = [node.name for node in nodes]
        # Two databases that are created at the same time would collide in /tmp.
        self.environment = os.environ | client_environment(folder) | {"TMPDIR": str(folder / "tmp")}
        run, log = folder / "run", folder / "log"
        munge = ["--key-file", f"{folder}/etc/munge.key", "--socket", f"{run}/munge.sock"]
        munge += ["--pid-file", f"{run}/munged.pid", "--log-file", f"{log}/munged.log"]
        database = ["--user=root", f"--datadir={folder}/db", f"--socket={run}/mysql.sock", "--skip-networking"]
        small = ["--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0", "--innodb-log-file-size=8M"]
        # slurmdbd deletes rows that another of its transactions changed, which newer MariaDBs refuse by default.
        small += ["--loose-innodb-snapshot-isolation=OFF"]
        self.commands = {
            "munged": ["munged", "--foreground", "--force", *munge, f"--seed-file={folder}/state/munge.seed"],
            "mariadbd": ["mariadbd", "--no-defaults", *database, *small, f"--pid-file={run}/mariadb.pid"],
            "slurmdbd": ["slurmdbd", "-D"],
            "slurmctld": ["slurmctld", "-D"],
            **{f"slurmd-{node.name}": [*node.prefix, "slurmd", "-D", "-N", node.name] for node in nodes},
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, settings: Mapping[str, str | None], partitions: Sequence[str]) -> None:
        """Starts all daemons, each as soon as those that it needs respond."""
        write_config(self.dir, settings, partitions)
        self.launch("munged")
        wait_for((self.dir / "run/munge.sock").exists, "munge to respond")
        if has_accounting(self.dir):
            self.start_accounting()
        # Newer versions do not start without the state that they save at their end, as when a test kills the first one.
        self.launch("slurmctld", more=["-i"])
        wait_for(lambda: self.succeeds("scontrol", "ping"), "slurmctld to respond")
        self.end("slurmctld")
        self.launch("slurmctld")
        for node in self.nodes:
            self.launch(f"slurmd-{node}")
        sinfo = f"test $(sinfo -h -N -p low -o %T | grep -c idle) = {len(self.nodes)}"
        wait_for(lambda: self.succeeds("sh", "-c", sinfo), "the nodes to respond")

    def start_accounting(self) -> None:
        """Starts MariaDB with a new database, and slurmdbd."""
        install = ["--no-defaults", "--user=root", f"--datadir={self.dir}/db", "--skip-test-db"]
        with (self.dir / "log" / "install.log").open("w") as log:
            subprocess.run(
                ["mariadb-install-db", *install, "--auth-root-authentication-method=socket"],
                env=self.environment, stdout=log, stderr=log, check=True,
            )  # fmt: skip
        self.launch("mariadbd")
        wait_for((self.dir / "run/mysql.sock").exists, "MariaDB to respond")
        wait_for((self.dir / "run/munge.sock").exists, "munge to respond")
        # The slurmdbd of newer versions does not create it.
        create = ("mariadb", "--no-defaults", "--user=root", f"--socket={self.dir}/run/mysql.sock", "--execute")
        wait_for(lambda: self.succeeds(*create, "CREATE DATABASE IF NOT EXISTS slurm_acct"), "the accounting database")
        self.launch("slurmdbd")
        wait_for(lambda: self.succeeds("sacctmgr", "-n", "show", "cluster"), "slurmdbd to respond")
        self.succeeds("sacctmgr", "-i", "add", "cluster", "test")

    def succeeds(self, *command: str) -> bool:
        """Whether a client's command succeeds."""
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, env=self.environment, capture_output=True, timeout=10, check=False)
            return done.returncode == 0
        return False

    def launch(self, name: str, hidden: str = "", more: Sequence[str] = ()) -> None:
        """Starts a daemon, and writes its process id to a file; it sees an empty folder in place of `hidden`."""
        hide = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs {hidden} && exec "$@"', "sh"]
        command = [*(hide if hidden else []), *self.commands[name], *more]
        with (self.dir / "log" / f"{name}.out.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        (self.dir / "run" / f"{name}.started").write_text(str(self.running[name].pid))

    def end(self, name: str) -> None:
        """Ends a daemon."""
        process = self.running.pop(name)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def serve_restarts(self) -> None:
        """Restarts daemons on request (a file NAME.restart), until standard input is closed."""
        os.set_blocking(0, False)
        while True:
            with suppress(BlockingIOError):
                if not os.read(0, 1):
                    return
            for name in self.commands:
                request = self.dir / "run" / f"{name}.restart"
                if request.exists():
                    self.end(name)
                    self.launch(name, request.read_text())
                    request.unlink()
            while reap_orphan():
                pass
            time.sleep(0.05)

    def end_all(self) -> None:
        """Ends the daemons, which may want to write something, then kills all other descendants."""
        for name in reversed(list(self.running)):
            self.running[name].send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 3
        while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline + 5:
            if time.monotonic() > deadline or not any(p.poll() is None for p in self.running.values()):
                for process in left:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            while reap_orphan():
                pass
            time.sleep(0.02)


def reap_orphan() -> bool:
    """Reaps one zombie; False if there is none.  Popen copes with children that were reaped here."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def main(folder: Path, settings: Mapping[str, str | None], partitions: Sequence[str]) -> None:
    """Runs the daemons of a cluster in an empty folder; prints `ready` once all of them respond."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # ends when its standard input is closed
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    daemons = Daemons(folder)
    try:
        daemons.start(settings, partitions)
        print("ready", flush=True)
        daemons.serve_restarts()
    finally:
        daemons.end_all()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *json.loads(sys.argv[2]))
