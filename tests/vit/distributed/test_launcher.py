"""What ranks learn from their launcher, and that they end with it."""

import ctypes
import itertools
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.helpers.local_runs import ranks_of, settings
from tests.helpers.paths import ROOT
from tests.helpers.waiting import wait_for
from vit.config.user_error import UserError
from vit.distributed.launcher import RANK_VARIABLES, Place, read_place
from vit.run.folder import RunFolder

COMPLETE = dict(zip(RANK_VARIABLES, ("3", "4", "1", "2", "localhost", "1234"), strict=True))


def test_a_rank_reads_its_place_from_the_environment() -> None:
    """Without a launcher it is the only one, even if an address is left in the environment."""
    assert read_place(COMPLETE) == Place(rank=3, size=4, local_rank=1, local_size=2)
    assert read_place({"MASTER_ADDR": "localhost", "MASTER_PORT": "1234"}) == Place(0, 1, 0, 1)


@pytest.mark.parametrize("missing", RANK_VARIABLES)
def test_an_incomplete_set_of_variables_is_refused(missing: str) -> None:
    """The message names what is missing and what to do."""
    environment = {name: value for name, value in COMPLETE.items() if name != missing}
    with pytest.raises(UserError, match=f"but not {missing}: `unset .*` to use one process, or .* with torchrun"):
        read_place(environment)


@pytest.mark.parametrize("wrong", [{"RANK": "4"}, {"RANK": "-1"}, {"WORLD_SIZE": "x"}, {"LOCAL_RANK": "2"}])
def test_numbers_that_are_not_those_of_a_rank_are_refused(wrong: dict[str, str]) -> None:
    """The message names them."""
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"{name}={re.escape(value)}"):
        read_place(COMPLETE | wrong)


@pytest.mark.parametrize("left_over", ["WORLD_SIZE", "RANK"])
def test_training_with_a_variable_left_over_from_another_command_ends_at_once(left_over: str, tmp_path: Path) -> None:
    """It would wait for ranks that nobody starts, or print nothing because it is not rank 0."""
    command = [sys.executable, "-m", "vit.train", "--config", str(ROOT / "configs" / "demo.yaml"), "--run-dir", "run"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), left_over: "2"}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"vit.train: the environment has {left_over}=2, but not "), done.stderr
    assert not (tmp_path / "run").exists()


def become_subreaper() -> None:
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def start_torchrun(folder: Path, betons: Path) -> "subprocess.Popen[bytes]":
    """A shell that inherits all orphans, as init does, with torchrun and two ranks below it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
    command += ["--nproc-per-node", "2", "-m", "vit.train", "--config", str(ROOT / "configs" / "demo.yaml")]
    command += ["--run-dir", str(folder / "run"), *settings(betons, epochs=5000)]
    return subprocess.Popen(
        ["sh", "-c", '"$@" & while :; do sleep 1 & wait $!; done', "sh", *command],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, preexec_fn=become_subreaper,  # noqa: PLW1509
    )  # fmt: skip


def running_ranks(folder: Path) -> list[psutil.Process]:
    """Without the shell and torchrun, which have the command line of the ranks in theirs."""
    out = []
    for process in ranks_of(RunFolder(folder / "run")):
        with suppress(psutil.NoSuchProcess):
            if "torch.distributed.run" not in process.cmdline():
                out.append(process)
    return out


def test_ranks_end_if_torchrun_is_killed_while_they_import(betons: Path, tmp_path: Path) -> None:
    """At once, or a moment later.  Else they would wait for each other, and hold the run folder, for minutes."""
    delays = {tmp_path / str(seconds): seconds for seconds in (0.0, 0.03, 0.4)}
    shells = []
    try:
        for folder in delays:
            folder.mkdir()
            shells.append(start_torchrun(folder, betons))
        pending = set(delays)
        while pending:
            for folder in sorted(pending):
                if len(ranks := running_ranks(folder)) == 2:
                    time.sleep(delays[folder])
                    psutil.Process(ranks[0].ppid()).kill()
                    pending.remove(folder)
        wait_for(lambda: not any(map(running_ranks, delays)), "the end of all ranks", seconds=15)
    finally:
        for process in [*itertools.chain(*map(running_ranks, delays)), *shells]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for shell in shells:
            shell.wait()
