"""Records how busy the GPUs and the CPU cores of a node are while its ranks train, at no cost to them.

A thread of the supervisor looks every ten seconds.  `logs/resources-NODE.json` has one entry for each attempt on that
node, the newest ones; `vit/history/resources.py` reads it.
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.node import nvml
from vit.run.disk_errors import read_if_exists
from vit.run.heartbeat import HeartbeatSlots
from vit.run.progress import show

FIRST_SECONDS, SAMPLE_SECONDS, WRITE_SECONDS = 2.0, 10.0, 60.0
KEPT = 50  # attempts of a node that are kept
# In other phases the ranks start or compile, which says nothing about training.
TRAINING_PHASES = {"data", "step", "checkpoint", "evaluate", "other"}


@dataclass
class _Attempt:
    """What was seen of one attempt."""

    began: float
    seconds: float = 0.0  # of training that was observed
    cpu: float = 0.0  # seconds of all cores that the ranks used in it
    busy: list[list[float]] = field(default_factory=list)  # of each GPU: its utilization at each sample
    peak: list[int] = field(default_factory=list)  # of each GPU: bytes
    total: list[int] = field(default_factory=list)

    def entry(self, names: Sequence[str], cores: int) -> dict[str, Any]:
        """The attempt as it is written."""
        gpus = [
            {
                "name": name,
                "utilization": round(sum(busy) / len(busy), 3) if busy else None,
                "memory_peak": peak,
                "memory_total": total,
            }
            for name, busy, peak, total in zip(names, self.busy, self.peak, self.total, strict=False)
        ]
        share = round(self.cpu / (self.seconds * cores), 3) if self.seconds > 0 else None
        out = {"began": round(self.began, 3), "seconds": round(self.seconds, 1), "cores": cores, "cpu": share}
        return out | ({"gpus": gpus} if gpus else {})


class ResourceLog:
    """The record of one node.  Nothing that fails here disturbs the run: at most one message is printed."""

    def __init__(self, logs: Path, node: str, slots: HeartbeatSlots) -> None:
        self.path, self.slots = logs / f"resources-{node}.json", slots
        self.cores = len(os.sched_getaffinity(0))
        self._earlier: list[Any] | None = None  # entries of earlier attempts
        self._gpus: tuple[nvml.Nvml, list[nvml.Gpu]] | None = None
        self._looked_for_gpus = self._complained = False

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Records an attempt while the block runs."""
        over = threading.Event()
        thread = threading.Thread(target=self._record, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(1)  # a driver that hangs must not hold up the run

    def _record(self, over: threading.Event) -> None:
        attempt, wait, written = _Attempt(time.time()), FIRST_SECONDS, -WRITE_SECONDS
        before, cpu_before = time.monotonic(), self._cpu_seconds()
        while not over.wait(wait):
            now, cpu = time.monotonic(), self._cpu_seconds()
            training = self._is_training()
            if training and cpu.keys() == cpu_before.keys():
                attempt.seconds += now - before
                attempt.cpu += sum(cpu.values()) - sum(cpu_before.values())
            before, cpu_before = now, cpu
            self._sample_gpus(attempt, training)
            wait = SAMPLE_SECONDS if attempt.seconds else FIRST_SECONDS
            if attempt.seconds and now - written > WRITE_SECONDS:
                self._write(attempt)
                written = now
        if attempt.seconds:
            self._write(attempt)

    def _is_training(self) -> bool:
        beats = self.slots.read()
        return bool(beats) and all(beat.phase in TRAINING_PHASES and beat.steps > 0 for beat in beats)

    def _cpu_seconds(self) -> dict[int, float]:
        """CPU time of each rank so far, by its process id."""
        out = {}
        for beat in self.slots.read():
            with suppress(OSError, ValueError, IndexError):  # it has ended
                fields = Path(f"/proc/{beat.pid}/stat").read_text().rpartition(")")[2].split()
                out[beat.pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return out

    def _sample_gpus(self, attempt: _Attempt, training: bool) -> None:
        try:
            if not self._looked_for_gpus:
                self._looked_for_gpus = True  # once: without a GPU, nothing is done any more
                self._gpus = nvml.visible_gpus(self.slots.ranks)
            if self._gpus is None:
                return
            library, gpus = self._gpus
            for i, sample in enumerate([library.sample(gpu) for gpu in gpus]):
                if i == len(attempt.busy):
                    attempt.busy.append([])
                    attempt.peak.append(0)
                    attempt.total.append(sample.memory_total)
                attempt.peak[i] = max(attempt.peak[i], sample.memory)
                if training and sample.utilization is not None:
                    attempt.busy[i].append(sample.utilization)
        except nvml.NvmlError as error:
            self._gpus = None
            self._complain(f"the GPUs are not watched: {error}")

    def _write(self, attempt: _Attempt) -> None:
        """Replaces the file; a crash of the machine may lose it."""
        try:
            if self._earlier is None:
                self._earlier = self._read()
            names = [gpu.name for gpu in self._gpus[1]] if self._gpus else []
            entries = [e for e in self._earlier if not isinstance(e, dict) or e.get("began") != round(attempt.began, 3)]
            self._earlier = [*entries, attempt.entry(names, self.cores)][-KEPT:]
            temporary = self.path.with_name(f"{self.path.name}.tmp")
            temporary.write_text(json.dumps({"attempts": self._earlier}))
            temporary.rename(self.path)
        except OSError as error:
            self._complain(f"the use of GPUs and cores is not recorded: {error}")

    def _read(self) -> list[Any]:
        """The entries of earlier attempts on this node, without what is damaged."""
        try:
            content = json.loads(read_if_exists(self.path, self.path.read_bytes) or b"{}")
            entries = content.get("attempts", [])
        except (ValueError, AttributeError):
            return []
        return list(entries) if isinstance(entries, list) else []

    def _complain(self, message: str) -> None:
        if not self._complained:
            self._complained = True
            show(message, lasting=True)
