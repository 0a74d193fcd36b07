"""Weights & Biases as seen by training: a process beside it, which may fail in any way.  Imports no torch, no wandb.

Training writes metrics.jsonl and never waits for Weights & Biases.  The sender (`wandb_sender.py`) follows that file
and sends what the server lacks.  If it cannot, it ends and is started again later: in this attempt, at its end, or in
the next one.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from vit.config.paths import escape, shell_word
from vit.config.schema import Config, flatten
from vit.run.folder import RunFolder
from vit.run.fsync import replace_file
from vit.run.hints import command
from vit.run.progress import show

SENDER = "vit.wandb_sender"
ANSWER_SECONDS = 60.0  # the sender waits this long for an answer of the server
FINISH_SECONDS, STOP_SECONDS = 40.0, 10.0  # training waits this long for the sender at its end, and before a stop
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 30.0, 600.0  # between starts of the sender that fail
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}

Registration = dict[str, Any]  # which run of Weights & Biases a run folder logs to: the contents of wandb_run.json


def registration_file(run: RunFolder) -> Path:
    """The file that says which run of Weights & Biases this folder logs to."""
    return run.path / "wandb_run.json"


def read_registration(run: RunFolder) -> Registration | None:
    """The run folder's registration; None if it has none, or was copied from the folder that has it."""
    try:
        found: Registration = json.loads(registration_file(run).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if found.get("inodes") == _inodes(run) else None


def write_registration(run: RunFolder, registration: Registration, new_id: bool = False) -> Registration:
    """Writes a registration of this folder, with an id of its own if `new_id`; returns it.  Raises OSError."""
    new = registration | {"inodes": _inodes(run)}
    if new_id:
        new |= {"id": uuid.uuid4().hex[:8], "sent_before": 0}
    replace_file(registration_file(run), json.dumps(new, indent=1).encode())
    return new


def send_command(run: RunFolder) -> str:
    """The command that sends by hand what the server lacks."""
    return command(SENDER, shell_word(run.path))


def _inodes(run: RunFolder) -> list[int]:
    """Inode numbers of the folder and of a file in it that is never replaced: a moved folder keeps both, a copy has
    others.  No device numbers, which may differ between nodes that mount the same file system.
    """
    return [path.stat().st_ino if path.exists() else 0 for path in (run.path, run.path / "owner")]


def _register(run: RunFolder, cfg: Config, step: int) -> bool:
    """Writes the registration of a run that resumes at `step`.  Returns whether it replaces that of another folder."""
    known = read_registration(run)
    values = {"project": cfg.log.wandb_project, "name": run.path.name, "config": flatten(cfg)}
    copied = known is None and registration_file(run).exists()
    old_id = run.path / "wandb_id"  # of older versions, which sent the records themselves
    if known is None and not copied and old_id.exists():
        known = {"id": old_id.read_text().strip(), "sent_before": step}
    write_registration(run, (known or {}) | values, new_id=known is None)
    return copied


class WandbLog:
    """Rank 0's log to Weights & Biases of a run that resumes at `step`.

    Its methods neither fail nor wait for the server, except `close`, which waits for a limited time.
    """

    def __init__(self, run: RunFolder, cfg: Config, step: int) -> None:
        self.run, self.cfg, self.step, self.online = run, cfg, step, cfg.log.wandb == "online"
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch = ""  # folder for temporary files of the sender
        self._output = b""  # of the sender: the beginning of its next message
        self._retry_at, self._retry_seconds = 0.0, MIN_RETRY_SECONDS
        self._problem_shown = self._complete = False
        self._start()

    def poll(self) -> None:
        """Reports what the sender did, and starts it again if it ended."""
        if self._process is not None:
            self._read_messages()
            if self._ended():
                self._end()
        if self._process is None and time.monotonic() > self._retry_at:
            self._start()

    def close(self, finished: bool) -> None:
        """Waits a limited time until everything is sent; names the command that sends it later if it is not."""
        if self._process is None and finished:
            self._start()
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()  # the sender sends the rest, and ends
            seconds = FINISH_SECONDS if finished else STOP_SECONDS
            deadline = time.monotonic() + seconds
            while not (ended := self._ended()) and time.monotonic() < deadline:
                time.sleep(0.05)
            self._end("" if ended else f"no answer within {seconds:.0f} s")
        if not self._complete or not self.online:
            how, synced = send_command(self.run), ""
            if self._complete:
                synced = f", or wandb sync {shlex.quote(str(self.run.path / 'wandb'))}/offline-run-*"
            self.run.note("wandb unsent", command=how)
            show(f"Weights & Biases does not have all records of this run; to send them: {how}{synced}", lasting=True)

    def _ended(self) -> bool:
        """Whether the sender has ended; its process id remains valid."""
        assert self._process is not None
        try:
            return bool(os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))
        except ChildProcessError:
            return True

    def _start(self) -> None:
        """Registers the folder, and starts the sender."""
        self._complete = False
        try:
            if _register(self.run, self.cfg, self.step):
                text = "this run folder is a copy, or was moved to another file system; it logs to a new run"
                show(f"Weights & Biases: {text}", lasting=True)
            self._scratch = tempfile.mkdtemp(prefix="vit-wandb-")
            self._process = self._popen()
            assert self._process.stdout is not None
            os.set_blocking(self._process.stdout.fileno(), False)
        except (OSError, ValueError) as error:
            self._on_problem(str(error))
            self._end()

    def _popen(self) -> "subprocess.Popen[bytes]":
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        try:
            self.run.logs.mkdir(exist_ok=True)
            log = os.open(self.run.logs / "wandb.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError:
            log = os.open(os.devnull, os.O_WRONLY)
        options = ["--follow", "--scratch", self._scratch, "--timeout", str(ANSWER_SECONDS)]
        options += [] if self.online else ["--offline"]
        # A signal that asks the job to stop must not end the sender or wandb's process: blocked signals are inherited.
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            return subprocess.Popen(
                [sys.executable, "-m", SENDER, *options, escape(self.run.path)],
                env=os.environ | {"PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C must not reach it
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
            os.close(log)

    def _read_messages(self) -> None:
        """Handles the messages of the sender that have arrived: one JSON object per line."""
        assert self._process is not None
        assert self._process.stdout is not None
        with suppress(BlockingIOError):
            while chunk := os.read(self._process.stdout.fileno(), 65536):
                self._output += chunk
        *lines, self._output = self._output.split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:  # not from the sender, e.g. printed when Python starts
                continue
            if "problem" in message:
                self._on_problem(message["problem"])
            if "connected" in message:
                self._retry_seconds = MIN_RETRY_SECONDS
                show(f"Weights & Biases: {message['connected']}", lasting=True)
            self._complete = message.get("complete", False)

    def _on_problem(self, problem: str) -> None:
        """Prints the first of all problems of an attempt, and records it in the ledger."""
        if not self._problem_shown:
            self.run.note("wandb problem", problem=problem)
            later = "training continues, and the records are sent later"
            show(f"Weights & Biases: {problem.rstrip('.')}; {later}", lasting=True)
        self._problem_shown = True

    def _end(self, problem: str = "") -> None:
        """Kills what is left of the sender, and plans the next start."""
        if self._process is not None:
            self._read_messages()
            with suppress(psutil.Error):  # wandb's own process too: it ends with the sender, unless it is stuck
                sender = psutil.Process(self._process.pid)
                for process in (*sender.children(recursive=True), sender):
                    with suppress(psutil.Error):
                        process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(OSError):
                    assert pipe is not None
                    pipe.close()
            if not self._complete:
                self._on_problem(problem or "the process that sends the records ended")
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._process, self._scratch, self._output = None, "", b""
        self._retry_at = time.monotonic() + self._retry_seconds
        self._retry_seconds = min(2 * self._retry_seconds, MAX_RETRY_SECONDS)
