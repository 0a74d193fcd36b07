"""The one process per node above the ranks: starts them through torch's elastic agent and starts them again."""

import ctypes
import os
import shlex
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from jobs.job import GPUS_VARIABLE, SUBMITTER_VARIABLE
from vit.ledger import JOB_VARIABLE, RunFolder

MAX_RESTARTS = 3
STOP_SECONDS = 600  # for the ranks to save and leave; Slurm's own patience is shorter
USER_ERROR = 2  # exit code of a rank that only the user can help


class RunFailedError(RuntimeError):
    """The ranks failed and going on makes no sense.  The message holds the first failing rank's last words."""


def supervise(run: Path, nodes: int, gpus: int, accepted: tuple[str, ...] = ()) -> str:
    """Runs the ranks of this node until the run is finished or stopped, and returns which.  Raises RunFailedError."""
    folder = RunFolder(run)
    folder.logs.mkdir(parents=True, exist_ok=True)
    _prepare_environment()
    try:
        for attempt in range(1 + MAX_RESTARTS):
            started = time.time()
            try:
                _launch(folder, nodes, gpus, accepted, attempt)
                break
            except ChildFailedError as error:
                rank, reason, code = _first_failure(folder, error, started)
                if code == USER_ERROR or attempt == MAX_RESTARTS:
                    log = folder.logs / f"rank-{rank}.log"
                    raise RunFailedError(f"rank {rank}: {reason}\n{_tail(log)}\nthe whole log is {log}") from None
                folder.record("restarting in place", rank=rank, reason=reason)
    except SignalException:
        pass  # the ranks were told, saved and left
    ended = folder.last("started", "finished", "stopped")
    return "finished" if ended and ended["event"] == "finished" else "stopped"


def stop_ranks() -> None:
    """Tells the ranks on this node to save and leave, and waits until they have."""
    ranks = psutil.Process().children(recursive=True)
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.send_signal(signal.SIGUSR2)
    deadline = time.monotonic() + STOP_SECONDS
    while any(_alive(rank) for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)


def _launch(folder: RunFolder, nodes: int, gpus: int, accepted: tuple[str, ...], attempt: int) -> None:
    arguments = ["--config", str(folder.config), "--run-dir", str(folder.path)]
    if accepted:
        arguments += ["--override-resume", *accepted]
    command = shlex.join([sys.executable, "-u", "-m", "vit.train", *arguments])
    job = os.environ.get("SLURM_JOB_ID", str(os.getpid()))
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=gpus,
        run_id=f"{job}-{attempt}",
        rdzv_backend="c10d",
        rdzv_endpoint=_rendezvous(nodes, job),
        max_restarts=0,  # `supervise` restarts: it knows which failures are worth it
        monitor_interval=0.1,
        signals_to_handle="SIGTERM,SIGHUP",
    )
    if hasattr(config, "shutdown_timeout"):  # older versions of torch give the ranks 30 seconds to save
        config.shutdown_timeout = STOP_SECONDS
    # The shell's redirection keeps every word of a rank, those of a failing import too, over all attempts.
    log = shlex.quote(str(folder.logs)) + "/rank-$RANK.log"
    elastic_launch(config, "/bin/sh")("-c", f"exec {command} >>{log} 2>&1")


def _rendezvous(nodes: int, job: str) -> str:
    """Where the agents of all nodes meet: the first node, at a port that the job's number chooses."""
    if nodes == 1:
        return "localhost:0"
    import submitit

    return f"{submitit.JobEnvironment().hostnames[0]}:{20_000 + int(job) % 20_000}"


def _prepare_environment() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "SLURM_JOB_ID" in os.environ:
        os.environ[JOB_VARIABLE] = f"Slurm job {os.environ['SLURM_JOB_ID']}"
    if GPUS_VARIABLE in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[GPUS_VARIABLE]
    if SUBMITTER_VARIABLE in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[SUBMITTER_VARIABLE]),), daemon=True).start()
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: end with the process that started us


def _end_with(submitter: int) -> None:
    """A local run belongs to the command that started it: when that is gone, save and leave."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(submitter)
        while _alive(process):
            time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _first_failure(folder: RunFolder, error: ChildFailedError, started: float) -> tuple[int, str, int]:
    """The rank that failed first, why, and its exit code.  What other ranks say, of lost connections, only follows."""
    rank, failure = error.get_first_failure()
    code = failure.exitcode
    told = [e for e in folder.events() if e["event"] == "failed" and e["time"] >= started]
    if code < 0 or not told:  # killed: it could not tell
        return rank, f"ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}", code
    return told[0]["rank"], told[0]["error"], code


def _tail(log: Path, lines: int = 15) -> str:
    text = log.read_text(errors="replace").splitlines()[-lines:] if log.exists() else []
    return "\n".join(f"  {line}" for line in text)
