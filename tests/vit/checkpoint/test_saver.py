"""Saving beside training: what becomes of a save when processes die, disks are full and signals come."""

import io
import itertools
import math
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.helpers.ranks import run_ranks
from vit.checkpoint.format import find_checkpoints, step_of
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.resume import newest_whole_checkpoint
from vit.checkpoint.saver import LONGEST, SHORTEST, Saver, interval
from vit.config.schema import CheckpointConfig, Config
from vit.distributed.agreement import Agreement
from vit.distributed.world import join
from vit.run.folder import Event, RunFolder

OFTEN = CheckpointConfig(every_minutes=1e-6)


@dataclass
class Numbers:
    """A state whose tensors tell of its step, and which changes in place as a model does."""

    count: int
    step: int = 0
    protect: Callable[[], None] = lambda: None  # the snapshot's

    def __post_init__(self) -> None:
        self.held = {name: torch.empty(self.count) for name in ("model.a", "model.b", "optimizer.c", "optimizer.d")}
        self.train(0)

    def train(self, step: int) -> None:
        """One step."""
        self.protect()
        self.step = step
        for i, tensor in enumerate(self.held.values()):
            tensor.fill_(step + i / 4)

    def tensors(self) -> dict[str, Tensor]:
        return self.held


def assert_whole(path: Path) -> None:
    """It loads, and all of it is of one step, which is the one in its name."""
    tensors, manifest = load_checkpoint(path)
    assert manifest["step"] == step_of(path)
    for i, tensor in enumerate(tensors.values()):
        assert (tensor == step_of(path) + i / 4).all(), path


@contextmanager
def saving(run: Path, count: int = 1000, cfg: CheckpointConfig = OFTEN, **more: Any) -> Iterator[tuple[Any, Saver]]:
    """This rank's state and its saver."""
    with join(Config(device="cpu")) as world:
        run.mkdir(parents=True, exist_ok=True)
        state: Any = Numbers(count)
        saver = Saver(RunFolder(run), world, cfg, state, lambda: {"of": state.step}, set, **more)
        state.protect = saver.protect
        yield state, saver
        saver.close()


def ledger(run: Path, name: str) -> list[Event]:
    return [event for event in RunFolder(run).events() if event["event"] == name]


def saved(run: Path) -> list[int]:
    """The steps of the checkpoints, newest first, all of them whole."""
    paths = find_checkpoints(RunFolder(run).checkpoints)
    for path in paths:
        assert_whole(path)
    return [step_of(path) for path in paths]


def runs(pid: int) -> bool:
    """Whether a process is there, and more than what is left of one until somebody asks for its exit code."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def save_step(state: Any, saver: Saver, step: int) -> int | None:
    """Trains to a step and saves it, to the end; the newest safe step."""
    state.train(step)
    saver.save()
    safe = saver.finish()
    saver.settle()
    return safe


def trained(run: Path, saves: int) -> tuple[int, list[int | None]]:
    """Trains until all ranks have written so many; the last step, and what was safe after each one."""
    with saving(run, 30_000) as (state, saver):
        agreement, safe, written = Agreement(saver.world), [], 0
        while written < saves:
            state.train(state.step + 1)
            _, save, written = agreement.look(saver.due, saver.written)
            saver.advance(written)
            if save:
                saver.save()
            safe.append(saver.safe)
        state.train(state.step + 1)
        assert saver.secure() is None
        agreement.close()
        saver.settle()
        return state.step, safe


def test_training_goes_on_while_it_is_saved(tmp_path: Path) -> None:
    """On four ranks, weights that change during the write are not what is written; each save becomes safe in turn."""
    last, safe = run_ranks(4, trained, tmp_path, 3)[0]
    events = [event["step"] for event in ledger(tmp_path, "checkpoint")]
    assert len(events) >= 4
    assert sorted({*safe, *events} - {None}) == events
    assert len({*safe}) > 2
    assert saved(tmp_path) == [last, events[-2]]
    parts = {f"part-{rank:03d}.bin" for rank in range(4)}
    assert {p.name for p in (tmp_path / "checkpoints" / f"step-{last:08d}").iterdir()} == {"manifest.json", *parts}


def found(run: Path) -> tuple[int, float] | None:
    """The step that this rank resumes, and the sum of what it read."""
    with join(Config(device="cpu")) as world:
        loaded = newest_whole_checkpoint(RunFolder(run), world)
        return loaded and (loaded[2]["step"], sum(float(t.sum()) for t in loaded[1].values()))


def twice(run: Path) -> None:
    with saving(run) as (state, saver):
        assert [save_step(state, saver, step) for step in (1, 2)] == [1, 2]


@pytest.fixture(scope="module")
def of_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which four ranks saved steps 1 and 2, and the second one is damaged."""
    run = tmp_path_factory.mktemp("of-four")
    run_ranks(4, twice, run)
    os.truncate(run / "checkpoints" / "step-00000002" / "part-003.bin", 100)
    (run / "checkpoints" / "step-00000003.tmp").mkdir()
    return run


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_resumes_what_another_number_wrote(ranks: int, of_four: Path, tmp_path: Path) -> None:
    """Four wrote it; a damaged newer one is set aside and named, once, and what a killed save left is removed."""
    run = tmp_path / "run"
    shutil.copytree(of_four, run)
    assert run_ranks(ranks, found, run) == [(1, 1000 * (4 * 1 + 1.5))] * ranks
    (damaged,) = ledger(run, "damaged checkpoint")
    assert "step-00000002/part-003.bin has 100 bytes, not 4,032" in damaged["problem"]
    older, aside = sorted((run / "checkpoints").iterdir())
    assert (older.name, aside.name.partition("-1")[0]) == ("step-00000001", "step-00000002.damaged")
    os.truncate(older / "part-000.bin", 100)
    assert run_ranks(ranks, found, run) == [None] * ranks


def beside_a_slow_disk(run: Path) -> None:
    """The writer stands still, and ten steps go by."""
    with saving(run) as (state, saver):
        assert saver.writer.pid is not None
        os.kill(saver.writer.pid, signal.SIGSTOP)
        saver.save()
        for step in range(1, 11):
            state.train(step)
            assert not saver.due
            saver.advance(saver.written)
        assert saver.safe is None
        os.kill(saver.writer.pid, signal.SIGCONT)
        assert saver.finish() == 0
        saver.settle()
        assert saver.due


def test_a_slow_disk_delays_the_next_save_and_not_training(tmp_path: Path) -> None:
    """It is said once, and what is written then is what was to be saved."""
    run_ranks(1, beside_a_slow_disk, tmp_path)
    assert [event["behind"] for event in ledger(tmp_path, "checkpoint delayed")] == [0]
    assert saved(tmp_path) == [0]


def one_after_the_other(run: Path) -> int | None:
    """A save that cannot wait, an evaluation's, begins while the one before has no name yet."""
    with saving(run) as (state, saver):
        state.train(1)
        saver.save()
        wait_until(lambda: (saver.advance(0), saver.written)[1] == 1)
        assert saver.writer.pid is not None
        os.kill(saver.writer.pid, signal.SIGSTOP)
        saver.advance(1)
        state.train(2)
        saver.save()
        state.train(3)
        os.kill(saver.writer.pid, signal.SIGCONT)
        wait_until(lambda: (saver.advance(0), saver.safe)[1] is not None)
        assert saver.safe == 1
        safe = saver.finish()
        saver.settle()
        return safe


def test_a_save_may_begin_while_the_one_before_has_no_name_yet(tmp_path: Path) -> None:
    """Both become safe, each as the step that it is."""
    assert run_ranks(1, one_after_the_other, tmp_path) == [2]
    assert [event["step"] for event in ledger(tmp_path, "checkpoint")] == [1, 2]
    assert saved(tmp_path) == [2, 1]


def with_a_killed_writer(run: Path) -> list[int | None]:
    """Rank 1's writer is killed in the middle of its work, and so is rank 0's, when it is to give the name."""
    out = []
    with saving(run) as (state, saver):
        for step, victim in ((1, 1), (2, None), (3, 0), (4, None)):
            state.train(step)
            if saver.world.rank == victim:
                assert saver.writer.pid is not None
                os.kill(saver.writer.pid, signal.SIGSTOP)
                saver.save()
                os.kill(saver.writer.pid, signal.SIGKILL)
            saver.save()
            out.append(saver.finish())
    return out


def test_a_killed_writer_is_named_and_another_one_is_started(tmp_path: Path) -> None:
    """On any rank; the save is lost, training goes on, and the next one is written."""
    assert run_ranks(2, with_a_killed_writer, tmp_path) == [[None, 2, 2, 4]] * 2
    failed = ledger(tmp_path, "checkpoint failed")
    assert [(e["step"], e["safe"]) for e in failed] == [(1, None), (3, 2)]
    assert {e["error"] for e in failed} == {"the writing process was killed by SIGKILL"}
    assert saved(tmp_path) == [4, 2]


def killed(run: Path, after: float) -> None:
    """Saves without pause; all ranks are killed a while after the first save, wherever they are."""
    try:
        resumed = found_step(run)
        with saving(run, 30_000, safe=resumed) as (state, saver):
            (run / f"writer-{saver.world.rank}").write_text(str(saver.writer.pid))
            for step in itertools.count((resumed or 0) + 1):
                state.train(step)
                saver.save()
                with (run / f"safe-{saver.world.rank}").open("a") as file:
                    file.write(f"{saver.finish()}\n")
                if step == (resumed or 0) + 1:
                    threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    except RuntimeError:
        time.sleep(60)  # another rank went first


def found_step(run: Path) -> int | None:
    paths = find_checkpoints(RunFolder(run).checkpoints)
    return step_of(paths[0]) if paths else None


def test_a_kill_while_it_is_saved_loses_no_checkpoint(tmp_path: Path) -> None:
    """Two ranks, eight SIGKILLs at random: what was said to be safe is there and whole, and the writers are gone."""
    random_ = random.Random(1)
    for i in range(8):
        assert run_ranks(2, killed, tmp_path, random_.uniform(0, 0.1)) == [-signal.SIGKILL] * 2
        writers = [int(path.read_text()) for path in tmp_path.glob("writer-*")]
        wait_until(lambda: not any(runs(pid) for pid in writers), 5)  # noqa: B023
        safe = max(int(word) for path in tmp_path.glob("safe-*") for word in path.read_text().split())
        assert saved(tmp_path)[0] in (safe, safe + 1), i


def told_to_stop(run: Path) -> int | None:
    """Every signal goes to this rank and all that it started, while a save is written; then it leaves in order."""
    os.setpgid(0, 0)
    with saving(run, 2_000_000) as (state, saver):
        agreement, pid = Agreement(saver.world), saver.writer.pid
        agreement.install()
        state.train(1)
        saver.save()
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            os.killpg(0, number)
        state.train(2)
        assert agreement.look().stop
        assert saver.secure() is None
        assert saver.writer.pid == pid
        return saver.safe


def test_a_signal_to_the_whole_group_does_not_end_the_save(tmp_path: Path) -> None:
    """The one in flight becomes safe, and then the step of the stop."""
    assert run_ranks(1, told_to_stop, tmp_path) == [2]
    assert [event["step"] for event in ledger(tmp_path, "checkpoint")] == [1, 2]
    assert saved(tmp_path) == [2, 1]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A run whose checkpoints lie on a file system of 1 MiB: five of 160 kB and their manifests."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here, root alone may")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(run: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(run / "checkpoints")], check=True)


def on_a_full_disk(run: Path) -> tuple[list[int | None], str]:
    """Saves, with a disk that is full for a while; what was safe after each step, and what was said."""
    with redirect_stdout(io.StringIO()) as said, saving(run, 10_000) as (state, saver):
        safe = [save_step(state, saver, 1)]
        if saver.world.rank == 0:
            room = os.statvfs(run / "checkpoints")
            (run / "checkpoints" / "ballast").write_bytes(bytes(room.f_bavail * room.f_bsize - 100_000))
        dist.barrier()
        safe += [save_step(state, saver, step) for step in (2, 3)]
        if saver.world.rank == 0:
            (run / "checkpoints" / "ballast").unlink()
        dist.barrier()
        safe.append(save_step(state, saver, 4))
    return safe, said.getvalue()


def test_training_goes_on_beside_a_full_disk(tiny_disk: Path) -> None:
    """The old one stays, each later step tries again, the user is told once and at the end, and nothing half stays."""
    (safe, said), (others, nothing) = run_ranks(2, on_a_full_disk, tiny_disk)
    assert safe == others == [1, 1, 1, 4]
    assert said.splitlines() == [
        "step 2 cannot be saved: No space left on device; training goes on and tries again; "
        "step 1 is the newest safe one",
        "step 4 is saved, after all",
        f"2 saves failed on the way, see {tiny_disk}/ledger.jsonl",
    ]
    assert nothing == ""
    assert [e["error"] for e in ledger(tiny_disk, "checkpoint failed")] == ["No space left on device"] * 2
    assert sorted(path.name for path in (tiny_disk / "checkpoints").iterdir()) == ["step-00000001", "step-00000004"]
    assert saved(tiny_disk) == [4, 1]


def beside_one_that_stays(run: Path) -> str:
    """Saves, where the first one cannot be removed, because its new name is taken; what was said."""
    with redirect_stdout(io.StringIO()) as said, saving(run, cfg=replace(OFTEN, keep=1)) as (state, saver):
        save_step(state, saver, 1)
        (run / "checkpoints" / "step-00000001.tmp" / "taken").mkdir(parents=True)
        for step in (2, 3):
            save_step(state, saver, step)
            saver.settle()
    return said.getvalue()


def test_old_checkpoints_that_cannot_be_removed_are_told_once(tmp_path: Path) -> None:
    """Training and saving go on; the ledger has each time."""
    (said,) = run_ranks(1, beside_one_that_stays, tmp_path)
    assert said == "old checkpoints cannot be removed: Directory not empty\n"
    assert [e["error"] for e in ledger(tmp_path, "pruning failed")] == ["Directory not empty"] * 2
    assert saved(tmp_path) == [3, 1]


def in_an_emergency(run: Path, protected: set[int]) -> str | None:
    """A signal comes where there is room for two checkpoints and three are kept."""
    with saving(run, 10_000, replace(OFTEN, keep=3)) as (state, saver):
        for step in (1, 2, 3):
            assert save_step(state, saver, step) == step
        saver.protected = lambda: protected
        if saver.world.rank == 0:
            room = os.statvfs(run / "checkpoints")
            (run / "checkpoints" / "ballast").write_bytes(bytes(room.f_bavail * room.f_bsize - 100_000))
        dist.barrier()
        state.train(4)
        return saver.secure()


def test_an_emergency_save_makes_room(tiny_disk: Path) -> None:
    """The oldest go, the newest stays, and the protected one."""
    assert run_ranks(2, in_an_emergency, tiny_disk, {1}) == [None, None]
    assert saved(tiny_disk) == [4, 3, 1]


def test_a_stop_that_cannot_be_saved_says_what_is_safe(tiny_disk: Path) -> None:
    """Even without what may be removed there is no room: the newest one stays, and is named."""
    message = "step 4 is not saved: No space left on device; step 3 is the newest safe one"
    assert run_ranks(2, in_an_emergency, tiny_disk, {1, 2}) == [message] * 2
    assert saved(tiny_disk) == [3, 2, 1]


def read_only(run: Path) -> tuple[int | None, str | None]:
    with saving(run, 1000) as (state, saver):
        for step in (1, 2):
            save_step(state, saver, step)
        if saver.world.rank == 0:
            remount(run, "ro")
        dist.barrier()
        safe = save_step(state, saver, 3)
        return safe, saver.secure()


def test_a_folder_that_became_read_only_ends_nothing(tiny_disk: Path) -> None:
    """As after a fault of the file system; nothing is removed for a save that has no chance."""
    message = "step 3 is not saved: Read-only file system; step 2 is the newest safe one"
    assert run_ranks(2, read_only, tiny_disk) == [(2, message)] * 2
    remount(tiny_disk, "rw")
    assert saved(tiny_disk) == [2, 1]


def beside_faults(run: Path, call: str) -> list[int | None]:
    """Each of the writer's system calls of a name fails, while strace is there."""
    with saving(run) as (state, saver):
        out = [save_step(state, saver, 1)]
        options = ["-e", f"trace={call}", "-e", f"inject={call}:error=EIO", "-o", str(run / "trace")]
        with subprocess.Popen(
            ["strace", "-f", "-p", str(saver.writer.pid), *options], stderr=subprocess.PIPE
        ) as strace:
            assert strace.stderr is not None
            if b"attached" not in strace.stderr.readline():
                return []
            out.append(save_step(state, saver, 2))
            strace.send_signal(signal.SIGINT)
        return [*out, save_step(state, saver, 3)]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("call", ["openat", "mkdir", "fsync", "rename"])
def test_an_error_of_the_disk_fails_the_save_and_nothing_else(call: str, tmp_path: Path) -> None:
    """EIO of whichever call, the fsync of a folder too: the one before stays, and the next one is written."""
    (safe,) = run_ranks(1, beside_faults, tmp_path, call)
    if not safe:
        pytest.skip("strace may not attach here")
    assert safe == [1, 1, 3]
    assert [e["error"] for e in ledger(tmp_path, "checkpoint failed")] == ["Input/output error"]
    assert saved(tmp_path) == [3, 1]


def traced(run: Path) -> bool:
    """A save whose system calls strace writes down; False if it may not."""
    with saving(run) as (state, saver):
        command = [
            "strace",
            "-f",
            "-y",
            "-p",
            str(saver.writer.pid),
            "-e",
            "trace=fsync,rename",
            "-o",
            str(run / "trace"),
        ]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as strace:
            assert strace.stderr is not None
            attached = b"attached" in strace.stderr.readline()
            save_step(state, saver, 1)
            strace.send_signal(signal.SIGINT)
    return attached


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_name_comes_after_everything_is_on_the_disk(tmp_path: Path) -> None:
    """Part, manifest, their folder and the logs are synced before the rename, and the folders of all after it."""
    for log in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / log).write_text("{}\n")
    if run_ranks(1, traced, tmp_path) != [True]:
        pytest.skip("strace may not attach here")
    calls = re.findall(r"(fsync|rename)\((?:\d+<|\")([^>\"]*)", (tmp_path / "trace").read_text())
    aside = "checkpoints/step-00000001.tmp"
    synced = ("part-000.bin", "manifest.json")
    assert [(call, path.removeprefix(f"{tmp_path}/")) for call, path in calls] == [
        *(("fsync", f"{aside}/{name}") for name in synced),
        *(("fsync", aside), ("fsync", "metrics.jsonl"), ("fsync", "samples.jsonl")),
        *(("rename", aside), ("fsync", "checkpoints"), ("fsync", str(tmp_path))),
    ]


def test_the_interval_is_youngs_and_dalys() -> None:
    """Twice the cost or the time between failures makes it 1.4 times as long; bounds at both ends."""
    day = 86_400.0
    assert interval(1, day) == pytest.approx((2 * day) ** 0.5, rel=0.01)
    assert interval(2, day) / interval(1, day) == pytest.approx(2**0.5, rel=0.01)
    assert interval(1, 2 * day) / interval(1, day) == pytest.approx(2**0.5, rel=0.01)
    # The least of the expected loss, for failures that come at random: the model of Daly's paper, by trying them all.
    cost, mean = 30.0, 6000.0
    loss = {t: mean / t * math.expm1((t + cost) / mean) for t in range(60, 1800)}
    assert abs(interval(cost, mean) - min(loss, key=lambda t: loss[t])) <= 2
    assert interval(1e-3, day) == SHORTEST
    assert interval(1e3, day) == interval(10, 1) == LONGEST


def chosen(run: Path, hours: float) -> float:
    cfg = CheckpointConfig(expected_failure_hours=hours)
    with saving(run, 10, cfg) as (state, saver):
        assert saver.every == SHORTEST
        save_step(state, saver, 1)
        assert not saver.due
        return saver.every


def test_the_interval_follows_from_what_a_save_costs(tmp_path: Path) -> None:
    """Measured at the first one, a minute after the start: a longer time between failures, a longer interval."""
    often, seldom = run_ranks(1, chosen, tmp_path / "a", 0.1) + run_ranks(1, chosen, tmp_path / "b", 1e7)
    assert (often, seldom) == (SHORTEST, LONGEST)
