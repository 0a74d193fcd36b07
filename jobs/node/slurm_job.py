"""What a running job knows about itself, and how it requeues itself.  Outside of Slurm there is no job."""

import os
import shutil
import socket
import sys
import time
from collections.abc import Sequence

from jobs.node.slurm_commands import has_commands, refusal, run
from jobs.slurm import scontrol, tables
from jobs.slurm.errors import PERMANENT_ERRORS
from jobs.slurm.states import RUNNING_STATES, TIME_LIMIT

STOP_SECONDS = 90  # for the ranks to save and exit near the time limit; then they are killed, in time to requeue
CONTROLLER_SECONDS = 600  # how long a controller that does not respond is asked again

REQUEUED = 75  # exit code of a task whose job must be requeued
DEFERRAL_MINUTES = 15  # for which a job waits that another job of its run has declined

# Lines of the batch script before srun.  The first one: srun would ask for the original number of GPUs, even where the
# job now has fewer.  The last export: with `--export=NONE` or SBATCH_EXPORT, srun would not pass on the variables that
# this script sets.  back_to_queue: a supervisor that was killed cannot requeue the job, nor can one in a container
# without Slurm's commands, so the batch script does it.  Not if Slurm has ended this start of the job, because then
# Slurm has already decided: `scontrol requeue` would restart a canceled job, and with the number of an array alone all
# of its tasks.  The controller may be down for a while.
SETUP = (
    '[ -z "$SLURM_GPUS_ON_NODE" ] || export SLURM_GPUS_PER_NODE=$SLURM_GPUS_ON_NODE',
    'case ${SLURM_EXPORT_ENV:-ALL} in ALL*) ;; *) echo "this job was submitted with --export=$SLURM_EXPORT_ENV: '
    "it has the variables of a login on this node, not of the shell that submitted it; modules and setup add others"
    '" ;; esac',
    "export SLURM_EXPORT_ENV=ALL",
    "back_to_queue() {",
    "  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}",
    "  for _ in $(seq 300); do is=$(scontrol --oneliner show job $job 2>/dev/null) && break; sleep 2; done",
    f'  echo "$is" | {scontrol.WITHOUT_WORDS} | grep -E " JobState=({"|".join(RUNNING_STATES)}) " |'
    ' grep -q " Restarts=${SLURM_RESTART_COUNT:-0} " &&',
    "    scontrol requeue $job",
    "}",
)
TEARDOWN = (  # after srun
    "code=$?",
    f"[ $code -lt 128 -a $code -ne {REQUEUED} ] || back_to_queue",
    "exit $code",
)


def _variable(name: str) -> str | None:
    """A variable that Slurm has set for this job.

    None if submit.py did not submit it: a local run may be inside of another job's allocation, whose variables say
    nothing about it.  (The GPUs of that allocation are in CUDA_VISIBLE_DEVICES, which is respected.)
    """
    return os.environ.get(name) if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" else None


def job_id() -> str | None:
    """This job's id; for a task of an array `12_3`, because its other id may stand for the whole array."""
    array, task = _variable("SLURM_ARRAY_JOB_ID"), _variable("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else _variable("SLURM_JOB_ID")


def start_id() -> str:
    """A name for this start of the job; each requeue gives it a new one."""
    return f"{job_id() or os.getpid()}.{_restart_count()}"


def _restart_count() -> str:
    return _variable("SLURM_RESTART_COUNT") or "0"


def seconds_left() -> float | None:
    """Seconds until the time limit of this start of the job; None if Slurm does not tell, as in version 22.05."""
    end = _variable("SLURM_JOB_END_TIME")
    return float(end) - time.time() if end and end.isdigit() else None


def node_name() -> str:
    """This node's name in Slurm."""
    return _variable("SLURMD_NODENAME") or socket.gethostname()


def node_rank() -> int:
    """This node's number in the job: that of its task, as there is one task per node."""
    return int(_variable("SLURM_PROCID") or 0)


def first_address() -> str:
    """The address of the job's first node, where srun was called."""
    return _variable("SLURM_LAUNCH_NODE_IPADDR") or "127.0.0.1"


def has_no_slurm_commands() -> bool:
    """Whether this is a job in a container without Slurm's commands: the batch script, outside, requeues it instead."""
    return job_id() is not None and shutil.which("scontrol") is None


def controller_responds() -> bool:
    """Whether Slurm's controller responds right now."""
    return bool(show_job(job_id() or ""))


def gpus_on_node(requested: int) -> int:
    """The number of GPUs that the job has on this node: as many as requested, or fewer if Slurm gave it fewer.

    At least 1: if Slurm gave it none, the node health check and the rank report that.
    """
    return max(1, min(requested, int(_variable("SLURM_GPUS_ON_NODE") or requested)))


def cpus_on_node(requested: int) -> int:
    """The number of CPU cores that the job has on this node, which Slurm may have rounded up."""
    return int(_variable("SLURM_CPUS_PER_TASK") or requested)


def requeue(exclude: Sequence[str] = (), deferred: bool = False) -> str:
    """Requeues this job without the excluded nodes; returns why Slurm refused, or "".

    If it is `deferred`, it does not start again for DEFERRAL_MINUTES.

    Slurm ends all its processes a little later.  A job that Slurm has already ended or requeued is left as it is.
    After "" the process must exit with REQUEUED: if it has no Slurm commands, or Slurm does not respond, the batch
    script asks again.
    """
    if not has_commands():
        return ""
    job = job_id()
    assert job is not None
    deadline = time.monotonic() + CONTROLLER_SECONDS
    while True:
        before = show_job(job)
        if before and (before["JobState"] not in RUNNING_STATES or before["Restarts"] != _restart_count()):
            return ""
        done = run("scontrol", "requeue", job) if before else None
        if done is not None and done.returncode == 0:
            break
        if done is not None and (time.monotonic() > deadline or PERMANENT_ERRORS.search(done.stderr)):
            return done.stderr.strip()
        if time.monotonic() > deadline:
            return ""
        time.sleep(2)  # the controller may be down for a while
    if deferred:
        defer([job])
    if exclude:
        _exclude(job, before, exclude)
    return ""


def can_exclude(nodes: Sequence[str]) -> bool:
    """Whether Slurm has enough other nodes for this job; not if it does not respond."""
    job = show_job(job_id() or "")
    return bool(job) and _enough_nodes(job, nodes)


def defer(jobs: Sequence[str], seconds: float = 60 * DEFERRAL_MINUTES) -> None:
    """Makes pending jobs wait so long from now on; others are left as they are.  Users may do this with their jobs."""
    for job in jobs:
        run("scontrol", "update", f"JobId={job}", f"StartTime=now+{round(seconds)}")


def send_signal(name: str) -> str:
    """Sends a signal to all tasks of this job, as Slurm does at a preemption; returns why it could not, or ""."""
    return refusal("scancel", f"--signal={name}", job_id() or "")


def is_being_canceled() -> bool:
    """Whether the signal that this job has received is that of scancel, and not of a preemption or a requeue.

    Slurm shows all of them as COMPLETING.  A requeue has counted the restart already, a preemption has its time, and at
    the time limit that is the reason, and none is left.
    """
    facts, left = show_job(job_id() or ""), seconds_left()
    return (
        facts.get("JobState") in ("COMPLETING", "CANCELLED")
        and facts.get("Restarts") == _restart_count()
        and facts.get("PreemptTime", "None") == "None"
        and facts.get("Reason") != TIME_LIMIT
        and (left is None or left > 5)
    )


def was_preempted_for_good() -> bool:
    """Whether Slurm has ended this start of the job for a preemption, and does not requeue it (PreemptMode=CANCEL)."""
    facts = show_job(job_id() or "")
    preempted = facts.get("PreemptTime", "None")
    return (
        facts.get("JobState") in ("COMPLETING", "PREEMPTED")
        and facts.get("Restarts") == _restart_count()
        and preempted != "None"
        and preempted >= facts.get("StartTime", "")  # not the preemption of an earlier start
    )


def _exclude(job: str, before: dict[str, str], wanted: Sequence[str]) -> None:
    """Adds to the excluded nodes of a pending job (Slurm allows it for no other), the first ones if not all can be."""
    nodes = list(wanted)
    while nodes and not _enough_nodes(before, nodes):
        nodes.pop()
    refused = "too few other nodes are available"
    if nodes and (error := _update_excluded(job, before, nodes)):
        nodes, refused = [], error
    if again := wanted[len(nodes) :]:
        print(f"the job may run on {', '.join(again)} again: {refused}", file=sys.stderr)


def _update_excluded(job: str, before: dict[str, str], nodes: Sequence[str]) -> str:
    """Returns why Slurm refused, or ""."""
    every = ",".join([*scontrol.excluded_nodes(before), *nodes])
    return refusal("scontrol", "update", f"JobId={job}", f"ExcNodeList={every}")


def _enough_nodes(job: dict[str, str], exclude: Sequence[str]) -> bool:
    """Whether the partition has enough other nodes for the job, which would otherwise wait forever."""
    usable = tables.usable_nodes(run(*tables.nodes(job["Partition"])).stdout.splitlines())
    for hosts in scontrol.excluded_nodes(job):
        usable -= set(run("scontrol", "show", "hostnames", hosts).stdout.split())
    return len(usable - set(exclude)) >= int(job["NumNodes"].partition("-")[0])


def show_job(job: str) -> dict[str, str]:
    """What `scontrol show job` prints; empty if the controller does not respond."""
    return scontrol.facts_of(run(*scontrol.JOB, job).stdout)
