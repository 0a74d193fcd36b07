"""Weights & Biases has every record once, whatever happens to it, and training never waits for it or fails with it."""

import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.helpers.data_sets import small_config
from tests.helpers.disks import tmpfs_mounted
from tests.helpers.paths import CHECKOUT
from tests.helpers.ports import free_ports
from tests.helpers.records import evaluation_record, training_record
from tests.helpers.waiting import wait_for
from tests.helpers.wandb_server import WandbServer
from vit.config.schema import Config, to_yaml
from vit.config.sections import LogConfig
from vit.run import wandb_log
from vit.run.folder import RunFolder
from vit.run.jsonl import Record, read_lines
from vit.run.metrics import MetricsLog
from vit.run.wandb_log import WandbLog, read_registration, send_command

ONLINE = Config(log=LogConfig(wandb="online", wandb_project="my-project"))
OFFLINE = replace(ONLINE, log=replace(ONLINE.log, wandb="offline"))
SEND = [sys.executable, "-m", wandb_log.SENDER]


def registered_id(run: RunFolder) -> str:
    """The id of the run of Weights & Biases that a folder logs to."""
    registration = read_registration(run)
    assert registration is not None
    return str(registration["id"])


def sent(server: WandbServer, run: RunFolder) -> list[Record]:
    """What the server has of a run, without wandb's own values; asserts that `_step` counts the records."""
    history = server.history(registered_id(run))
    assert [record["_step"] for record in history] == list(range(len(history)))
    return [{k: v for k, v in record.items() if not k.startswith("_")} for record in history]


def handed_over(run: RunFolder) -> int:
    """How many records wandb has, whether or not they have arrived at the server."""
    return len(read_lines(run.path / "wandb_sent.jsonl"))


def send_by_hand(run: RunFolder) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SEND, str(run.path)], cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60)


def sender_of(log: MetricsLog) -> psutil.Process:
    """The process that sends the records of a log."""
    assert isinstance(log._wandb, WandbLog)
    assert log._wandb._process is not None
    return psutil.Process(log._wandb._process.pid)


def test_the_server_has_each_record_once_after_outages_and_kills(
    server: WandbServer, run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server fails while training, everything is killed, and a resumed attempt repeats steps."""
    monkeypatch.setattr(wandb_log, "MIN_RETRY_SECONDS", 0.0)
    records = [training_record(step, loss=1 / step) for step in range(1, 8)]
    evaluation = evaluation_record(4)
    log = MetricsLog(run, ONLINE, step=0)
    for record in records[:3]:
        log.write(record)
    log.close()
    assert len(sent(server, run)) == 3

    log = MetricsLog(run, ONLINE, step=3)
    log.write(records[3])
    wait_for(lambda: handed_over(run) == 4, "a record is handed over to wandb")
    server.mode = "500"
    for record in (evaluation, records[4]):
        log.write(record)
    wait_for(lambda: handed_over(run) == 6, "the others are handed over as well")
    sender = sender_of(log)
    for process in [*sender.children(recursive=True), sender]:
        process.kill()
    assert log._wandb is not None
    wait_for(log._wandb._ended, "it is killed")
    log.write(records[5])  # notices the death, and starts another process
    assert sender_of(log) != sender
    log._wandb._end()  # kills it, as if this attempt had been killed as well
    assert len(sent(server, run)) < 6
    server.mode = "ok"

    resumed = MetricsLog(run, ONLINE, step=2)
    for record in [*records[2:4], evaluation, *records[4:]]:
        resumed.write(record | ({"images_per_second": 5.0} if "loss" in record else {}))
    resumed.close()
    expected = [*records[:4], evaluation, *records[4:]]
    assert [(r["step"], r.get("loss")) for r in sent(server, run)] == [(r["step"], r.get("loss")) for r in expected]
    out = capsys.readouterr().out
    assert out.count("training continues, and the records are sent later") == 1
    assert server.url in out
    stored = server.runs[registered_id(run)]
    assert (stored["project"], stored["displayName"]) == ("my-project", "my-run")
    assert stored["config"]["optim.lr"]["value"] == ONLINE.optim.lr

    again = send_by_hand(run)  # nothing is left to send
    assert (again.returncode, len(sent(server, run))) == (0, 8), again.stdout + again.stderr


@pytest.mark.parametrize("fault", ["refused", "silent", "500", "no key", "unknown host", "full disk"])
def test_training_goes_on_without_weights_and_biases(
    fault: str,
    server: WandbServer,
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Starting and logging take no time, the end waits a limited time, and one line says what to do.

    With "silent" and "500", the records are sent when the server works again, by the command that this line names.
    """
    monkeypatch.setattr(wandb_log, "FINISH_SECONDS", 1.5)
    if fault in ("silent", "500"):
        server.mode = fault  # type: ignore[assignment]
    elif fault == "refused":
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    elif fault == "unknown host":
        monkeypatch.setenv("WANDB_BASE_URL", "http://no-such-host.invalid")
    elif fault == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
    disk = tmp_path / "disk"
    disk.mkdir()
    with tmpfs_mounted(disk, "8k"):
        if fault == "full disk":
            (disk / "ballast").write_bytes(bytes(4096))
            monkeypatch.setattr("tempfile.tempdir", str(disk))
        started = time.monotonic()
        log = MetricsLog(run, ONLINE, step=0)
        for step in (1, 2, 3):
            log.write(training_record(step))
        assert time.monotonic() - started < 1
        log.close()
        assert time.monotonic() - started < 5
    assert [r["step"] for r in read_lines(run.metrics)] == [1, 2, 3]
    out = capsys.readouterr().out
    assert out.count("; training continues, and the records are sent later") == 1
    command = send_command(run)
    assert f"Weights & Biases does not have all records of this run; to send them: {command}\n" in out
    assert [event["event"] for event in run.events()] == ["wandb problem", "wandb unsent"]
    assert run.events()[-1]["command"] == command
    if fault in ("silent", "500"):
        server.mode = "ok"
        server.answer.set()
        done = send_by_hand(run)
        assert done.returncode == 0, done.stdout + done.stderr
        assert [r["step"] for r in sent(server, run)] == [1, 2, 3]


def test_what_a_full_disk_delays_is_sent_when_there_is_space_again(
    server: WandbServer, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk of the run folder is full when training starts: neither the records nor the run's id can be written."""
    monkeypatch.setattr(wandb_log, "MIN_RETRY_SECONDS", 0.0)
    run, ballast = RunFolder(tiny_disk / "run"), tiny_disk / "ballast"
    run.path.mkdir()
    with suppress(OSError):
        ballast.write_bytes(bytes(2_000_000))
    log = MetricsLog(run, ONLINE, step=0)
    for step in (1, 2):
        log.write(training_record(step))
    ballast.unlink()
    log.write(training_record(3))
    log.close()
    assert [r["step"] for r in sent(server, run)] == [1, 2, 3]
    assert capsys.readouterr().out.count("No space left on device") == 1


def test_stopping_waits_less_than_finishing(
    server: WandbServer, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a job is preempted there is little time.  Not even a process that is suspended can delay it."""
    monkeypatch.setattr(wandb_log, "STOP_SECONDS", 0.2)
    log = MetricsLog(run, ONLINE, step=0)
    wait_for(lambda: server.requests, "the sender asks the server")
    sender = sender_of(log)
    started = time.monotonic()
    for process in [sender, *sender.children(recursive=True)]:
        process.suspend()
    log.write(training_record(1))
    log.close(finished=False)
    assert time.monotonic() - started < 1
    assert not sender.is_running()


def test_an_offline_run_is_sent_by_the_command_that_it_names(server: WandbServer, run: RunFolder) -> None:
    """Two attempts, the second of which repeats a step and is to last longer: one run with each record once."""
    for step, steps, total in ((0, (1, 2, 3), 3), (2, (3, 4), 9)):
        log = MetricsLog(run, OFFLINE, step)
        for number in steps:
            log.write(training_record(number) | {"steps": total})
        log.close()
        if step == 0:
            assert server.requests == 0
            assert send_by_hand(run).returncode == 0
            server.requests = 0
    assert server.requests == 0
    done = send_by_hand(run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [r["step"] for r in sent(server, run)] == [1, 2, 3, 4]
    other = subprocess.run([*SEND, str(run.path / "none")], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert other.stderr.endswith("none is not a run that was trained with --log.wandb online or offline\n")


@pytest.mark.parametrize("name", ["a$HOME", "~"])
def test_a_folder_whose_name_looks_like_a_variable_is_found_by_the_sender(
    server: WandbServer, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands expand the paths that they are given, and training gives one to the sender."""
    monkeypatch.chdir(tmp_path)
    run = RunFolder(Path(name))
    run.path.mkdir()
    log = MetricsLog(run, ONLINE, step=0)
    log.write(training_record(1))
    log.close()
    assert [r["step"] for r in sent(server, run)] == [1]


def test_a_copied_run_folder_logs_to_a_run_of_its_own(
    server: WandbServer, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all records.  A folder that was moved continues its run."""
    log = MetricsLog(run, ONLINE, step=0)
    log.write(training_record(1))
    log.close()
    first = registered_id(run)
    moved = RunFolder(run.path.rename(run.path.with_name("moved")))
    copy = RunFolder(Path(shutil.copytree(moved.path, moved.path.with_name("copy"))))
    for folder, loss in ((moved, 2.0), (copy, 3.0)):
        log = MetricsLog(folder, OFFLINE, step=1)
        log.write(training_record(2, loss=loss))
        log.close()
        assert send_by_hand(folder).returncode == 0
    assert registered_id(moved) == first != registered_id(copy)
    assert [r["loss"] for r in sent(server, moved)] == [1.0, 2.0]
    assert [r["loss"] for r in sent(server, copy)] == [1.0, 3.0]
    assert capsys.readouterr().out.count("is a copy, or was moved to another file system; it logs to a new run") == 1


def test_a_run_of_an_older_version_is_continued(server: WandbServer, run: RunFolder) -> None:
    """It has a file with an id, and its records were sent while it trained."""
    (run.path / "wandb_id").write_text("older123")
    server.runs["older123"]["history"] = [json.dumps(training_record(step) | {"_step": step - 1}) for step in (1, 2)]
    run.metrics.write_text("".join(json.dumps(training_record(step)) + "\n" for step in (1, 2)))
    for step in (2, 3):
        log = MetricsLog(run, OFFLINE, step)
        log.write(training_record(step + 1))
        log.close()
    assert send_by_hand(run).returncode == 0
    assert registered_id(run) == "older123"
    assert [r["step"] for r in sent(server, run)] == [1, 2, 3, 4]


def test_a_run_that_begins_again_with_other_values_gets_a_new_run(server: WandbServer, run: RunFolder) -> None:
    """And the first one keeps its own.  Beginning again with the same values, e.g. before the first save, does not."""
    ids = []
    for steps, loss in ((1, 1.0), (2, 1.0), (1, 2.0)):
        log = MetricsLog(run, OFFLINE, step=0)
        for step in range(1, steps + 1):
            log.write(training_record(step, loss=loss))
        log.close()
        assert send_by_hand(run).returncode == 0
        ids.append(registered_id(run))
    assert ids[0] == ids[1] != ids[2]
    assert [[r["loss"] for r in server.history(run_id)] for run_id in (ids[0], ids[2])] == [[1.0, 1.0], [2.0]]


TRAIN = """
import sys
from vit import train
from vit.run import wandb_log
wandb_log.FINISH_SECONDS = 1
train.main(sys.argv[1:])
"""


def test_a_training_finishes_although_the_server_never_answers(
    server: WandbServer, betons: Path, run: RunFolder
) -> None:
    """Exit code 0, and the ledger says `finished`."""
    server.mode = "silent"
    run.config.write_text(to_yaml(replace(small_config(betons), epochs=1, log=replace(ONLINE.log, every_steps=1))))
    command = [sys.executable, "-c", TRAIN, "--config", str(run.config), "--run-dir", str(run.path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [e["event"] for e in run.events()][-3:] == ["finished", "wandb problem", "wandb unsent"]
