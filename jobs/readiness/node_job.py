"""A short job that measures what the nodes do for this run (`vit.node_benchmark`), on the resources of the real one."""

import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.login.resources import Resources
from jobs.login.run_files import copy_source
from jobs.login.slurm_queries import SlurmNotFoundError, SlurmUnreachableError, queued_jobs
from jobs.readiness.finding import Finding
from jobs.readiness.node_figures import judge
from jobs.readiness.own_job import OwnJobError, end_job, own_folder, own_process, submit, why_not_running
from vit.config.paths import escape
from vit.config.schema import Config, to_yaml
from vit.run.jsonl import read_lines

JOB_NAME, MINUTES = "vit-node-check", 10  # of the job, and its time limit
PARTS = ("node", "matrix product", "sums", "decoding", "training", "save")
TASK = """\
# One task per node: starts one rank per GPU with torchrun.
export PYTHONPATH={source}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1
exec {python} -m torch.distributed.run {rendezvous} --nproc-per-node {ranks} -m vit.node_benchmark {arguments}
"""
ONE_NODE = "--local-addr localhost --rdzv-backend c10d --rdzv-endpoint localhost:0 --rdzv-id node-check"
SEVERAL_NODES = (
    '--nnodes "$SLURM_JOB_NUM_NODES" --node-rank "$SLURM_NODEID" --rdzv-backend static'
    ' --master-addr "$SLURM_LAUNCH_NODE_IPADDR" --master-port "$((20000 + SLURM_JOB_ID % 10000))"'
)


def check_nodes(
    resources: Resources,
    cfg: Config,
    runs: Path,
    wait_seconds: float,
    on_slurm: bool,
    say: Callable[[str], None],
    on_save: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Finding]:
    """Runs the job, or the same on this machine, and judges its figures.

    `say` shows what is being waited for; `on_save` gets the seconds of a save.
    """
    try:
        with own_folder(runs) as folder:
            parts = _measure(resources, cfg, folder, wait_seconds, on_slurm, say)
    except (OwnJobError, SlurmNotFoundError, SlurmUnreachableError) as error:
        yield Finding("node job", "FAIL", str(error), "the checks of this machine, above, may tell more")
        return
    for part in parts:
        if part.get("part") == "save" and "problem" not in part:
            on_save(float(part["seconds"]))
    yield from judge(parts, resources, cfg)


def _measure(
    resources: Resources, cfg: Config, folder: Path, wait_seconds: float, on_slurm: bool, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The parts that were measured, or an "error" part.  Raises OwnJobError if the job did not run."""
    _write_task(resources, cfg, folder, several=on_slurm and resources.nodes > 1)
    results = folder / "results" / "parts.jsonl"
    if not on_slurm:
        with own_process(["sh", str(folder / "task.sh")], folder / "task.out") as process:
            _follow(results, lambda: process.poll() is None, time.monotonic() + 60 * MINUTES, say)
        return _parts(results, (folder / "task.out").read_text(errors="replace"))
    short = replace(resources, cluster=replace(resources.cluster, time=str(MINUTES)))
    job = submit(short, folder, f"sh {shlex.quote(f'{folder}/task.sh')}", JOB_NAME)
    try:
        say(f"job {job} is waiting to start")
        deadline = time.monotonic() + wait_seconds
        _follow(results, lambda: job in queued_jobs({job}), deadline, say, until_first=True)
        if not results.exists():
            waited = f"after {wait_seconds:.0f} s, " if job in queued_jobs({job}) else ""
            raise OwnJobError(f"{waited}job {job} {why_not_running(job, folder)}")
        _follow(results, lambda: job in queued_jobs({job}), time.monotonic() + 60 * MINUTES, say)
        outputs = "".join(file.read_text(errors="replace") for file in sorted(folder.glob("*.out")))
        return _parts(results, outputs)
    finally:
        end_job(job)


def _write_task(resources: Resources, cfg: Config, folder: Path, several: bool) -> None:
    """The source, the config and the shell script of the job."""
    copy_source(folder / "source")
    (folder / "config.yaml").write_text(to_yaml(cfg))
    arguments = ["--config", escape(folder / "config.yaml"), "--folder", escape(folder / "results")]
    (folder / "task.sh").write_text(
        TASK.format(
            source=shlex.quote(str(folder / "source")),
            python=resources.python,
            rendezvous=SEVERAL_NODES if several else ONE_NODE,
            ranks=resources.gpus,
            arguments=shlex.join(arguments),
        )
    )


def _follow(
    results: Path, is_alive: Callable[[], bool], deadline: float, say: Callable[[str], None], until_first: bool = False
) -> None:
    """Waits until the job has ended, or has written its first result; says what it measures meanwhile."""
    said = 0
    while time.monotonic() < deadline:
        alive = is_alive()
        names = [part["part"] for part in read_lines(results)] if results.exists() else []
        if until_first and names:
            return
        if len(names) > said and names[-1] in PARTS[:-1]:
            say(f"measured: {', '.join(names)}")
        said = len(names)
        if not alive or "save" in names or "error" in names:
            return
        time.sleep(0.5)


def _parts(results: Path, output: str) -> list[dict[str, Any]]:
    """The results; with an error if the job ended before it had measured everything."""
    parts = read_lines(results) if results.exists() else []
    names = {part.get("part") for part in parts}
    if "save" not in names and "error" not in names:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        parts.append({"part": "error", "error": "; ".join(lines[-3:]) or "the job ended without output"})
    return parts
