"""A real Slurm cluster on this machine: munge, MariaDB, slurmdbd, slurmctld and two nodes of four pretend GPUs.

python -m tests.helpers.slurm_cluster    starts one and prints the environment of its clients; Ctrl-C ends it

One process keeps the cluster, and all that Slurm ever starts stays below it (it is a subreaper): when it ends, or the
process that asked for it does, however that dies, it takes exactly its own processes along.
"""

import ctypes
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.helpers.paths import ROOT

NODES, GPUS, CPUS = ("n1", "n2"), 4, 16
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd")
PACKAGES = "slurmctld slurmd slurmdbd slurm-client munge mariadb-server-core mariadb-client-core"
CREDENTIAL_SECONDS = 5  # before that a requeued job may not start; 120 where nobody sets it
KILL_WAIT_SECONDS = 10  # between TERM and KILL
SEARCH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/run/munge.sock,cred_expire={expire}
CredType=cred/munge
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/slurmd-%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,default_queue_depth=100,\
max_rpc_cnt=0,requeue_delay=1
CommunicationParameters=NoInAddrAny
{extra}
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait={kill_wait}
UnkillableStepTimeout=300
MinJobAge=300
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=15
ReturnToService=2
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={ports[1]}
AccountingStoragePass={dir}/run/munge.sock
AccountingStorageTRES=gres/gpu
AccountingStorageUser=root
MpiDefault=none
SwitchType=switch/none
{nodes}
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 MaxTime=INFINITE State=UP
PartitionName=hasty Nodes=n[1-2] PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 MaxTime=INFINITE State=UP
PartitionName=short Nodes=n[1-2] PriorityTier=1 MaxTime=30 State=UP
PartitionName=high Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Sockets=1 CoresPerSocket={cpus} \
ThreadsPerCore=1 RealMemory=20000 Gres=gpu:{gpus} State=UNKNOWN"
DATABASE_CONFIG = """\
DbdHost=localhost
DbdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/run/munge.sock,cred_expire={expire}
PidFile={dir}/run/slurmdbd.pid
LogFile={dir}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct
"""


def missing() -> str:
    """Why there can be no cluster on this machine; else nothing."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
    if absent:
        return f"no {', '.join(absent)} here (apt-get install {PACKAGES})"
    return "" if os.geteuid() == 0 else "a cluster of its own can be started by root only"


class Cluster:
    """The cluster as a test sees it.  Everything it does is done by Slurm's own commands and real signals."""

    def __init__(self) -> None:
        # Short: the path of a socket may have 107 characters.
        self.dir = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.environment = {
            "SLURM_CONF": str(self.dir / "etc/slurm.conf"),
            "MYSQL_UNIX_PORT": str(self.dir / "run/mysql.sock"),
            "PATH": SEARCH,
        }
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.slurm_cluster", str(self.dir)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != "ready\n":
            logs = self.logs()
            self.stop()
            raise RuntimeError(f"the cluster did not start:\n{logs}")

    def stop(self) -> None:
        """Ends every process of the cluster and of its jobs, and removes its folder."""
        self._keeper.communicate()  # its stdin is closed, and it knows
        shutil.rmtree(self.dir, ignore_errors=True)

    def call(self, *command: str, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of a job, by its names."""
        words = self.call("scontrol", "--oneliner", "show", "job", job, check=False).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: str) -> str:
        """A job's state: PENDING, RUNNING, COMPLETING, COMPLETED, …"""
        return self.job(job).get("JobState", "")

    def nodes_idle(self) -> bool:
        """Whether every node is free."""
        return self.call("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split() == ["idle"] * len(NODES)

    def daemon(self, name: str) -> psutil.Process:
        """A running daemon: munged, mariadbd, slurmdbd, slurmctld, slurmd-n1 or slurmd-n2."""
        return psutil.Process(int((self.dir / "run" / f"{name}.started").read_text()))

    def restart(self, name: str, blind_to: Path | None = None) -> None:
        """Ends a daemon if it still runs, and starts it again; then it and its jobs see an empty folder there."""
        before = self.daemon(name).pid if self.alive(name) else 0
        asked = self.dir / "run" / f"{name}.asked"
        asked.write_text(str(blind_to or ""))
        asked.rename(asked.with_suffix(".restart"))

        def again() -> bool:
            with suppress(psutil.NoSuchProcess):  # it ends just now
                return self.alive(name) and self.daemon(name).pid != before
            return False

        wait_for(again, f"{name} was not started again")

    def alive(self, name: str) -> bool:
        """Whether a daemon runs."""
        try:
            return self.daemon(name).status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, OSError, ValueError):
            return False

    def of_node(self, node: str) -> list[psutil.Process]:
        """All that a node runs: its slurmd, the keepers of its job steps and their processes."""
        out = [self.daemon(f"slurmd-{node}")] if self.alive(f"slurmd-{node}") else []
        for process in psutil.Process(self._keeper.pid).children(recursive=True):
            with suppress(psutil.Error):
                if process.environ().get("SLURMD_NODENAME") == node or f"spool/{node}" in " ".join(process.cmdline()):
                    out += [process, *process.children(recursive=True)]
                elif process.name() == "slurmstepd" and self._node_of(process) == node:
                    out.append(process)
        return list({process.pid: process for process in out}.values())

    def _node_of(self, stepd: psutil.Process) -> str:
        """The node of a step's keeper, which its open log tells."""
        files = " ".join(os.path.realpath(f"/proc/{stepd.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{stepd.pid}/fd"))
        return next((node for node in NODES if f"slurmd-{node}.log" in files or f"spool/{node}/" in files), "")

    def user_signal(self, on: bool) -> None:
        """Whether preempted jobs get their own signal at once (`preempt_send_user_signal`)."""
        self._set("SlurmctldParameters=preempt_send_user_signal", on)

    def enforce_accounts(self, on: bool) -> None:
        """Whether jobs must name an account that they have a right to; the user of this process has `vision`."""
        if on:
            self.call("sacctmgr", "-i", "add", "account", "vision", check=False)
            self.call("sacctmgr", "-i", "add", "user", "root", "account=vision", check=False)
        self._set("AccountingStorageEnforce=associations,qos", on)

    def _set(self, line: str, on: bool) -> None:
        """Adds a line to Slurm's configuration, or takes it out."""
        file = self.dir / "etc" / "slurm.conf"
        lines = [other for other in file.read_text().splitlines() if other != line]
        file.write_text("\n".join([line, *lines] if on else lines) + "\n")
        self.restart("slurmctld")
        wait_for(lambda: "UP" in self.call("scontrol", "ping", check=False), "slurmctld does not answer")

    def logs(self) -> str:
        """The last lines of all daemons' logs."""
        files = sorted((self.dir / "log").glob("*.log"))
        return "\n".join(f"== {f.name}\n" + "\n".join(f.read_text().splitlines()[-8:]) for f in files)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Waits until something is so.  Raises AssertionError with `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} ({seconds} s)"
        time.sleep(0.05)


class Keeper:
    """Starts the daemons, starts them again when asked to, and ends all that is below it."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "etc/slurm.conf"),
            "MYSQL_UNIX_PORT": str(folder / "run/mysql.sock"),
            "PATH": SEARCH,
            "TMPDIR": str(folder / "tmp"),  # two databases that are made at a time meet in /tmp
        }
        run, log = folder / "run", folder / "log"
        munge = ["--key-file", f"{folder}/etc/munge.key", "--socket", f"{run}/munge.sock"]
        munge += ["--pid-file", f"{run}/munged.pid", "--log-file", f"{log}/munged.log"]
        database = ["--user=root", f"--datadir={folder}/db", f"--socket={run}/mysql.sock", "--skip-networking"]
        small = ["--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0", "--innodb-log-file-size=8M"]
        self.commands = {
            "munged": ["munged", "--foreground", "--force", *munge, f"--seed-file={folder}/state/munge.seed"],
            "mariadbd": ["mariadbd", "--no-defaults", *database, *small, f"--pid-file={run}/mariadb.pid"],
            "slurmdbd": ["slurmdbd", "-D"],
            "slurmctld": ["slurmctld", "-D"],
            **{f"slurmd-{node}": ["slurmd", "-D", "-N", node] for node in NODES},
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def write_config(self) -> None:
        """All files, with ports that nobody has."""
        for name in ("etc", "log", "run", "state", "db", "tmp", *(f"spool/{node}" for node in NODES)):
            (self.dir / name).mkdir(parents=True)
        self.dir.chmod(0o755)
        ports = free_ports(2 + len(NODES))
        host = socket.gethostname().partition(".")[0]
        nodes = [
            NODE.format(name=name, host=host, port=port, cpus=CPUS, gpus=GPUS)
            for name, port in zip(NODES, ports[2:], strict=True)
        ]
        values = {
            "dir": self.dir, "host": host, "ports": ports, "nodes": "\n".join(nodes), "expire": CREDENTIAL_SECONDS,
            "kill_wait": KILL_WAIT_SECONDS, "extra": "SlurmctldParameters=preempt_send_user_signal",
        }  # fmt: skip
        etc = self.dir / "etc"
        (etc / "slurm.conf").write_text(CONFIG.format(**values))
        (etc / "slurmdbd.conf").write_text(DATABASE_CONFIG.format(**values))
        (etc / "slurmdbd.conf").chmod(0o600)
        lines = []
        for node in NODES:
            for i in range(GPUS):  # Slurm sets CUDA_VISIBLE_DEVICES for devices only; these are like /dev/null
                os.mknod(self.dir / "run" / f"{node}-gpu{i}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
            lines.append(f"NodeName={node} Name=gpu File={self.dir}/run/{node}-gpu[0-{GPUS - 1}]\n")
        (etc / "gres.conf").write_text("".join(lines))
        (etc / "munge.key").write_bytes(os.urandom(1024))
        (etc / "munge.key").chmod(0o400)

    def start(self) -> None:
        """Everything, each as soon as what it needs answers."""
        self.write_config()
        self.launch("munged")
        install = ["--no-defaults", "--user=root", f"--datadir={self.dir}/db", "--skip-test-db"]
        with (self.dir / "log" / "install.log").open("w") as log:
            subprocess.run(
                ["mariadb-install-db", *install, "--auth-root-authentication-method=socket"],
                env=self.environment, stdout=log, stderr=log, check=True,
            )  # fmt: skip
        self.launch("mariadbd")
        wait_for((self.dir / "run/mysql.sock").exists, "MariaDB does not answer")
        wait_for((self.dir / "run/munge.sock").exists, "munge does not answer")
        self.launch("slurmdbd")
        wait_for(lambda: self.answers("sacctmgr", "-n", "show", "cluster"), "slurmdbd does not answer")
        self.answers("sacctmgr", "-i", "add", "cluster", "test")
        self.launch("slurmctld")
        for node in NODES:
            self.launch(f"slurmd-{node}")
        sinfo = "test $(sinfo -h -N -p low -o %T | grep -c idle) = 2"
        wait_for(lambda: self.answers("sh", "-c", sinfo), "the nodes do not answer")

    def answers(self, *command: str) -> bool:
        """Whether a client's command succeeds."""
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, env=self.environment, capture_output=True, timeout=10, check=False)
            return done.returncode == 0
        return False

    def launch(self, name: str, blind_to: str = "") -> None:
        """Starts a daemon, in a name space of its own if it is not to see a folder; its number stands in a file."""
        blind = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs {blind_to} && exec "$@"', "sh"]
        command = [*(blind if blind_to else []), *self.commands[name]]
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
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def keep(self) -> None:
        """Starts again what it is asked to, until whoever started us closes our stdin or is gone."""
        os.set_blocking(0, False)
        while True:
            with suppress(BlockingIOError):
                if not os.read(0, 1):
                    return
            for name in self.commands:
                asked = self.dir / "run" / f"{name}.restart"
                if asked.exists():
                    self.end(name)
                    self.launch(name, asked.read_text())
                    asked.unlink()
            while reap():
                pass
            time.sleep(0.05)

    def end_all(self) -> None:
        """The daemons first, which may want to write something, then whatever is left below us."""
        for name in reversed(list(self.running)):
            self.running[name].send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 3
        while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline + 5:
            if time.monotonic() > deadline or not any(p.poll() is None for p in self.running.values()):
                for process in left:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            while reap():
                pass
            time.sleep(0.02)


def reap() -> bool:
    """Takes leave of one orphan that ended; False if there is none.  Popen copes with children that are gone."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, below those that the kernel gives to outgoing connections."""
    out: list[int] = []
    start = 10_000 + int.from_bytes(os.urandom(2), "big") % 20_000
    for port in range(start, start + 2000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        out.append(port)
        if len(out) == count:
            return out
    raise RuntimeError("no free ports")


def main() -> None:
    """Keeps a cluster in the folder that is named, or one for a person."""
    if len(sys.argv) == 1:
        if why := missing():
            sys.exit(why)
        cluster = Cluster()
        print("\n".join(f"export {name}={cluster.environment[name]}" for name in ("SLURM_CONF", "PATH")))
        with suppress(KeyboardInterrupt):
            signal.pause()
        cluster.stop()
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # our stdin tells when it is over
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    keeper = Keeper(Path(sys.argv[1]))
    try:
        keeper.start()
        print("ready", flush=True)
        keeper.keep()
    finally:
        keeper.end_all()


if __name__ == "__main__":
    main()
