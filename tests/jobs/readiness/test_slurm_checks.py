"""What doctor.py says about a real Slurm cluster, with good settings and with bad ones."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.login import slurm_queries
from jobs.login.slurm_queries import SlurmSettings
from jobs.readiness.finding import Finding
from jobs.readiness.preemption_settings import Preemption, judge, preemption_of, to_seconds
from jobs.readiness.slurm_checks import check_slurm
from tests.helpers.paths import ROOT
from tests.helpers.readiness import findings, request
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.slurm_config import CREDENTIAL_SECONDS, KILL_WAIT_SECONDS
from tests.helpers.waiting import wait_for

PARTITIONS = {
    "cancel": "PreemptMode=CANCEL GraceTime=12",
    "cancel0": "PreemptMode=CANCEL GraceTime=0",
    "off": "PreemptMode=OFF",
    "down": "State=DOWN",
    "drained": "State=DRAIN",
    "closed": "AllowAccounts=physics",
    "closed_qos": "DenyQos=normal",
}


@pytest.fixture
def cluster(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster, for this process, with more partitions."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    for name, settings in PARTITIONS.items():
        slurm.call("scontrol", "create", f"PartitionName={name}", "Nodes=n[1-2]", "PriorityTier=1", *settings.split())
    yield slurm
    for name in PARTITIONS:
        slurm.call("scontrol", "delete", f"PartitionName={name}", check=False)


def check(*options: object, save: float | None = 1.0) -> dict[str, Finding]:
    """The findings about Slurm, for a save of this length."""
    of = request("--cpus-per-gpu", 1, "--python", "python3", *options)
    of.query_slurm()
    of.save_seconds = save
    return findings(check_slurm, of)


def test_a_good_cluster_has_no_warning(cluster: Cluster) -> None:
    """What follows from its settings is said in words."""
    found = check("--partition", "low", "--gpus", 4)
    assert {finding.level for finding in found.values()} == {"OK"}, found
    assert found["preemption"].text == (
        f"jobs of partition low are preempted by USR2, killed {20 + KILL_WAIT_SECONDS} s later (GraceTime 20 s + "
        f"KillWait {KILL_WAIT_SECONDS} s), and requeued by Slurm; enough: a save of this model takes about 1.0 s "
        "(estimate)"
    )
    assert found["partition"].text.startswith("low is up; its nodes: 2 ")
    assert f"a requeued job waits {CREDENTIAL_SECONDS} s (cred_expire)" in found["requeue"].text
    assert "this cluster enforces no limits" in found["limits"].text
    assert check()["preemption"] == found["preemption"], "low is the default partition"


@pytest.mark.parametrize(
    ("partition", "save", "level", "words"),
    [
        ("low", None, "OK", "with --config, this time is compared with a save"),
        ("low", 16, "WARN", "just enough: a save of this model takes about 16 s"),
        ("low", 40, "FAIL", "too short: a save of this model takes about 40 s"),
        ("hasty", 1, "OK", f"killed {KILL_WAIT_SECONDS} s later (only KillWait: GraceTime is 0)"),
        ("hasty", 11, "FAIL", "each preemption loses the steps since a checkpoint"),
        ("cancel", 1, "OK", "not requeued by Slurm (CANCEL): a run requeues itself within 12 s"),
        ("cancel", 13, "FAIL", "too short"),
        ("cancel0", 1, "OK", f"a run requeues itself within {KILL_WAIT_SECONDS} s"),
        ("off", 1, "OK", "jobs of partition off are not preempted"),
        ("high", 1, "OK", "jobs of partition high are not preempted"),
    ],
)
def test_what_a_preemption_does_follows_from_the_partition(
    partition: str, save: float | None, level: str, words: str, cluster: Cluster
) -> None:
    """And whether there is time for a save."""
    found = check("--partition", partition, save=save)["preemption"]
    assert found.level == level, found
    assert words in found.text


def test_a_run_that_may_not_be_requeued_ends_at_each_preemption(cluster: Cluster) -> None:
    """A warning, at preemption and at the time limit."""
    found = check("--requeue", "false")
    assert "not requeued (requeue: false)" in found["preemption"].text
    assert found["preemption"].level == found["requeue"].level == "WARN"


@pytest.mark.parametrize(
    ("options", "name", "level", "words"),
    [
        (("--partition", "gpuu"), "request", "FAIL", "--partition gpuu: no such partition"),
        (("--gpus", 8), "request", "FAIL", "--gpus 8: nodes of partition low have at most 4"),
        (("--partition", "short"), "request", "FAIL", "--time 24:00:00: the limit of partition short is 30 minutes"),
        (("--partition", "down"), "partition", "FAIL", "partition down is DOWN: its jobs do not start"),
        (("--partition", "drained"), "partition", "FAIL", "partition drained is DRAIN: it accepts no jobs"),
        (("--partition", "closed"), "access", "FAIL", "partition closed does not accept account root"),
        (("--partition", "closed_qos"), "access", "FAIL", "partition closed_qos does not accept qos normal"),
        (
            ("--time", "0:03:00"),
            "time limit",
            "FAIL",
            "USR2 makes the run save and requeue itself: it may come as soon",
        ),
        (("--time", "0:10:00"), "time limit", "WARN", "up to 30 % of each job's time is not used"),
    ],
)
def test_a_request_that_would_not_run_well_is_named(
    options: tuple[object, ...], name: str, level: str, words: str, cluster: Cluster
) -> None:
    """Before it is submitted."""
    found = check(*options)[name]
    assert (found.level, words in found.text) == (level, True), found


def test_nodes_that_cannot_be_used_are_a_warning(cluster: Cluster) -> None:
    """As many as are drained; and a cluster may have no default partition."""
    cluster.call("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test")
    try:
        assert check("--nodes", 1)["partition"].level == "OK"
        found = check("--nodes", 2)["partition"]
        assert found.level == "WARN"
        assert found.text.startswith("only 1 of the nodes of low can be used (")
    finally:
        cluster.call("scontrol", "update", "NodeName=n2", "State=RESUME")
    cluster.call("scontrol", "update", "PartitionName=low", "Default=NO")
    try:
        found = check()["partition"]
        assert (found.level, found.text) == ("FAIL", "this cluster has no default partition")
        assert "low" in found.advice
    finally:
        cluster.call("scontrol", "update", "PartitionName=low", "Default=YES")


def test_a_local_python_is_a_warning(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Jobs run the interpreter of this command, unless the cluster file names another one."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    of = request()
    of.query_slurm()
    found = {finding.check: finding for finding in check_slurm(of)}["environment"]
    assert found.level == "WARN"
    assert "jobs run this Python, so that their nodes need it too" in found.text
    assert "environment" not in check("--container", "/images/vit.sif")


def test_limits_that_the_request_exceeds_are_named(cluster: Cluster) -> None:
    """Where Slurm enforces them: of the QOS and of the account, on resources and on time; and who may use what."""
    cluster.enforce_accounts(True, limits=True)
    limits = ("MaxTRESPerUser=gres/gpu=2", "MaxWall=60")
    try:
        assert check("--account", "vision", "--gpus", 1)["limits"].level == "OK"
        cluster.call("sacctmgr", "-i", "modify", "qos", "normal", "set", *limits)
        cluster.call("sacctmgr", "-i", "modify", "account", "vision", "set", "GrpTRES=cpu=3")
        of = request("--account", "vision", "--gpus", 4, "--cpus-per-gpu", 1, "--python", "python3")
        of.query_slurm()
        texts = [finding.text for finding in check_slurm(of) if (finding.check, finding.level) == ("limits", "FAIL")]
        assert set(texts) == {
            "QOS normal allows gres/gpu=2 for a user (MaxTRESPerUser), but the job requests 4",
            "QOS normal allows jobs of 01:00:00 (MaxWall), not of 1440 minutes",
            "account vision allows cpu=3 for all jobs (GrpTRES), but the job requests 4",
        }
        found = check("--account", "vision", "--gpus", 2, "--time", "1:00:00")["limits"]
        assert (found.level, "no limit is below what the job requests" in found.text) == ("OK", True)
        nobody = check("--account", "nosuch")["limits"]
        assert (nobody.level, nobody.text) == ("FAIL", "you may not use the account nosuch")
        assert "vision" in nobody.advice
        wrong = check("--account", "vision", "--qos", "nosuch")["limits"]
        assert (wrong.level, wrong.advice) == ("FAIL", "use --qos normal")
    finally:
        cluster.call("sacctmgr", "-i", "modify", "qos", "normal", "set", "MaxTRESPerUser=gres/gpu=-1", "MaxWall=-1")
        cluster.call("sacctmgr", "-i", "modify", "account", "vision", "set", "GrpTRES=cpu=-1")
        cluster.enforce_accounts(False, limits=True)


def test_an_accounting_database_that_does_not_respond_is_a_warning(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other checks are made."""
    monkeypatch.setattr(slurm_queries, "TIMEOUT_SECONDS", 1)
    daemon = cluster.daemon("slurmdbd")
    daemon.suspend()
    try:
        found = check()
    finally:
        daemon.resume()
    assert found["limits"].level == "WARN"
    assert "limits of account and QOS are not known" in found["limits"].text
    assert found["preemption"].level == found["requeue"].level == "OK"


def test_a_slurm_that_does_not_respond_is_a_failure_and_the_other_checks_stand(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Its daemon is stopped: the command waits for some seconds, and checks everything else."""
    daemon = cluster.daemon("slurmctld")
    daemon.suspend()
    try:
        begun = time.monotonic()
        command = [sys.executable, str(ROOT / "jobs" / "doctor.py"), "--partition", "low"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
        assert time.monotonic() - begun < 20
    finally:
        daemon.resume()
        wait_for(cluster.responds, "Slurm to respond")
    assert (done.returncode, done.stderr) == (2, "")
    assert "\nOK    free space " in done.stdout
    assert "\nFAIL  Slurm           Slurm does not respond: nothing can be submitted" in done.stdout
    assert "→ try again when `scontrol ping` reports the controller as UP" in done.stdout


def test_what_a_qos_says_about_preemption_counts_where_slurm_looks_at_it() -> None:
    """With PreemptType=preempt/qos the partition does not matter; preempt/none preempts nothing."""
    partition = {"PreemptMode": "CANCEL", "GraceTime": "5", "PriorityTier": "1"}
    settings = SlurmSettings(
        {"PreemptType": "preempt/qos", "PreemptMode": "REQUEUE", "KillWait": "30 sec"}, {"gpu": partition}, []
    )
    qos = {"Name": "scavenger", "PreemptMode": "cluster", "GraceTime": "00:02:00"}
    found = preemption_of(settings, "gpu", qos)
    assert found == Preemption(mode="REQUEUE", source="QOS scavenger", grace=120, kill_wait=30, user_signal=False)
    assert preemption_of(settings, "gpu", qos | {"PreemptMode": "cancel"}).mode == "CANCEL"
    assert judge(found, True, 4.0).text == (
        "jobs of QOS scavenger are preempted by TERM, killed 150 s later (GraceTime 120 s + KillWait 30 s), and "
        "requeued by Slurm; enough: a save of this model takes about 4.0 s (estimate)"
    )
    settings.config["PreemptType"] = "preempt/none"
    assert preemption_of(settings, "gpu", qos).mode == "OFF"


def test_a_run_that_is_canceled_without_notice_ends() -> None:
    """As on a cluster with PreemptMode=CANCEL and Slurm's defaults for the rest."""
    rows = {"gpu": {"PreemptMode": "CANCEL", "PriorityTier": "1"}, "urgent": {"PriorityTier": "2"}}
    settings = SlurmSettings({"PreemptType": "preempt/partition_prio", "KillWait": "30 sec"}, rows, [])
    found = judge(preemption_of(settings, "gpu", {}), True, 4.0)
    assert found.level == "WARN"
    assert "are preempted by TERM, killed 30 s later (only KillWait: GraceTime is 0)" in found.text
    assert "not requeued (CANCEL): the run ends there until you submit the same command again" in found.text


def test_a_run_that_is_suspended_loses_nothing() -> None:
    """Slurm calls it GANG,SUSPEND."""
    rows = {"gpu": {"PreemptMode": "GANG,SUSPEND", "PriorityTier": "1"}, "urgent": {"PriorityTier": "2"}}
    settings = SlurmSettings({"PreemptType": "preempt/partition_prio"}, rows, [])
    found = judge(preemption_of(settings, "gpu", {}), True, 100.0)
    assert found.level == "OK"
    assert "keeps its GPUs and its memory, and continues later" in found.text


def test_times_of_slurm_are_read() -> None:
    """As its commands print them."""
    assert [to_seconds(text) for text in ("30 sec", "20", "00:01:30", "1-00:00:00", "", "NONE")] == [
        *(30, 20, 90, 86_400, 0, 0),
    ]
