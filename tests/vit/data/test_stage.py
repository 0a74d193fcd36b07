"""Data sets on a node's own disk: copied once, whole or not there; whatever goes wrong with that, the run trains on."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.data_sets import small_config
from tests.helpers.ranks import run_ranks
from tests.helpers.slurm_cluster import wait_for
from vit import train
from vit.config.schema import Config, DataConfig
from vit.data import stage
from vit.data.beton import open_beton
from vit.data.damage import check_pages
from vit.data.dataset_manifest import manifest_path
from vit.data.decode import DamagedDataError
from vit.data.stage import Copier, staged
from vit.distributed.world import join
from vit.run.clock import Clock
from vit.run.folder import RunFolder

PAGE = 65_536

# A process that copies from a slow disk, page by page.
SLOW = """
import sys, time
from pathlib import Path
from vit.data import stage
fast = stage.read_into
def slow(*arguments):
    time.sleep(0.02)
    fast(*arguments)
stage.read_into, stage.STREAMS, stage.LOOK_SECONDS = slow, 2, 0.05
copier = stage.Copier((Path(sys.argv[1]),), Path(sys.argv[2]), True)
copier.run()
print(copier.copied, copier.problem)
"""


@pytest.fixture
def shared(jpegs: Path, tmp_path: Path) -> Path:
    """A data set on the file system that all nodes see, of a hundred small pages and more."""
    path = tmp_path / "shared" / "train.beton"
    path.parent.mkdir()
    shutil.copy(jpegs, path)
    content, manifest = path.read_bytes(), json.loads(manifest_path(jpegs).read_text())
    digests = [hashlib.sha256(content[at : at + PAGE]).hexdigest() for at in range(0, len(content), PAGE)]
    assert len(digests) > 100
    manifest_path(path).write_text(json.dumps(manifest | {"page_size": PAGE, "pages": digests}))
    return path


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A folder of the node's own."""
    return tmp_path / "local"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def config(data: Path, folder: Path) -> Config:
    cfg = small_config(data)
    return replace(cfg, data=replace(cfg.data, stage=str(folder)))


def paths(cfg: Config, run: Path) -> tuple[Path, Path]:
    """Where a rank then reads its training and validation set."""
    with join(cfg) as world:
        here = staged(cfg, RunFolder(run), world, Clock(time.time()), lambda: False)
        return here.data.train, here.data.val


def copied(run: Path) -> list[int]:
    """The bytes that each attempt copied; pages of zeros are holes of the new file, and need no copying."""
    return [e["copied"] for e in RunFolder(run).events() if e["event"] == "staged"]


def copy_slowly(source: Path, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SLOW, str(source), str(folder / f"vit-data-{os.getuid()}")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def aside(folder: Path) -> Path | None:
    return next(folder.rglob("*.tmp"), None)


def whole(source: Path, folder: Path) -> Path:
    """The copy, which must be one."""
    (path,) = folder.rglob("train.beton")
    assert path.read_bytes() == source.read_bytes()
    assert manifest_path(path).read_bytes() == manifest_path(source).read_bytes()
    assert aside(folder) is None
    return path


def test_all_ranks_of_a_node_read_one_copy_and_so_does_the_next_attempt(
    shared: Path, local: Path, tmp_path: Path
) -> None:
    """Copied once, then found; a copy that was cut short, or whose end is another, is made again."""
    cfg, size = config(shared, local), shared.stat().st_size
    content = shared.read_bytes()
    assert len({*run_ranks(4, paths, cfg, tmp_path)}) == 1
    path = whole(shared, local)
    assert run_ranks(2, paths, cfg, tmp_path) == [(path, path)] * 2
    once = copied(tmp_path)[0]
    assert once > PAGE * sum(any(content[at : at + PAGE]) for at in range(0, size - PAGE, PAGE))
    assert copied(tmp_path) == [once, 0]
    os.truncate(path, size - 1)
    assert run_ranks(1, paths, cfg, tmp_path) == [(path, path)]
    with path.open("r+b") as file:
        file.seek(size - 1)
        file.write(bytes([content[-1] ^ 1]))
    assert run_ranks(1, paths, cfg, tmp_path) == [(path, path)]
    whole(shared, local)
    assert min(copied(tmp_path)[2:]) > once / 2
    assert len(copied(tmp_path)) == 4
    check_pages(open_beton(path), range(size // PAGE))


def test_a_copy_that_was_killed_is_never_used_and_goes_on(shared: Path, local: Path, tmp_path: Path) -> None:
    """SIGKILL half-way, and a page that the disk then forgets: only what is missing is copied."""
    process = copy_slowly(shared, local)
    wait_for(lambda: (part := aside(local)) and part.stat().st_size > 40 * PAGE, "the copy")
    process.kill()
    process.communicate()
    part = aside(local)
    assert part is not None
    assert not list(local.rglob("train.beton"))
    with part.open("r+b") as file:
        file.write(bytes(PAGE))
    run_ranks(2, paths, config(shared, local), tmp_path)
    whole(shared, local)
    assert 0 < copied(tmp_path)[0] <= shared.stat().st_size - 30 * PAGE


def test_two_jobs_on_a_node_copy_once(shared: Path, local: Path) -> None:
    """The second waits for the first, and takes over if that is killed."""
    first = copy_slowly(shared, local)
    wait_for(lambda: (part := aside(local)) and part.stat().st_size > 20 * PAGE, "the copy")
    second = copy_slowly(shared, local)
    wait_for(lambda: psutil.Process(second.pid).open_files() or second.poll() is not None, "the second one")
    first.kill()
    killed = first.communicate()[0] == ""
    copied = int(second.communicate(timeout=120)[0])
    whole(shared, local)
    assert copied < shared.stat().st_size - 10 * PAGE
    assert (copied > 0) == killed, "on a slow machine the first may be done before the second begins"


def stopped_while_copying(cfg: Config, run: Path) -> str:
    """An attempt whose copy would take for ever; the last rank gets a SIGTERM."""
    fast = stage.read_into

    def hold(source: Path, *arguments: Any) -> None:
        fast(source, *arguments)
        time.sleep(0.5)

    def interrupt() -> None:
        wait_for(lambda: signal.getsignal(signal.SIGTERM) != signal.SIG_DFL and aside(Path(cfg.data.stage)), "the copy")
        os.kill(os.getpid(), signal.SIGTERM)

    stage.read_into, stage.STREAMS = hold, 1
    with join(cfg) as world:
        if world.rank == 3:
            threading.Thread(target=interrupt, daemon=True).start()
        return train.attempt(cfg, RunFolder(run), world, Clock(time.time()), []).value


def test_a_signal_ends_the_copying_on_all_ranks(shared: Path, local: Path, tmp_path: Path) -> None:
    """One of four gets it, and all leave as stopped; what is copied by then stays for the next attempt."""
    cfg = config(shared, local)
    assert run_ranks(4, stopped_while_copying, cfg, tmp_path) == ["stopped"] * 4
    (event,) = RunFolder(tmp_path).events()
    assert (event["event"], event["step"]) == ("stopped", 0)
    assert aside(local)
    run_ranks(4, paths, cfg, tmp_path)
    whole(shared, local)


@pytest.mark.parametrize("spare", [1 << 30, -1 << 30])
def test_a_disk_without_room_is_said_and_the_run_reads_where_the_data_are(
    spare: int, shared: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found out before the copy; or during it, as others write too: nothing is left to take their room."""
    monkeypatch.setattr(stage, "SPARE", spare)
    copier = Copier((shared,), small_disk, verify=True)
    copier.run()
    copier.tell(RunFolder(tmp_path))
    (event,) = RunFolder(tmp_path).events()
    assert event["event"] == "not staged"
    assert f"{shared} is read where it is" in event["why"]
    assert ("are needed there" if spare > 0 else "No space left") in event["why"]
    assert not [path for path in small_disk.rglob("*") if path.is_file()]
    assert run_ranks(2, paths, config(shared, small_disk), tmp_path) == [(shared, shared)] * 2


def test_a_data_set_that_is_not_what_was_written_is_found_out_while_it_is_copied(
    shared: Path, local: Path, tmp_path: Path
) -> None:
    """It names the page, and no copy is made; who asked for no such check gets the bytes as they are."""
    content = shared.read_bytes()
    page = next(page for page in range(50, 256) if any(content[page * PAGE : (page + 1) * PAGE]))
    with shared.open("r+b") as file:
        file.seek(page * PAGE + 7)
        file.write(b"oops")
    cfg = config(shared, local)
    with pytest.raises(
        DamagedDataError, match=rf"train\.beton: page {page}, 65,536 bytes at {page * PAGE:,}, is not what was written"
    ):
        run_ranks(1, paths, cfg, tmp_path)
    assert not list(local.rglob("train.beton"))
    run_ranks(1, paths, replace(cfg, data=replace(cfg.data, verify="never")), tmp_path)
    whole(shared, local)


def test_the_folder_is_named_by_the_nodes_own_environment(
    shared: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`$TMPDIR` stays `$TMPDIR` in the config; one that a node does not have is an error that says so."""
    options: dict[str, Any] = {"train": shared, "val": shared}
    with pytest.raises(ValueError, match=r"data\.stage must be an absolute path .* not scratch"):
        DataConfig(**options, stage="scratch")
    cfg = config(shared, Path("$VIT_TEST_SCRATCH/sets"))
    monkeypatch.delenv("VIT_TEST_SCRATCH", raising=False)
    with pytest.raises(ValueError, match=r"data\.stage \$VIT_TEST_SCRATCH/sets: .* has no such variable"):
        stage.expand(cfg.data.stage)
    monkeypatch.setenv("VIT_TEST_SCRATCH", str(local))
    assert stage.expand(cfg.data.stage) == local / "sets"
