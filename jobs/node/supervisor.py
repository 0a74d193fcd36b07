"""The one process per node above the ranks: starts them through torch's elastic agent and starts them again."""

import json
import os
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError

from jobs.node import elastic_agent, node_health, signals, slurm_job
from jobs.node.diagnosis import from_ranks
from jobs.node.forkserver import ColdError
from jobs.node.job_spec import GPUS_VARIABLE, SUBMITTER_VARIABLE, JobSpec
from jobs.node.peers import LostError, Team
from jobs.node.requeue import requeue
from jobs.node.restart_policy import Budget, Decision, Failure, decide, first, wordless
from jobs.node.watchdog import FLIGHT, Watch
from vit.config.parser import load_config
from vit.config.schema import Config
from vit.run.folder import JOB_VARIABLE, RunFolder
from vit.run.heartbeat import VARIABLE, Slots
from vit.run.progress import show

LOOK = -1  # what stands for an attempt where nodes tell how they are, before the first


class RunFailedError(RuntimeError):
    """The ranks failed and going on makes no sense.  The message holds the first failing rank's last words."""


def supervise(job: JobSpec, check: node_health.Check | None = None) -> str:
    """Runs the ranks of this node until the run is finished or stopped, and returns which.  Raises RunFailedError.

    `check` is that of this node's health, which began before.
    """
    supervisor = Supervisor(job)
    try:
        return supervisor.run(check)
    finally:
        supervisor.team.close()


def ranks(cfg: Config, job: JobSpec) -> int:
    """Ranks on each node: one a GPU, or the most that divide a batch where Slurm gave this job fewer than it wanted."""
    return max(n for n in range(1, slurm_job.gpus(job.gpus) + 1) if cfg.micro_batches % (n * job.nodes) == 0)


class Supervisor:
    """This node's part in one start of a job."""

    def __init__(self, job: JobSpec) -> None:
        self.job, self.folder = job, RunFolder(Path(job.run))
        self.in_slurm = slurm_job.job() is not None
        self.budget = Budget(restarts=job.restarts, requeues=job.requeues, same_step=job.same_step)
        self.node, self.life = slurm_job.task(), slurm_job.life()
        self.ranks = ranks(load_config(self.folder.config), job)
        self.slots = Slots(self.ranks)
        self.folder.logs.mkdir(parents=True, exist_ok=True)
        self._prepare_environment()
        signals.install()
        self.team = Team(job.nodes, self.node, slurm_job.node(), slurm_job.first_address(), f"{job.run} {self.life}")

    def run(self, check: node_health.Check | None) -> str:
        """One attempt after the other."""
        if self.node == 0:
            self._begin()
        try:
            self.team.meet()
        except LostError as error:
            alone = self._lost(str(error))
            self._act(self._decide(alone), alone)
        if check is not None:
            self._look_over(check.word())
            if signals.told():
                return "stopped"
        for attempt in range(10**9):
            failure = self._attempt(attempt)
            ended = self.folder.last("started", "finished", "stopped")
            if ended and ended["event"] == "finished":
                return "finished"
            if signals.told():
                return "stopped"
            if failure is None and not self.in_slurm:
                return "stopped"  # a person did it
            self._follow(attempt, failure or self._echo("left though nobody had asked"))
        raise AssertionError

    def _begin(self) -> None:
        """Raises RunFailedError where the last starts were all killed from outside before they got anywhere."""
        if self.in_slurm and (killed := wordless(self.folder.events())) > self.budget.requeues:
            self._give_up(
                f"{killed} starts of the job in a row were killed from outside and made no checkpoint; perhaps they "
                f"need more memory\n{self.folder.jobs} holds what they said"
            )
        self.folder.record("supervising", life=self.life, node=slurm_job.node())
        threading.Thread(target=self._note_stop, daemon=True).start()

    def _look_over(self, word: str) -> None:
        """Returns if all nodes are fit; else the job goes on without those that are not."""
        if signals.told():
            return
        try:
            self.team.report(LOOK, word)
            if self.node:
                told = json.loads(self.team.decided(LOOK))
            else:
                words = [json.loads(text) for text in self.team.reports(LOOK, word)]
                for note in (note for each in words for note in each.get("notes", ())):
                    show(note, lasting=True)
                sick = node_health.failures(words)
                self.folder.note("looked over", life=self.life, nodes={w["node"]: w.get("seconds") for w in words})
                told = {"sick": [asdict(failure) for failure in sick]}
                self.team.decided(LOOK, json.dumps(told))
        except LostError as error:
            told = {"sick": [asdict(self._lost(str(error)))]}
        if sick := [Failure(**each) for each in told["sick"]]:
            decision = self._decide(sick[0])
            exclude = sorted({*decision.exclude, *(failure.node for failure in sick if failure.kind == "sick")})
            reason = "; ".join(failure.reason for failure in sick)
            self._act(replace(decision, exclude=tuple(exclude)), replace(sick[0], reason=reason))

    def _note_stop(self) -> None:
        """Not in the handler, which may have interrupted another entry into the ledger."""
        signals.wait_until_told()
        self.folder.record("told to stop", life=self.life)

    def _attempt(self, attempt: int) -> Failure | None:
        """One life of the ranks.  Returns why they failed; None if they left by themselves."""
        started = time.time()
        self.slots.clear()
        watch = Watch(self.slots, self.team, attempt, self.job.stall_seconds, self.folder.logs)
        watch.start()
        try:
            self._launch(attempt, watch)
            if not self.team.all_done(attempt):
                return self._echo("left while another node failed")
        except ChildFailedError as error:
            watch.stop()
            return from_ranks(self.folder, error, watch, started)
        except ColdError as error:
            return Failure(kind="exception", node=slurm_job.node(), rank=-1, reason=str(error), time=time.time())
        except (RendezvousError, LostError) as error:
            if signals.told() or self.folder.finished():
                return None
            return self._lost(str(error))
        finally:
            watch.stop()
        return None

    def _launch(self, attempt: int, watch: Watch) -> None:
        arguments = ["--config", str(self.folder.config), "--run-dir", str(self.folder.path)]
        if self.job.accepted:
            arguments += ["--override-resume", *self.job.accepted]
        elastic_agent.launch(
            arguments, watch, ranks=self.ranks, nodes=self.job.nodes, run_id=f"{self.life}-{attempt}",
            endpoint=self.team.endpoint, host=self.node == 0,
        )  # fmt: skip

    def _follow(self, attempt: int, failure: Failure) -> None:
        """Has the first node decide, and does it: returns to start again, ends the process, or raises."""
        try:
            own = json.dumps(asdict(failure))
            self.team.report(attempt, own)
            if self.node:
                decision = Decision(**json.loads(self.team.decided(attempt)))
            else:
                failure = first([Failure(**json.loads(text)) for text in self.team.reports(attempt, own)])
                if self.team.lost:
                    failure = self._lost("gave no sign of life")
                decision = self._decide(failure)
                self.team.decided(attempt, json.dumps(asdict(decision)))
        except LostError as error:
            failure = self._lost(str(error))
            decision = Decision("requeue", failure.reason)
        self._act(decision, failure)

    def _decide(self, failure: Failure) -> Decision:
        return decide(self.folder.events(), failure, self.budget, self.life, self.in_slurm)

    def _act(self, decision: Decision, failure: Failure) -> None:
        if decision.what == "give up" and self.node == 0:
            self._give_up(f"{failure.told()}\n{decision.why}")
        if decision.what == "give up":
            raise RunFailedError(decision.why)
        if decision.what == "restart" and self.node == 0:
            self.folder.record("restarting in place", life=self.life, why=decision.why, **failure.event())
            show(f"{failure.told()}\nrestarting in place: {decision.why}", lasting=True)
        if decision.what == "requeue":
            self._requeue(decision, failure)

    def _requeue(self, decision: Decision, failure: Failure) -> None:
        """The first node asks for it, or one that is left without it."""
        if (self.node == 0 or self.team.lost) and (refused := requeue(self.folder, decision, failure)):
            self._give_up(refused)
        os._exit(slurm_job.REQUEUED)  # without a result for submitit, and without waiting for anybody

    def _give_up(self, why: str) -> None:
        self.folder.record("gave up", why=why)
        raise RunFailedError(why)

    def _echo(self, reason: str) -> Failure:
        """What is no rank's fault, as far as this node can tell."""
        log = str(self.folder.logs / "rank-0.log")
        return Failure(kind="echo", node=slurm_job.node(), rank=0, reason=reason, time=time.time(), log=log)

    def _lost(self, why: str) -> Failure:
        """Another node does not answer."""
        gone = self.team.lost or "another node"
        return Failure(kind="node", node=gone, rank=-1, reason=f"{gone} is gone: {why}", time=time.time())

    def _prepare_environment(self) -> None:
        os.environ[VARIABLE] = self.slots.name
        # Else the ranks of a second attempt find the dead ones' addresses in the store that all attempts share.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # operations of NCCL that are remembered
        for name in ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"):
            os.environ.setdefault(name, str(self.folder.logs / FLIGHT))
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
        os.environ.setdefault("TORCH_NCCL_COORD_CHECK_MILSEC", "200")  # how often it looks whether to write them down
        if self.in_slurm:
            os.environ[JOB_VARIABLE] = f"Slurm job {slurm_job.job()}"
        if GPUS_VARIABLE in os.environ:
            os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[GPUS_VARIABLE]
        if SUBMITTER_VARIABLE in os.environ:
            submitter = int(os.environ[SUBMITTER_VARIABLE])
            threading.Thread(target=signals.end_with, args=(submitter,), daemon=True).start()
