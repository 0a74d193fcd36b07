"""The stages of `doctor.py` that run jobs of their own: what the nodes do for a run, and what preemption does to it."""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from jobs.readiness.cluster_file import cluster_path, write_cluster_file
from jobs.readiness.finding import Finding
from jobs.readiness.node_job import check_nodes
from jobs.readiness.preemption import check_preemption, proposed_signal
from jobs.readiness.request import Request
from vit.config.user_error import UserError


def add_stage_options(group: Any) -> None:
    """The options of `doctor.py` that request these stages."""
    group.add_argument(
        "--submit",
        action="store_true",
        help="also run a job of about two minutes on the requested nodes and GPUs: versions, speed of GPUs, network "
        "and decoding, 20 training steps, a save; without Slurm, on this machine",
    )
    group.add_argument(
        "--preempt",
        action="store_true",
        help="also find out what a preemption does: a small job is signaled and requeued, and records what arrives",
    )
    group.add_argument(
        "--write",
        metavar="NAME",
        help="with --preempt: write configs/clusters/NAME.yaml, with the options of this command and what was measured",
    )
    group.add_argument(
        "--wait", type=float, default=60, metavar="MINUTES", help="how long these jobs may wait to start (default: 60)"
    )


def check_stage_options(request: Request) -> None:
    """Raises UserError if the options contradict each other."""
    options = request.options
    if options.submit and request.cfg is None:
        raise UserError("--submit requires --config FILE: it measures steps of that run")
    if options.write and not options.preempt:
        raise UserError("--write requires --preempt, which measures what is written")
    if options.write and not re.fullmatch(r"[\w.-]*\w", options.write):
        raise UserError(f"--write {options.write}: use letters, digits and hyphens; it is the name of a file")
    if options.write and cluster_path(options.write).exists():
        raise UserError(f"--write {options.write}: {cluster_path(options.write)} exists; choose another name")
    if options.wait <= 0:
        raise UserError(f"--wait must be positive, not {options.wait:g}")


def job_stages(request: Request) -> Iterator[tuple[str, Iterable[Finding]]]:
    """The title and the findings of each stage that was requested."""
    options = request.options
    if options.submit and request.cfg is not None:
        on_slurm = request.slurm is not None or bool(request.slurm_error)
        where = "on the nodes" if on_slurm else "a short run on this machine"
        seconds = 60 * options.wait
        resources = request.resources()
        yield where, check_nodes(resources, request.cfg, request.runs, seconds, on_slurm, say, request.set_save_seconds)
    if options.preempt:
        yield "what a preemption does", _preemption(request)


def _preemption(request: Request) -> Iterator[Finding]:
    options, failed = request.options, False
    for finding in check_preemption(request.resources(), request.runs, 60 * options.wait, request.save_seconds, say):
        failed = failed or finding.level == "FAIL"
        yield finding
    if failed:
        return
    signal = proposed_signal(request.save_seconds)
    yield Finding("signal", "OK", f"proposed: `signal: {signal}`, so long before the time limit a run saves")
    if not options.write:
        return
    try:
        path = write_cluster_file(options.write, replace(request.cluster, signal=signal))
    except FileExistsError as error:
        yield Finding("cluster file", "FAIL", f"{error.filename} exists already", "choose another name, or remove it")
    else:
        yield Finding("cluster file", "OK", f"wrote {path}; use it with --cluster-config {options.write}")


def say(line: str) -> None:
    """Shows what is being waited for; not on standard output, which has the findings."""
    print(f"      … {line}", file=sys.stderr, flush=True)
