"""squeue, sinfo, sacctmgr, settings and error texts of each recorded version."""

import pytest

from jobs.login.cluster_config import ClusterConfig
from jobs.login.slurm_queries import SlurmUnreachableError, rejection_message
from jobs.readiness.account_limits import ASSOCIATION, QOS
from jobs.slurm import errors, scontrol, tables
from jobs.slurm.states import DEFERRED, HELD
from jobs.slurm.tables import PartitionNodes
from tests.jobs.slurm.recording import VERSIONS, Output, read


@pytest.fixture(params=VERSIONS)
def recorded(request: pytest.FixtureRequest) -> dict[str, Output]:
    """The outputs of a version."""
    return read(str(request.param))


def test_squeue_tells_the_same_of_each_job(recorded: dict[str, Output]) -> None:
    """Its state, why it waits, where it runs; those that have ended are not there."""
    found = {}
    for name, output in recorded.items():
        if name.endswith(".queue"):
            found[name.removesuffix(".queue")] = tables.queued_jobs(output.lines)
    assert all(len(found[name]) == 1 for name in ("pending.held", "running", "array.running", "preempted"))
    jobs = {name: next(iter(rows.values())) for name, rows in found.items() if rows}
    assert (jobs["pending.held"].state, jobs["pending.held"].reason) == ("PENDING", HELD)
    assert (jobs["requeued"].state, jobs["requeued"].reason) == ("PENDING", DEFERRED)
    assert (jobs["running"].state, jobs["running"].nodes) == ("RUNNING", "n1")
    assert (jobs["preempted.grace"].state, jobs["preempted.grace"].nodes) == ("RUNNING", "n[1-2]")
    assert jobs["canceled.completing"].state == "COMPLETING"
    assert jobs["suspended"].state == "SUSPENDED"
    assert not any(found[name] for name in ("canceled", "completed", "timeout", "unknown"))
    assert sorted(job.partition("_")[2] for job in found["array.all"]) == ["0", "1", "2", "3"]
    assert set(tables.job_scripts(recorded["scripts"].lines).values()) == {"/cluster/jobs/job script.sh", "(null)"}


def test_a_job_that_waits_only_for_another_one_is_found(recorded: dict[str, Output]) -> None:
    """By its dependency as Slurm prints it; not one that waits for two jobs, or for a job with a longer number."""
    dependency = scontrol.facts_of(recorded["pending.dependent"].stdout)["Dependency"]
    other = dependency.partition("(")[0].removeprefix("afterok:")
    lines = [f"21 {dependency}", f"22 {dependency},afterok:5(unfulfilled)", "23 (null)", f"24 afterok:{other}1(failed)"]
    assert tables.waiting_for(other, lines) == {"21"}


def test_the_nodes_of_the_partitions_are_the_same(recorded: dict[str, Output]) -> None:
    """As `submit.py` needs them to check a request."""
    low, hasty, short, high = tables.partition_nodes(recorded["partition_nodes"].lines)
    assert low == PartitionNodes("low", True, None, 2, 4, 16, 20000)
    assert (hasty.partition, hasty.default, short.minutes, high.gpus) == ("hasty", False, 30, 4)
    assert tables.usable_nodes(recorded["nodes"].lines) == {"n1", "n2"}
    for name in ("nodes.draining", "nodes.drained"):
        assert tables.usable_nodes(recorded[name].lines) == {"n2"}, name
    assert dict(tables.node_states(recorded["node_states"].lines)) == {"mixed": 1, "idle": 1}
    assert dict(tables.node_states(recorded["node_states.drained"].lines)) == {"drained": 1, "idle": 1}
    assert recorded["hostnames"].lines == ["n1", "n2", "m3"]


def test_the_settings_are_the_same(recorded: dict[str, Output]) -> None:
    """As `doctor.py` needs them."""
    config = scontrol.config_of(recorded["config"].stdout)
    assert scontrol.credential_seconds(config) == 5
    assert scontrol.largest_array(config) == 1001
    assert (config["KillWait"], config["PreemptType"], config["JobRequeue"]) == (
        "10 sec",
        "preempt/partition_prio",
        "1",
    )
    assert config["SlurmctldParameters"] == "preempt_send_user_signal"
    low = scontrol.partitions_of(recorded["partitions"].stdout)["low"]
    expected = {"GraceTime": "20", "PreemptMode": "REQUEUE", "PriorityTier": "1", "State": "UP", "Default": "YES"}
    assert expected.items() <= low.items()
    assert {"AllowAccounts", "AllowQos", "QoS", "MaxTime"} <= low.keys()


def test_the_accounting_is_the_same(recorded: dict[str, Output]) -> None:
    """Accounts and QOS of a user."""
    rows = tables.accounting_rows(recorded["associations"].lines, ASSOCIATION)
    assert sorted((row["Account"], row["User"], row["QOS"]) for row in rows) == [
        ("root", "root", "normal"),
        ("vision", "root", "normal"),
    ]
    qos = tables.accounting_rows(recorded["qos"].lines, QOS)
    assert [(row["Name"], row["GraceTime"], row["PreemptMode"]) for row in qos] == [("normal", "00:00:00", "cluster")]
    assert recorded["default_account"].lines == ["root"]


def test_errors_are_recognized(recorded: dict[str, Output]) -> None:
    """Each by what the command prints: is the controller down, is the job unknown, is another try of use."""
    for name in ("job", "queue", "nodes", "config", "cancel", "sbatch", "accounting", "associations"):
        output = recorded[f"down.{name}"]
        assert output.code and errors.UNREACHABLE.search(output.stderr), name
    for name in ("unknown", "array.absent", "unknown.requeue", "unknown.update", "unknown.release"):
        output = recorded[name]
        assert output.code, name
        assert errors.is_unknown_job(output.stdout, output.stderr), name
        assert not errors.UNREACHABLE.search(output.stderr), name
    for name in ("refused.requeue", "refused.access", "refused.access.cancel"):
        assert recorded[name].code and errors.PERMANENT_ERRORS.search(recorded[name].stderr), name
    for name in ("down.requeue", "requeue.pending", "requeued.requeue"):
        assert recorded[name].code and not errors.PERMANENT_ERRORS.search(recorded[name].stderr), name


def test_a_rejected_submission_names_the_option(recorded: dict[str, Output]) -> None:
    """In each version the line names what the user has to change."""
    cluster = ClusterConfig(reservation="absent", constraint="absent")
    for option in ("reservation", "constraint"):
        message = rejection_message(recorded[f"refused.{option}"].stderr, cluster)
        assert message.startswith(f"--{option} absent: Slurm says "), message
    for option in ("account", "qos", "partition", "gres"):
        assert option in rejection_message(recorded[f"refused.{option}"].stderr, cluster).lower()
    assert rejection_message(recorded["down.sbatch"].stderr, cluster) == str(SlurmUnreachableError())


def test_signals_come_in_the_same_order(recorded: dict[str, Output]) -> None:
    """A preempted run has the grace time and KillWait to save; a canceled or requeued one has KillWait."""

    def order(name: str) -> list[str]:
        signals = [line.split()[0] for line in recorded[f"{name}.signals"].lines]
        return list(dict.fromkeys(signal for signal in signals if signal != "SIGCONT"))

    def seconds(name: str) -> int:
        return int(recorded[f"{name}.signals"].lines[-1].split()[1])

    assert order("canceled") == order("requeued") == ["SIGTERM", "SIGKILL"]
    assert order("preempted") == order("timeout") == ["SIGUSR2", "SIGTERM", "SIGKILL"]
    assert all(8 <= seconds(name) <= 13 for name in ("canceled", "requeued"))
    assert 27 <= seconds("preempted") <= 36


def test_the_variables_of_a_job_are_there(recorded: dict[str, Output]) -> None:
    """Those that a job reads.  The time of its end is missing in 22.05."""
    variables = {line.partition("=")[0] for line in recorded["environment"].lines}
    assert {
        *("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SLURM_GPUS_ON_NODE", "SLURM_PROCID", "SLURM_LAUNCH_NODE_IPADDR"),
        *("SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES"),
    } <= variables
