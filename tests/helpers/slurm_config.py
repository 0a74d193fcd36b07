"""Configuration files of the test cluster: two nodes or more with four fake GPUs each, and accounting."""

import json
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.ports import free_ports

NODES, GPUS, CPUS = ("n1", "n2"), 4, 16
CREDENTIAL_SECONDS = 5  # a requeued job cannot start before its old credential has expired; Slurm's default is 120
KILL_WAIT_SECONDS = 10  # between SIGTERM and SIGKILL
# Settings of a cluster without a database.  Newer versions know no accounting_storage/none: they want no line.
NO_ACCOUNTING = {"AccountingStorageType": None, "AccountingStorageTRES": None}
SEARCH_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

SLURM_CONF = """\
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
SlurmctldParameters=preempt_send_user_signal
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
MpiDefault=none
SwitchType=switch/none
{nodes}
PartitionName=low Nodes={all} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 MaxTime=INFINITE State=UP
PartitionName=hasty Nodes={all} PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 MaxTime=INFINITE State=UP
PartitionName=short Nodes={all} PriorityTier=1 MaxTime=30 State=UP
PartitionName=high Nodes={all} PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
NODE_LINE = "NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs={cpus} Sockets=1 \
CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=20000 Gres=gpu:{gpus} State=UNKNOWN"
SLURMDBD_CONF = """\
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


def client_environment(folder: Path) -> dict[str, str]:
    """The environment variables with which Slurm's commands reach the cluster."""
    return {
        "SLURM_CONF": str(folder / "etc/slurm.conf"),
        "MYSQL_UNIX_PORT": str(folder / "run/mysql.sock"),
        "PATH": SEARCH_PATH,
    }


@dataclass(frozen=True)
class Node:
    """A node of the cluster."""

    name: str
    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()  # a command that starts its slurmd elsewhere: in a network of its own


def nodes_in(folder: Path) -> list[Node]:
    """The nodes of the cluster in a folder."""
    return [Node(name, address, tuple(prefix)) for name, address, prefix in json.loads((folder / "nodes").read_text())]


def write_nodes(folder: Path, nodes: Sequence[Node]) -> None:
    """Says which nodes the cluster in a folder is to have."""
    (folder / "nodes").write_text(json.dumps([[node.name, node.address, node.prefix] for node in nodes]))


def changed(text: str, settings: Mapping[str, str | None], partitions: Sequence[str] = ()) -> str:
    """A slurm.conf with other settings: `{"KillWait": "5"}`; None removes a line.

    `partitions` are lines without the word `PartitionName=`: each is added, or replaces the partition of its name.
    """
    names = {f"PartitionName={line.split()[0]}": f"PartitionName={line}" for line in partitions}
    replaced = {*settings, *names}
    lines = [line for line in text.splitlines() if line.split(" ")[0] not in names]
    lines = [line for line in lines if line.partition("=")[0] not in replaced]
    lines += [f"{name}={value}" for name, value in settings.items() if value is not None]
    return "\n".join([*lines, *names.values()]) + "\n"


def has_accounting(folder: Path) -> bool:
    """Whether the cluster of a folder stores its jobs in a database."""
    return "AccountingStorageType=accounting_storage/slurmdbd\n" in (folder / "etc" / "slurm.conf").read_text()


def write_config(folder: Path, settings: Mapping[str, str | None], partitions: Sequence[str]) -> None:
    """Creates the cluster's folders and writes all configuration files, with free ports."""
    nodes = nodes_in(folder)
    names = [node.name for node in nodes]
    for name in ("etc", "log", "run", "state", "db", "tmp", *(f"spool/{node}" for node in names)):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    ports = free_ports(2 + len(names))
    host = socket.gethostname().partition(".")[0]
    lines = [
        NODE_LINE.format(name=node.name, address=node.address, host=host, port=port, cpus=CPUS, gpus=GPUS)
        for node, port in zip(nodes, ports[2:], strict=True)
    ]
    values = {
        "dir": folder, "host": host, "ports": ports, "nodes": "\n".join(lines), "expire": CREDENTIAL_SECONDS,
        "kill_wait": KILL_WAIT_SECONDS, "all": ",".join(names),
    }  # fmt: skip
    etc = folder / "etc"
    (etc / "slurm.conf").write_text(changed(SLURM_CONF.format(**values), settings, partitions))
    (etc / "slurmdbd.conf").write_text(SLURMDBD_CONF.format(**values))
    (etc / "slurmdbd.conf").chmod(0o600)
    (etc / "gres.conf").write_text("".join(_gres_line(folder, node) for node in names))
    (etc / "munge.key").write_bytes(os.urandom(1024))
    (etc / "munge.key").chmod(0o400)


def _gres_line(folder: Path, node: str) -> str:
    """A line of gres.conf.  Slurm sets CUDA_VISIBLE_DEVICES only for device files; these are copies of /dev/null."""
    for i in range(GPUS):
        os.mknod(folder / "run" / f"{node}-gpu{i}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    return f"NodeName={node} Name=gpu File={folder}/run/{node}-gpu[0-{GPUS - 1}]\n"
