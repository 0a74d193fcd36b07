"""Runs Slurm's commands on a test cluster and keeps what they print, without names of this machine."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from jobs.readiness import signal_probe
from jobs.slurm import scontrol, tables
from tests.helpers.paths import ROOT
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.waiting import wait_for
from tests.jobs.slurm.recording import Output

SECONDS = 8  # of one command
# Fields of jobs and partitions that nothing reads.
UNUSED = re.compile(
    r" (AllocNode:Sid|AllocNodes|Contiguous|CoreSpec|Deadline|DelayBoot|DisableRootJobs|DefaultTime|Features|"
    r"JobDefaults|LLN|LastSchedEval|Licenses\w*|MCS_label|Max\w*PerNode|MaxMemPerNode|Min\w+|Network|Nice|NtasksPerN:B:S:C|"
    r"OverTimeLimit|Power|Priority\w*Factor|Reboot|ReqB:S:C:T|ReqResv|RootOnly|Scheduler|SecsPreSuspend|Socks/Node|"
    r"StdIn|TimeMin)=\S*(?= |$)"
)


class Recorder:
    """A cluster, and what its commands printed so far."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.outputs = cluster, dict[str, Output]()
        self.folder = cluster.dir / "jobs"
        self._probes, self._folders = 0, dict[str, Path]()
        self.folder.mkdir()
        self.folder.chmod(0o777)

    def record(self, name: str, *command: str, only: "re.Pattern[str] | None" = None, **environment: str) -> Output:
        """Runs a command and keeps what it prints, or only the lines that match."""
        done = subprocess.run(
            ["timeout", str(SECONDS), *command], cwd=self.folder,
            env=os.environ | self.cluster.environment | environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        stdout = "".join(line for line in done.stdout.splitlines(keepends=True) if only is None or only.search(line))
        clean = self._clean
        self.outputs[name] = Output(clean(shlex.join(command)), clean(stdout), clean(done.stderr), done.returncode)
        return self.outputs[name]

    def _clean(self, text: str) -> str:
        """Without the paths and the name of this machine."""
        text = UNUSED.sub("", text).replace(str(self.cluster.dir), "/cluster").replace(str(ROOT), "/project")
        text = text.replace(socket.gethostname(), "host").replace(socket.gethostname().partition(".")[0], "host")
        return "\n".join(line.rstrip() for line in text.splitlines())

    def submit(self, script: str, *options: str) -> str:
        """Submits a batch script; returns the job's id."""
        file = self.folder / "job script.sh"
        file.write_text(f"#!/bin/sh\n{script}\n")
        command = ["sbatch", "--parsable", "--output", str(self.folder / "%A_%a.out"), *options, str(file)]
        return self.cluster.call(*command).strip()

    def probe(self, *options: str) -> str:
        """Submits a job that records its signals, and that only SIGKILL ends; returns its id once it runs."""
        self._probes += 1
        folder = self.folder / f"probe-{self._probes}"
        folder.mkdir()
        shutil.copy(str(signal_probe.__file__), folder / "signal_probe.py")
        script = f"trap '' TERM CONT USR2\nsrun {sys.executable} {folder}/signal_probe.py {folder}"
        job = self.submit(script, "--signal=USR2@60", *options)
        self.wait(job, "RUNNING")
        wait_for(lambda: "began" in text_of(folder / signal_probe.EVENTS), "the job's process")
        self._folders[job] = folder
        return job

    def signals(self, name: str, job: str, since: float, what: str) -> None:
        """Records the signals that a probe got, each with its seconds after a time."""
        events = [json.loads(line) for line in text_of(self._folders[job] / signal_probe.EVENTS).splitlines()]
        events = [(e["event"], e["time"]) for e in events if e["event"].startswith("SIG") and e["start"] == 0]
        events.append(("SIGKILL", float(text_of(self._folders[job] / f"{signal_probe.ALIVE}0"))))
        lines = dict.fromkeys(f"{signal} {at - since:.0f}\n" for signal, at in events)  # several nodes: the same twice
        self.outputs[name] = Output(what, "".join(lines))

    def show(self, job: str, column: str) -> str:
        """A column of squeue, also of a job that has ended."""
        return self.cluster.call("squeue", "-h", "--array", "--states=all", "-o", column, "--jobs", job, check=False)

    def wait(self, job: str, *states: str) -> None:
        """Waits until a job is in one of these states."""
        wait_for(lambda: self.show(job, "%T") in states, f"job {job} to be {states}", 150)

    def wait_for_reason(self, job: str) -> None:
        """Waits until Slurm says why a job is pending."""
        wait_for(lambda: self.show(job, "%r") not in {"None", ""}, f"why job {job} is pending")

    def job(self, name: str, job: str) -> None:
        """Records what `scontrol show job` and squeue say of a job."""
        self.record(name, *scontrol.JOB, job)
        self.record(f"{name}.queue", *tables.queue([job]))


def text_of(file: Path) -> str:
    """The text of a file; empty if it does not exist."""
    return file.read_text() if file.exists() else ""
