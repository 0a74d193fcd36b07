"""Real ranks that are slowed are found while they train, with their node and what they are slow at."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from tests.helpers.background import stopped_most_of_the_time
from tests.helpers.data_sets import small_config
from tests.helpers.interrupted_runs import new_run_folder
from tests.helpers.ranks import run_ranks
from vit.config.schema import Config
from vit.distributed.world import join_process_group
from vit.run.clock import Clock
from vit.run.folder import NODE_VARIABLE, RunFolder
from vit.run.jsonl import read_lines
from vit.run.rank_log import RECOVERED, SLOW, path_of
from vit.run.slow_ranks import FIELDS
from vit.train import Trainer

LATE_RANK, STOPPED_RANK = 2, 3
WINDOW_SECONDS, RATIO = 4.0, 1.3  # the test's machine is busy with other tests, and a window is short
PATIENCE = 60.0


def slow_config(betons: Path) -> Config:
    """Steps without end, whose times are shared after each fifth."""
    cfg = small_config(betons)
    return replace(
        cfg,
        epochs=10**6,
        log=replace(cfg.log, every_steps=5, eval_every_epochs=10**6),
        checks=replace(cfg.checks, slow_rank_seconds=WINDOW_SECONDS, slow_rank_ratio=RATIO),
    )


def train_until_told(cfg: Config, run: Path) -> str:
    """While there is a file `late`, a rank's decoding threads sleep; the run stops when there is a file `stop`."""
    os.environ[NODE_VARIABLE] = f"n{int(os.environ['RANK']) // 2 + 1}"
    with join_process_group(cfg) as world:
        trainer = Trainer(cfg, RunFolder(run), world, Clock(time.time()), [])
        decoder = trainer.train_data.reader.decoder
        decode = decoder.decode

        def decode_late(*args: Any) -> Any:
            if world.rank == LATE_RANK and (run / "late").exists():
                time.sleep(0.2)
            return decode(*args)

        decoder.decode = decode_late  # type: ignore[method-assign]
        (run / f"process-{world.rank}").write_text(str(os.getpid()))
        if world.rank == 0:
            threading.Thread(target=stop_when_told, args=(run / "stop",), daemon=True).start()
        outcome = trainer.train()
        trainer.agreement.close()
        trainer.saver.close()
        return outcome.value


def stop_when_told(file: Path) -> None:
    while not file.exists():
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)


def slow_events(run: Path) -> list[tuple[object, ...]]:
    events = RunFolder(run).events()
    return [(e["event"], e["rank"], e["node"], e.get("what")) for e in events if e["event"] in (SLOW, RECOVERED)]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)


def disturb(run: Path, seen: dict[str, list[tuple[object, ...]]]) -> None:
    """Slows one rank after the other, each until that is in the ledger, and then ends the run."""
    try:
        until(lambda: len(read_lines(run / "metrics.jsonl")) > 1)
        time.sleep(1.5 * WINDOW_SECONDS)
        seen["undisturbed"] = slow_events(run)
        (run / "late").touch()
        until(lambda: len(slow_events(run)) >= 1)
        (run / "late").unlink()
        until(lambda: len(slow_events(run)) >= 2)
        seen["late"] = slow_events(run)
        process = psutil.Process(int((run / f"process-{STOPPED_RANK}").read_text()))
        with stopped_most_of_the_time(process):
            until(lambda: len(slow_events(run)) >= 3)
        seen["stopped"] = slow_events(run)
    finally:
        (run / "stop").touch()


def test_a_slowed_rank_is_named_with_its_node_and_what_it_is_slow_at(betons: Path, tmp_path: Path) -> None:
    """One whose data threads sleep, until they no longer do; then one that is stopped again and again."""
    run, seen = new_run_folder(tmp_path / "run"), dict[str, list[tuple[object, ...]]]()
    thread = threading.Thread(target=disturb, args=(run, seen))
    thread.start()
    assert run_ranks(4, train_until_told, slow_config(betons), run, timeout=4 * PATIENCE) == ["stopped"] * 4
    thread.join()
    assert seen["undisturbed"] == []
    late = [(SLOW, LATE_RANK, "n2", "data"), (RECOVERED, LATE_RANK, "n2", None)]
    assert seen["late"] == late
    assert seen["stopped"] == [*late, (SLOW, STOPPED_RANK, "n2", "forward and backward")]

    (event, *_) = (e for e in RunFolder(run).events() if e["event"] == SLOW)
    assert event["ratio"] > RATIO
    assert event["seconds"] > event["others"]
    slowest = {r["slowest_rank"] for r in read_lines(run / "metrics.jsonl") if r.get("slowest_ratio", 0) > RATIO}
    assert slowest == {LATE_RANK, STOPPED_RANK}
    records = read_lines(path_of(RunFolder(run).logs))
    assert [record["nodes"] for record in records] == [["n1", "n1", "n2", "n2"]] * len(records)
    assert all(len(row) == len(FIELDS) for record in records for row in record["ranks"])
