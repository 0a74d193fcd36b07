"""The supervisor: one process per node that starts the ranks through torch's elastic agent, and restarts them."""

import json
import os
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

from torch.distributed.elastic.rendezvous import RendezvousError

from jobs.node import candidacy, elastic_agent, flight_recorder, node_check_runner, signals, slurm_job, time_limit
from jobs.node.diagnosis import diagnose
from jobs.node.forkserver import StartError
from jobs.node.job_spec import GPUS_VARIABLE, READ_SECONDS, SUBMITTER_VARIABLE, JobSpec
from jobs.node.peers import PeerLostError, Peers
from jobs.node.requeue import requeue
from jobs.node.resource_log import ResourceLog
from jobs.node.restart_policy import (
    Decision,
    Failure,
    Kind,
    count_silent_starts,
    decide,
    decide_after_wrong_arithmetic,
    root_cause,
)
from jobs.node.resumption import Resumption
from jobs.node.suspension_log import SuspensionLog
from jobs.node.waiting_jobs import WaitingJobs
from jobs.node.watchdog import Watchdog
from vit.config.parser import load_config
from vit.config.paths import escape
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.history.words import show_closing, show_end
from vit.run.clock import process_start
from vit.run.disk_errors import retry_reads
from vit.run.folder import JOB_VARIABLE, NODE_VARIABLE, RunFolder
from vit.run.heartbeat import HEARTBEAT_VARIABLE, HeartbeatSlots
from vit.run.progress import show

NODE_CHECK = -1  # takes the place of an attempt's number when the nodes exchange their health, before attempt 0


class RunFailedError(RuntimeError):
    """The ranks failed and a retry would not help.  The message holds the last log lines of the rank that failed."""


def supervise(job: JobSpec, check: node_check_runner.NodeHealthCheck | None = None) -> str:
    """Runs the ranks of this node until the run is finished or stopped, and returns which.  Raises RunFailedError.

    `check` is this node's health check, which is already running.
    """
    supervisor = Supervisor(job)
    try:
        return supervisor.run(check)
    finally:
        supervisor.peers.close()


def ranks_per_node(cfg: Config, job: JobSpec) -> int:
    """One rank per GPU; if Slurm gave the job fewer GPUs than it requested, the most that divide a batch."""
    gpus = slurm_job.gpus_on_node(job.gpus)
    return max(n for n in range(1, gpus + 1) if cfg.allows_ranks(n * job.nodes))


class Supervisor:
    """Supervises the ranks of this node during one start of a job."""

    def __init__(self, job: JobSpec) -> None:
        self.job, self.folder = job, RunFolder(Path(job.run), patience=READ_SECONDS)
        retry_reads(self.folder.config.read_bytes, READ_SECONDS)
        self.in_slurm = slurm_job.job_id() is not None
        self.limits = job.retry_limits()
        self.node, self.start_id = slurm_job.node_rank(), slurm_job.start_id()
        self.ranks = ranks_per_node(load_config(self.folder.config), job)
        self.slots = HeartbeatSlots(self.ranks)
        self.folder.logs.mkdir(parents=True, exist_ok=True)
        self._prepare_environment()
        signals.install_handlers()
        name, address = slurm_job.node_name(), slurm_job.first_address()
        self.peers = Peers(job.nodes, self.node, name, address, f"{job.run} {self.start_id}")
        self.resources = ResourceLog(self.folder.logs, name, self.slots)
        ownership = candidacy.current()
        self.waiting_jobs = WaitingJobs(job, self.folder, ownership) if ownership is not None else None

    def run(self, check: node_check_runner.NodeHealthCheck | None) -> str:
        """Starts attempts until the run is finished or stopped."""
        if self.node == 0:
            self._record_start()
        try:
            self.peers.connect()
        except PeerLostError as error:
            lost = self._peer_failure(str(error))
            self._carry_out(self._decide(lost), lost)
        if check is not None:
            self._check_nodes(check.result())
            if signals.stop_requested():
                return "stopped"
        for attempt in range(10**9):
            failure = self._run_attempt(attempt)
            ended = self.folder.last("started", "finished", "stopped", "reopened")
            if ended and ended["event"] == "finished":
                if self.node == 0 and self.in_slurm:
                    show_end(self.folder)
                if self.waiting_jobs is not None:
                    self.waiting_jobs.end("the run has finished")
                return "finished"
            if signals.stop_requested():
                return "stopped"
            if failure is None and not self.in_slurm:
                return "stopped"  # the user stopped the ranks
            self._handle_failure(
                attempt, failure or self._secondary_failure("the ranks exited without being asked to stop")
            )
            if signals.stop_requested():
                return "stopped"
        raise AssertionError

    def _record_start(self) -> None:
        """Raises RunFailedError if the last starts were all killed from outside before they made a checkpoint."""
        if self.in_slurm and (killed := count_silent_starts(self.folder.events())) > self.limits.requeues:
            self._give_up(
                f"{killed} starts of the job in a row were killed from outside and made no checkpoint; they may need "
                f"more memory\ntheir output is in {self.folder.jobs}"
            )
        own_process = os.environ.get("SUBMITIT_EXECUTOR") != "debug"  # else it may have run other jobs before
        began = {"began": round(process_start(), 3)} if own_process else {}
        self.folder.record("supervising", life=self.start_id, node=slurm_job.node_name(), **began)
        threading.Thread(target=self._record_stop_request, daemon=True).start()
        time_limit.watch(self.job.nodes)
        if self.in_slurm:
            SuspensionLog(self.folder, self.start_id).start()
        if self.waiting_jobs is not None:
            self.waiting_jobs.start()

    def _check_nodes(self, result: str) -> None:
        """Returns if all nodes are healthy; else requeues the job without those that are not."""
        if signals.stop_requested():
            return
        try:
            self.peers.report(NODE_CHECK, result)
            if self.node:
                failures = [Failure(**each) for each in json.loads(self.peers.exchange_decision(NODE_CHECK))]
            else:
                failures = self._collect_health(result)
                self.peers.exchange_decision(NODE_CHECK, json.dumps([asdict(failure) for failure in failures]))
        except PeerLostError as error:
            failures = [self._peer_failure(str(error))]
        if failures:
            decision = self._decide(failures[0])
            unhealthy = {failure.node for failure in failures if failure.kind == "unhealthy"}
            exclude = tuple(sorted({*decision.exclude, *unhealthy}))
            reason = "; ".join(failure.reason for failure in failures)
            self._carry_out(replace(decision, exclude=exclude), replace(failures[0], reason=reason))

    def _collect_health(self, result: str) -> list[Failure]:
        """Failures found by the health checks of all nodes, whose notes are printed."""
        results = [json.loads(text) for text in self.peers.collect_reports(NODE_CHECK, result)]
        for note in (note for each in results for note in each.get("notes", ())):
            show(note, lasting=True)
        failures = node_check_runner.failures(results)
        seconds = {each["node"]: each.get("seconds") for each in results}
        self.folder.note("node check", life=self.start_id, nodes=seconds)
        return failures

    def _record_stop_request(self) -> None:
        """Not done in the signal handler, which may have interrupted another write to the ledger."""
        name, left = signals.wait_for_stop_request(), slurm_job.seconds_left()
        limit = {} if left is None else {"seconds_left": round(left)}
        try:
            self.folder.record("told to stop", life=self.start_id, signal=name, **limit)
        finally:  # the disk may be full
            if self.waiting_jobs is not None:
                self.waiting_jobs.leave()

    def _run_attempt(self, attempt: int) -> Failure | None:
        """Runs the ranks once.  Returns why they failed; None if they exited by themselves."""
        started = time.time()
        self.slots.clear()
        watchdog = Watchdog(self.slots, self.peers, attempt, self.job.stall_seconds, self.folder.logs)
        watchdog.start()
        resumption = Resumption(self.slots, self.folder)
        if self.node == 0 and self.in_slurm:  # on this machine, the command that runs the job says it
            resumption.start()
        try:
            with flight_recorder.pipes(), self.resources.attempt():
                self._launch(attempt, watchdog)
            if not self.peers.all_finished(attempt):
                return self._secondary_failure("the ranks exited while another node failed")
        except elastic_agent.RanksFailedError as error:
            watchdog.stop()
            return diagnose(self.folder, error, watchdog, started)
        except (StartError, UserError) as error:
            kind: Kind = "user" if isinstance(error, UserError) else "exception"
            return Failure(kind=kind, node=slurm_job.node_name(), rank=-1, reason=str(error), time=time.time())
        except (RendezvousError, PeerLostError) as error:
            if signals.stop_requested() or self.folder.finished():
                return None
            return self._peer_failure(str(error))
        finally:
            watchdog.stop()
            resumption.stop()
        return None

    def _launch(self, attempt: int, watchdog: Watchdog) -> None:
        arguments = ["--config", escape(self.folder.config), "--run-dir", escape(self.folder.path)]
        if self.job.accepted:
            arguments += ["--override-resume", *self.job.accepted]
        elastic_agent.launch(
            arguments, watchdog, ranks=self.ranks, nodes=self.job.nodes, run_id=f"{self.start_id}-{attempt}",
            endpoint=self.peers.endpoint, host=self.node == 0,
        )  # fmt: skip

    def _handle_failure(self, attempt: int, failure: Failure) -> None:
        """Carries out what the first node decides: returns to restart, exits the process, or raises."""
        try:
            own = json.dumps(asdict(failure))
            self.peers.report(attempt, own)
            if self.node:
                decision = Decision(**json.loads(self.peers.exchange_decision(attempt)))
            else:
                reports = self.peers.collect_reports(attempt, own)
                failure = root_cause([Failure(**json.loads(text)) for text in reports])
                if self.peers.lost:
                    failure = self._peer_failure("no heartbeat")
                decision = self._decide(failure)
                self.peers.exchange_decision(attempt, json.dumps(asdict(decision)))
        except PeerLostError as error:
            failure = self._peer_failure(str(error))
            decision = Decision("requeue", failure.reason)
        self._carry_out(decision, failure)

    def _decide(self, failure: Failure) -> Decision:
        if failure.suspects:
            other_nodes = self.in_slurm and slurm_job.can_exclude(failure.suspects)
            return decide_after_wrong_arithmetic(self.folder.events(), failure, self.limits, other_nodes)
        return decide(self.folder.events(), failure, self.limits, self.start_id, self.in_slurm)

    def _carry_out(self, decision: Decision, failure: Failure) -> None:
        if decision.what == "give up" and self.node == 0:
            self._give_up(f"{failure.message()}\n{decision.why}")
        if decision.what == "give up":
            raise RunFailedError(decision.why)
        if decision.what == "restart" and self.node == 0:
            self.folder.record("restarting in place", life=self.start_id, why=decision.why, **failure.event())
            show(f"{failure.message()}\nrestarting in place: {decision.why}", lasting=True)
        end_of_pause = time.monotonic() + decision.pause
        while time.monotonic() < end_of_pause and not signals.stop_requested():
            time.sleep(0.1)
        if decision.what == "requeue":
            self._requeue(decision, failure)

    def _requeue(self, decision: Decision, failure: Failure) -> None:
        """Done by the first node, or by the others if that is lost."""
        candidacy.release()
        if (seconds := self.peers.turn()) is not None:
            time.sleep(seconds)
            if refused := requeue(self.folder, decision, failure):
                self._give_up(refused)
        os._exit(slurm_job.REQUEUED)  # without a result for submitit, and without waiting for threads or processes

    def _give_up(self, why: str) -> None:
        self.folder.record("gave up", why=why)
        if self.waiting_jobs is not None:
            self.waiting_jobs.end("the run was given up")
        if self.in_slurm:
            show_closing(self.folder)
        raise RunFailedError(why)

    def _secondary_failure(self, reason: str) -> Failure:
        """A failure that no rank of this node caused, as far as this node can tell."""
        log = str(self.folder.logs / "rank-0.log")
        node = slurm_job.node_name()
        return Failure(kind="secondary", node=node, rank=0, reason=reason, time=time.time(), log=log)

    def _peer_failure(self, why: str) -> Failure:
        """Another node does not respond."""
        lost = self.peers.lost or "another node"
        return Failure(kind="node", node=lost, rank=-1, reason=f"{lost} was lost: {why}", time=time.time())

    def _prepare_environment(self) -> None:
        os.environ[HEARTBEAT_VARIABLE] = self.slots.name
        # Otherwise the ranks of a second attempt find the addresses of dead ranks in the store that attempts share.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        flight_recorder.set_variables(self.folder.logs)
        os.environ.pop(JOB_VARIABLE, None)  # of another job, in which this one was started
        os.environ[NODE_VARIABLE] = slurm_job.node_name()
        if self.in_slurm:
            os.environ[JOB_VARIABLE] = f"Slurm job {slurm_job.job_id()}"
        gpus, submitter = os.environ.pop(GPUS_VARIABLE, None), os.environ.pop(SUBMITTER_VARIABLE, None)
        if os.environ.get("SUBMITIT_EXECUTOR") != "local":
            return
        if gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus
        if submitter is not None:
            threading.Thread(target=signals.stop_when_process_ends, args=(int(submitter),), daemon=True).start()
