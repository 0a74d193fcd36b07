"""Claims of a run by its jobs: whatever dies or cannot be read, no number is claimed twice."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.node.candidates import Candidate
from jobs.node.ownership import Answer, Claim, Owners
from tests.helpers.paths import ROOT

RACER = """
import sys, time
from pathlib import Path
from jobs.node.candidates import Candidate
from jobs.node.ownership import Claim, Owners
run, start, begin = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
owners, won = Owners(run), []
time.sleep(max(0, begin - time.time()))
while len(owners.claims()) < 40:
    newest = owners.newest()
    if owners.claim(Claim(Candidate(start, 1, 1), f"{start}.0", "n1", 0.0), 1 + (newest.number if newest else 0)):
        won.append(1)
"""


def claim_of(job: str, restarts: int = 0, ranks: int = 1) -> Claim:
    """What a start of a job would claim."""
    return Claim(Candidate(job, 1, ranks), f"{job}.{restarts}", "n1", 0.0)


def start_racers(run: Path, count: int) -> list["subprocess.Popen[bytes]"]:
    """Processes that claim numbers as fast as they can, from the same moment on."""
    begin = str(time.time() + 2)
    return [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(run), str(job), begin], cwd=run, env={"PYTHONPATH": str(ROOT)}
        )
        for job in range(count)
    ]


def test_of_many_processes_one_gets_each_number(tmp_path: Path) -> None:
    """Forty numbers, eight processes, two of which are killed in between: no gap, and no number has two owners."""
    racers = start_racers(tmp_path, 8)
    owners = Owners(tmp_path)
    while len(owners.claims()) < 10:
        assert any(racer.poll() is None for racer in racers)
        time.sleep(0.005)
    for racer in racers[:2]:
        racer.send_signal(signal.SIGKILL)
        racer.wait()
    assert [racer.wait(120) for racer in racers[2:]] == [0] * 6
    claims = owners.claims()
    assert [claim.number for claim in claims] == list(range(1, len(claims) + 1))
    assert len(claims) >= 40
    assert len({claim.start for claim in claims}) > 1  # else it was no race
    assert not [name for name in os.listdir(owners.folder) if name.endswith(".new") and name[0] not in "01"]


def test_a_number_is_claimed_once(tmp_path: Path) -> None:
    """By whoever is first; the same start may claim again what it has, when the answer of the server was lost."""
    owners = Owners(tmp_path)
    assert owners.newest() is None and owners.claims() == []
    mine = owners.claim(claim_of("12"), 1)
    assert mine is not None and owners.newest() == mine
    assert owners.claim(claim_of("13"), 1) is None
    assert owners.claim(claim_of("12"), 1) is not None
    assert not owners.is_released(mine)
    owners.release(mine)
    assert owners.is_released(mine)
    second = owners.claim(claim_of("13"), 2)
    assert second is not None and not owners.is_released(second)
    assert [claim.size.job for claim in owners.claims()] == ["12", "13"]


def test_a_request_is_answered_once(tmp_path: Path) -> None:
    """An answer to an earlier start of the same job does not count; a withdrawn request leaves nothing behind."""
    owners = Owners(tmp_path)
    owner = owners.claim(claim_of("12"), 1)
    assert owner is not None and owners.requests(owner) == {}
    request = owners.ask(owner, claim_of("13", ranks=4))
    assert owners.requests(owner) == {request: claim_of("13", ranks=4)}
    assert owners.answer(request) is None
    owners.reply(request, Answer(False, "too late"))
    assert owners.answer(request) == Answer(False, "too late")
    assert owners.requests(owner) == {}
    again = owners.ask(owner, claim_of("13", restarts=1, ranks=4))
    assert again == request and owners.answer(again) is None
    owners.withdraw(again)
    assert sorted(os.listdir(owners.folder)) == ["000001.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"size": 1}', json.dumps({"size": {}, "start": "12.0"})])
def test_a_damaged_claim_has_no_owner_but_keeps_its_number(text: str, tmp_path: Path) -> None:
    """As a file server may leave it after a power cut: the next number can be claimed, the same one cannot."""
    owners = Owners(tmp_path)
    owners.claim(claim_of("12"), 1)
    (owners.folder / "000002.json").write_text(text)
    newest = owners.newest()
    assert newest is not None and (newest.number, newest.start) == (2, "")
    assert owners.claim(claim_of("13"), 2) is None
    assert owners.claim(claim_of("13"), 3) is not None


def test_a_damaged_request_is_left_alone(tmp_path: Path) -> None:
    """It belongs to nobody, and others are answered."""
    owners = Owners(tmp_path)
    owner = owners.claim(claim_of("12"), 1)
    assert owner is not None
    (owners.folder / "000002-13.json").write_text("{")
    request = owners.ask(owner, claim_of("14"))
    assert list(owners.requests(owner)) == [request]


def test_a_folder_that_cannot_be_read_is_read_again_until_the_patience_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file server that does not answer for a while does not make a claimed run look free."""
    Owners(tmp_path).claim(claim_of("12"), 1)
    listdir, failures = os.listdir, [3]

    def failing(path: Path) -> list[str]:
        if failures[0]:
            failures[0] -= 1
            raise OSError(errno.EIO, "Input/output error", str(path))
        return listdir(path)

    monkeypatch.setattr("jobs.node.ownership.os.listdir", failing)
    newest = Owners(tmp_path, patience=30).newest()
    assert newest is not None and newest.number == 1
    failures[0] = 10**9
    with pytest.raises(OSError, match="Input/output error"):
        Owners(tmp_path).newest()


def test_a_claim_that_cannot_be_written_claims_nothing(tmp_path: Path) -> None:
    """The disk is full: the error says so, and the number stays free."""
    owners = Owners(tmp_path)
    owners.claim(claim_of("12"), 1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.node.ownership.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            owners.claim(claim_of("13"), 2)
    assert [claim.number for claim in owners.claims()] == [1]
    assert owners.claim(claim_of("13"), 2) is not None
