"""Records what the commands of the installed Slurm print, for the tests of its parsers.

python -m tests.jobs.slurm.record          writes tests/jobs/slurm/outputs/VERSION.txt; takes four minutes, needs root
python -m tests.jobs.slurm.record 26.05    the same in the chroot of another version (tests.slurm_versions)
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from jobs.readiness.account_limits import ASSOCIATION, QOS
from jobs.slurm import scontrol, tables
from tests.helpers.slurm_cluster import Cluster, missing
from tests.helpers.waiting import wait_for
from tests.jobs.slurm.recorder import Recorder, text_of
from tests.jobs.slurm.recording import write
from tests.slurm_versions.__main__ import FOLDER
from tests.slurm_versions.chroots import RELEASES, build, inside

ODD_NAME = "x JobState=FAILED Restarts=7 a|b"  # of a job: must not be taken for its fields
# Settings that the code reads, and those that explain differences.
SETTINGS = re.compile(
    r"^(AccountingStorage(Enforce|Type)|AuthInfo|ClusterName|JobRequeue|KillWait|MaxArraySize|MinJobAge|Preempt\w+|"
    r"SLURM_VERSION|SlurmctldParameters|TaskPlugin|ProctrackType) "
)
VARIABLES = re.compile(
    r"^(SLURM_(ARRAY_\w+|CPUS_\w+|GPUS_\w+|JOB_\w+|LAUNCH_NODE_IPADDR|NODEID|PROCID|RESTART_COUNT|TRES\w*)|SRUN_\w+|"
    r"SLURMD_NODENAME|CUDA_VISIBLE_DEVICES)="
)


def main() -> None:
    """Starts a cluster and records; for the versions on the command line, in a chroot of each."""
    if len(sys.argv) > 1:
        for release in [release for release in RELEASES if release.slurm in sys.argv[1:]]:
            command = [sys.executable, "-m", "tests.jobs.slurm.record"]
            subprocess.run([*inside(build(release, FOLDER), FOLDER), *command], check=True)
        return
    if why := missing():
        sys.exit(why)
    cluster = Cluster()
    try:
        recorder, begun = Recorder(cluster), time.monotonic()
        version = cluster.call("scontrol", "--version").split()[1]
        for part in (settings, pending, running, arrays, refusals, ends, preemption, nodes, controller_down):
            cluster.call("scancel", "--user", "root", check=False)
            cluster.wait_until_idle(120)
            print(f"{time.monotonic() - begun:.0f} s: {part.__name__}", flush=True)
            part(recorder)
    finally:
        print(write(".".join(version.split(".")[:2]), recorder.outputs))
        cluster.stop()


def settings(r: Recorder) -> None:
    """The cluster as a whole."""
    r.record("version", "scontrol", "--version")
    r.record("ping", "scontrol", "ping")
    r.record("config", *scontrol.CONFIG, only=SETTINGS)
    r.record("partitions", *scontrol.PARTITIONS)
    r.record("partition_nodes", *tables.PARTITION_NODES)
    r.record("hostnames", "scontrol", "show", "hostnames", "n[1-2],m3")
    r.record("qos", *tables.accounting("qos", QOS, []))
    r.cluster.enforce_accounts(True)
    r.record("associations", *tables.accounting("associations", ASSOCIATION, ["where", "user=root"]))
    r.record("default_account", *tables.accounting("user", ["DefaultAccount"], ["where", "name=root"]))
    for option in ("account", "qos", "reservation", "constraint", "partition", "gres"):
        r.record(f"refused.{option}", "sbatch", f"--{option}=absent", "--wrap", "true")
    r.cluster.enforce_accounts(False)


def pending(r: Recorder) -> None:
    """Jobs that wait, for different reasons."""
    first = r.submit("sleep 60", "--exclusive", "--nodes=2")
    r.wait(first, "RUNNING")
    submitted = r.record("submitted", "sbatch", "--job-name=priority", "--exclusive", "--nodes=2", "--wrap", "true")
    r.record("parsable", "sbatch", "--parsable", "--hold", "--wrap", "true")
    r.record("test_only", "sbatch", "--test-only", "--nodes=1", "--wrap", "true", SLURM_TIME_FORMAT="standard")
    odd = ("--job-name", ODD_NAME, "--comment", "c JobState=RUNNING Reason=None")
    for name, options in {
        "held": ("--hold", *odd),
        "deferred": ("--begin=now+3600",),
        "dependent": (f"--dependency=afterok:{first}",),
        "busy": ("--nodes=2", "--gpus-per-node=4"),
    }.items():
        job = r.submit("sleep 60", *options)
        r.wait_for_reason(job)
        r.job(f"pending.{name}", job)
        if name == "held":
            r.record("release", "scontrol", "release", job)
    r.record("scripts", *tables.scripts(0))
    assert "job" in submitted.stdout


def running(r: Recorder) -> None:
    """Jobs that run: with GPUs, an odd name, excluded nodes; stopped and suspended ones; their variables."""
    odd = ("--job-name", ODD_NAME, "--comment", "c JobState=PENDING Restarts=9")
    script = "srun --cpus-per-task 2 env > env.out; sleep 60"
    job = r.submit(
        script, "--gpus-per-node=2", "--cpus-per-task=2", "--exclude=n2", "--time=60", f"--chdir={r.folder}", *odd
    )
    r.wait(job, "RUNNING")
    r.job("running", job)
    wait_for(lambda: "SLURMD_NODENAME" in text_of(r.folder / "env.out"), "the variables")
    r.record("environment", "sort", "env.out", only=VARIABLES)
    step = "srun sh -c 'scontrol --oneliner show step $SLURM_JOB_ID.$SLURM_STEP_ID' > step.out"
    script = f"srun env > env2.out; env > env3.out; {step}"
    plain = r.submit(script, "--gres=gpu:1", "--cpus-per-task=3", "--ntasks-per-node=1", f"--chdir={r.folder}")
    r.wait(plain, "COMPLETED")
    r.record("environment.srun_without_cpus", "sort", "env2.out", only=VARIABLES)
    r.record("environment.batch", "sort", "env3.out", only=VARIABLES)
    r.record("step.srun_without_cpus", "cat", "step.out")
    r.job("completed", plain)
    r.record("node_states", *tables.states("low"))
    r.cluster.call("scontrol", "suspend", job)
    r.wait(job, "SUSPENDED")
    r.job("suspended", job)
    r.cluster.call("scontrol", "resume", job)
    r.cluster.call("scancel", "--signal=STOP", job)
    with suppress(AssertionError):
        wait_for(lambda: r.show(job, "%T") != "RUNNING", "a stopped job", 3)
    r.job("stopped", job)
    r.cluster.call("scancel", "--signal=CONT", job)


def arrays(r: Recorder) -> None:
    """Tasks of an array."""
    array = r.submit("sleep 60", "--array=0-3%1", "--job-name", ODD_NAME)
    r.wait(f"{array}_0", "RUNNING")
    r.job("array.running", f"{array}_0")
    r.job("array.pending", f"{array}_2")
    r.job("array.all", array)
    r.record("array.absent", *scontrol.JOB, f"{array}_9")
    r.cluster.call("scontrol", "requeue", f"{array}_0")
    wait_for(lambda: r.cluster.job(f"{array}_0").get("Restarts") == "1", "a requeue")
    r.wait(f"{array}_0", "PENDING")
    r.job("array.requeued", f"{array}_0")


def refusals(r: Recorder) -> None:
    """What Slurm says to requests that it does not grant."""
    r.record("unknown", *scontrol.JOB, "999999")
    r.record("unknown.queue", *tables.queue(["999999"]))
    r.record("unknown.queue.several", *tables.queue(["999999", "999998_3"]))
    r.record("unknown.requeue", "scontrol", "requeue", "999999")
    r.record("unknown.cancel", "scancel", "999999")
    r.record("unknown.update", "scontrol", "update", "JobId=999999", "StartTime=now+60")
    r.record("unknown.release", "scontrol", "release", "999999")
    once = r.submit("sleep 60", "--no-requeue")
    r.wait(once, "RUNNING")
    r.record("refused.requeue", "scontrol", "requeue", once)
    r.record("refused.exclude", "scontrol", "update", f"JobId={once}", "ExcNodeList=n2")
    nobody = ("setpriv", "--reuid=nobody", "--clear-groups")
    r.record("refused.access", *nobody, "scontrol", "requeue", once)
    r.record("refused.access.cancel", *nobody, "scancel", once)
    r.record("refused.nodes", "sbatch", "--nodes=9", "--wrap", "true")
    r.record("refused.time", "sbatch", "--partition=short", "--time=60", "--wrap", "true")
    r.record("refused.option", "sbatch", "--no-such-option", "--wrap", "true")
    waiting = r.submit("sleep 60", "--begin=now+3600")
    r.record("requeue.pending", "scontrol", "requeue", waiting)


def ends(r: Recorder) -> None:
    """Jobs that end, in all ways, and what becomes of one that has ended and is requeued."""
    limited, since_limited = r.probe("--time=1"), time.time()
    for name, script in {"done": "true", "failed": "exit 3"}.items():
        job = r.submit(script)
        r.wait(job, "COMPLETED", "FAILED")
        r.job(f"ended.{name}", job)
        r.record(f"ended.{name}.accounting", *tables.final_state(job))
        r.record(f"ended.{name}.requeue", "scontrol", "requeue", job)
        with suppress(AssertionError):
            wait_for(lambda job=job: r.cluster.job(job).get("Restarts") != "0", "a restart", 3)  # type: ignore[misc]
        r.job(f"ended.{name}.requeued", job)
        r.cluster.call("scancel", job, check=False)
    for name, end in {"canceled": ("scancel",), "requeued": ("scontrol", "requeue")}.items():
        job = r.probe()
        since = time.time()
        r.cluster.call(*end, job)
        r.wait(job, "COMPLETING")
        r.job(f"{name}.completing", job)
        r.wait(job, "CANCELLED", "PENDING")
        r.signals(f"{name}.signals", job, since, " ".join(end))
        r.job(name, job)
        wait_for(lambda job=job: _accounting(r, job) not in {"RUNNING", ""}, "the accounting")  # type: ignore[misc]
        r.record(f"{name}.accounting", *tables.final_state(job))
        r.record(f"{name}.requeue", "scontrol", "requeue", job)
        r.cluster.call("scancel", job, check=False)
    r.wait(limited, "COMPLETING")
    r.job("timeout.completing", limited)
    r.wait(limited, "TIMEOUT")
    r.signals("timeout.signals", limited, since_limited, "--time=1 --signal=USR2@60")
    r.job("timeout", limited)


def _accounting(r: Recorder, job: str) -> str:
    return r.cluster.call(*tables.final_state(job))


def preemption(r: Recorder) -> None:
    """A job that is preempted: in its grace time, when Slurm ends it, in the queue again."""
    job, since = r.probe("--requeue", "--exclusive", "--nodes=2", "--gpus-per-node=1"), time.time()
    other = r.submit("sleep 60", "--partition=high", "--exclusive", "--nodes=2")
    wait_for(lambda: r.cluster.job(job).get("PreemptTime", "None") != "None", "the preemption")
    r.job("preempted.grace", job)
    r.wait(job, "COMPLETING")
    r.job("preempted.completing", job)
    r.wait(other, "RUNNING")
    r.wait(job, "PENDING")
    r.signals("preempted.signals", job, since, "a preemption: GraceTime=20, KillWait=10, preempt_send_user_signal")
    r.job("preempted", job)


def nodes(r: Recorder) -> None:
    """Nodes on which no job starts."""
    busy = r.submit("sleep 60", "--nodelist=n1")
    r.wait(busy, "RUNNING")
    r.record("nodes", *tables.nodes("low"))
    r.cluster.call("scontrol", "update", "NodeName=n1", "State=drain", "Reason=test")
    r.record("nodes.draining", *tables.nodes("low"))
    r.cluster.call("scancel", busy)
    wait_for(lambda: "drained" in r.cluster.call(*tables.nodes("low")), "a drained node")
    r.record("nodes.drained", *tables.nodes("low"))
    r.record("node_states.drained", *tables.states("low"))
    job = r.submit("sleep 60", "--nodelist=n1")
    r.wait_for_reason(job)
    r.job("pending.drained", job)
    r.cluster.call("scontrol", "update", "NodeName=n1", "State=resume")
    r.wait(job, "RUNNING")
    r.cluster.call("scontrol", "update", "NodeName=n1", "State=down", "Reason=test")
    wait_for(lambda: r.show(job, "%T") != "RUNNING", "the end of the job")
    r.job("node_failed", job)
    r.cluster.call("scontrol", "update", "NodeName=n1", "State=resume", check=False)  # it may be back already


def controller_down(r: Recorder) -> None:
    """No controller, no accounting, no configuration."""
    job = r.submit("sleep 60")
    r.wait(job, "RUNNING")
    commands: dict[str, Sequence[str]] = {
        "job": (*scontrol.JOB, job), "ping": ("scontrol", "ping"), "queue": tables.queue([job]),
        "nodes": tables.PARTITION_NODES, "config": scontrol.CONFIG, "requeue": ("scontrol", "requeue", job),
        "cancel": ("scancel", job), "sbatch": ("sbatch", "--wrap", "true"),
    }  # fmt: skip
    os.kill(r.cluster.daemon("slurmctld").pid, 9)
    fast = {"SLURM_CONF": _impatient(r.cluster.environment["SLURM_CONF"])}
    for name, command in commands.items():
        r.record(f"down.{name}", *command, **fast)
    for name in ("job", "sbatch"):
        r.record(f"unconfigured.{name}", *commands[name], SLURM_CONF="/absent/slurm.conf")
    os.kill(r.cluster.daemon("slurmdbd").pid, 9)
    r.record("down.accounting", *tables.final_state(job))
    r.record("down.associations", *tables.accounting("associations", ASSOCIATION, ["where", "user=root"]))


def _impatient(file: str) -> str:
    """A configuration with which the commands give up after a second."""
    out = Path(file).with_name("impatient.conf")
    out.write_text(Path(file).read_text() + "MessageTimeout=1\n")
    return str(out)


if __name__ == "__main__":
    main()
