"""What a running job knows of itself, and how it goes back into the queue.  Outside of Slurm there is no job."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

STOP_SECONDS = 90  # for the ranks to save and leave when the time limit is near; they are ended in time to requeue
PATIENCE_SECONDS = 600  # with a controller that does not answer
CALL_SECONDS = 60  # with one call

REQUEUED = 75  # exit code of a task whose job is to be in the queue again
# What Slurm will not do later either: the job was submitted with --no-requeue, or may not be touched.
NEVER = re.compile(r"disabled|only batch jobs|access|permission", re.I)
RUNS = ("RUNNING", "SIGNALING", "STOPPED", "RESIZING")  # states of a job that Slurm has not ended

# In the batch script, before srun, which would ask for as many GPUs as were asked for at first, also where the job now
# has fewer.  A supervisor that was killed can ask for nothing, nor can one in a container without Slurm's commands: the
# batch script does it.  Not if Slurm has ended this start of the job, for then it knows what it wants; `scontrol
# requeue` would bring a canceled one back, and by its array's number alone all tasks of it.  The controller may be
# down for a while.
SETUP = (
    '[ -z "$SLURM_GPUS_ON_NODE" ] || export SLURM_GPUS_PER_NODE=$SLURM_GPUS_ON_NODE',
    "back_to_queue() {",
    "  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}",
    "  for _ in $(seq 300); do is=$(scontrol --oneliner show job $job 2>/dev/null) && break; sleep 2; done",
    f'  echo "$is" | grep -E " JobState=({"|".join(RUNS)}) " | grep -q " Restarts=${{SLURM_RESTART_COUNT:-0}} " &&',
    "    scontrol requeue $job",
    "}",
)
TEARDOWN = (  # after srun
    "code=$?",
    f"[ $code -lt 128 -a $code -ne {REQUEUED} ] || back_to_queue",
    "exit $code",
)


def _is_ours() -> bool:
    """Whether submit.py submitted this job; one that runs locally may be inside of somebody's allocation."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def job() -> str | None:
    """This job's number; that of a task of an array as `12_3`, for its other number may mean the whole array."""
    if not _is_ours():
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")


def life() -> str:
    """A name for this start of the job: another one after each requeue."""
    return f"{job() or os.getpid()}.{_restarts()}"


def _restarts() -> str:
    return os.environ.get("SLURM_RESTART_COUNT", "0")


def node() -> str:
    """This node's name, as Slurm has it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def task() -> int:
    """This task's number; there is one a node."""
    return int(os.environ.get("SLURM_PROCID", "0")) if _is_ours() else 0


def first_address() -> str:
    """Where the job's first node is reached: there srun was called."""
    return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1") if _is_ours() else "127.0.0.1"


def is_mute() -> bool:
    """Whether this is a job in a container without Slurm's commands: the batch script, outside of it, asks instead."""
    return job() is not None and shutil.which("scontrol") is None


def answers() -> bool:
    """Whether Slurm can be asked for anything just now."""
    return bool(_described(job() or ""))


def gpus(asked: int) -> int:
    """How many GPUs this node has for the job: those it asked for, unless it was given fewer."""
    return min(asked, int(os.environ.get("SLURM_GPUS_ON_NODE", asked)))


def requeue(exclude: Sequence[str] = ()) -> str:
    """Puts this job back into the queue, off the nodes to exclude; returns why that could not be, else nothing.

    All its processes are ended a little later.  A job that Slurm has ended or requeued already is left alone.  The
    process must end with REQUEUED then: where it cannot ask, or Slurm does not answer, the batch script goes on asking.
    """
    if is_mute():
        return ""
    number = job()
    assert number is not None
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        before = _described(number)
        if before and (before["JobState"] not in RUNS or before["Restarts"] != _restarts()):
            return ""
        done = _scontrol("requeue", number) if before else None
        if done is not None and done.returncode == 0:
            break
        if done is not None and (time.monotonic() > deadline or NEVER.search(done.stderr)):
            return done.stderr.strip()
        if time.monotonic() > deadline:
            return ""
        time.sleep(2)  # the controller may be down for a while
    known = [] if before.get("ExcNodeList") in {None, "(null)"} else [before["ExcNodeList"]]
    if exclude:
        kept = "too few nodes are left without"
        if _enough_nodes(before, exclude):  # Slurm does it for pending jobs only
            kept = _scontrol("update", f"JobId={number}", f"ExcNodeList={','.join([*known, *exclude])}").stderr.strip()
        if kept:
            print(f"the job may get {', '.join(exclude)} again: {kept}", file=sys.stderr)
    return ""


def _enough_nodes(described: dict[str, str], exclude: Sequence[str]) -> bool:
    """Whether the partition has the nodes that the job needs without those: else it would wait for ever."""
    command = ["sinfo", "--noheader", "--Node", "--partition", described["Partition"], "--format", "%N %t"]
    lines = _call(*command).stdout.splitlines()
    usable = {line.split()[0] for line in lines if not line.split()[1].startswith(("down", "drain", "fail"))}
    return len(usable - set(exclude)) >= int(described["NumNodes"].partition("-")[0])


def _described(number: str) -> dict[str, str]:
    words = _scontrol("--oneliner", "show", "job", number).stdout.split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def _scontrol(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return _call("scontrol", *arguments)


def _call(*command: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=CALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {CALL_SECONDS} s")
