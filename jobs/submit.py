"""Submits a training run, or goes on with it: to Slurm where there is one, else on this machine.

python jobs/submit.py --config configs/vit_b16.yaml --nodes 1 --gpus 4
"""

import errno
import gc
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path


def leave() -> None:
    """Ends the process at once."""
    print("stopped before anything was submitted; the same command starts it again", flush=True)
    os._exit(130)


ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script, with jobs/ in the first place
    sys.path[0] = str(ROOT)
    gc.disable()  # imports make no garbage, and looking for some takes a twentieth of the command's time
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # Ctrl-C during imports, which take a while
        signal.signal(signal.SIGINT, lambda *_: leave())

from jsonargparse import ArgumentParser, Namespace

from jobs.login import run_folder, sbatch, slurm_queries
from jobs.login.local_run import follow, in_foreground, summary
from jobs.login.resources import Resources, local_executor, relative
from jobs.login.sbatch import RefusedError
from jobs.login.slurm_queries import NoSlurmError, SilentError
from jobs.login.submit_options import check_options, cluster_of, submit_parser
from jobs.login.sweep import Point, points
from vit.config import schema
from vit.config.parser import parse_config
from vit.config.schema import Config
from vit.run.folder import InUseError, RunFolder


def main(args: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = sys.argv[1:] if args is None else args
    command = submit_parser((__doc__ or "").partition("\n")[0])
    cfg, asked = parse_config(command, words)
    try:
        return Submission(command, words, asked).run(cfg)
    except (ValueError, InUseError, OSError, SilentError, NoSlurmError, RefusedError) as error:
        hint = "; --cluster local runs it here" if isinstance(error, SilentError | NoSlurmError) else ""
        if isinstance(error, OSError) and error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            hint = "; --runs-dir names a folder that you may write"
        print(f"submit.py: {error}{hint}", file=sys.stderr)
        return 2 if isinstance(error, ValueError | OSError) else 1


@dataclass(frozen=True)
class Planned:
    """A run that is asked for."""

    run: RunFolder
    cfg: Config
    point: Point | None = None  # of a sweep


class Submission:
    """One call of the command."""

    def __init__(self, parser: ArgumentParser, words: Sequence[str], asked: Namespace) -> None:
        self.parser, self.words, self.asked = parser, words, asked
        check_options(asked)
        self.cluster = cluster_of(asked)
        wanted = "slurm" if asked.cluster == "auto" and asked.cluster_config else asked.cluster
        self.where, self.offers = find(wanted, asked.dry_run)

    def run(self, cfg: Config) -> int:
        """Submits what was asked for; returns the exit code."""
        after, coming = "", set[Path]()
        if self.asked.prep:
            from jobs.login import prep_submit  # which few need

            preparation = prep_submit.Preparation(self.asked, self.cluster, self.where, self.offers)
            coming = {one.out for one in preparation.prep.left}
        planned = self.planned(cfg, coming) if self.asked.config else []
        if self.asked.prep:
            code, after = preparation.submit()
            if code or not planned:
                return code
        return self.several(planned, after) if self.asked.sweep else self.single(planned[0], after)

    def planned(self, cfg: Config, coming: set[Path]) -> list[Planned]:
        """The runs, each one checked.  Raises ValueError."""
        if not self.asked.sweep:
            run = RunFolder(run_folder.folder_of(self.asked))
            out = [Planned(run, run_folder.resolved(cfg, self.asked, self.where, coming))]
        else:
            folder = run_folder.folder_of(self.asked, "-sweep")
            out = []
            for point in points(self.asked.sweep):
                cfg, _ = parse_config(self.parser, [*self.words, *point.arguments()])
                cfg = run_folder.resolved(cfg, self.asked, self.where, coming)
                out.append(Planned(RunFolder(folder / point.name), cfg, point))
        for each in out:
            run_folder.check_same(each.cfg, each.run, self.asked)
        self.resources(out[0], "").check(self.offers)
        return out

    def resources(self, planned: Planned, after: str) -> Resources:
        """What a job asks for."""
        cfg = planned.cfg
        needed = [cfg.data.train, cfg.data.val, *([Path(cfg.init_from)] if cfg.init_from else [])]
        return Resources(
            nodes=self.asked.nodes,
            gpus=self.asked.gpus,
            cpus=self.asked.gpus * self.cluster.cpus_per_gpu,
            gpu_devices=cfg.device != "cpu",
            cluster=self.cluster,
            after=after,
            requeues=self.asked.max_requeues,
            parallel=self.asked.max_parallel or 0,
            folders=tuple(sorted({str(self.asked.runs_dir.absolute()), *(str(path.parent) for path in needed)})),
        )

    def queued(self, planned: Sequence[Planned]) -> dict[Path, tuple[str, slurm_queries.Queued]]:
        """The newest jobs of those runs that have one in the queue, with their numbers."""
        if self.where != "slurm":
            return {}
        newest = {each.run.path: each.run.last("submitted") for each in planned}
        numbers = {path: str(event["job"]) for path, event in newest.items() if event}
        there = slurm_queries.going(set(numbers.values()))
        return {path: (number, there[number]) for path, number in numbers.items() if number in there}

    def single(self, planned: Planned, after: str) -> int:
        """One run."""
        run, cfg, resources = planned.run, planned.cfg, self.resources(planned, after)
        if self.asked.dry_run:
            print(f"# {run.config}\n{schema.to_yaml(cfg)}\n# the job")
            print(sbatch.script(run.jobs, resources, [run], self.where))
            return 0
        job = run_folder.train_job(run, self.asked)
        if said := self.nothing_to_do(planned):
            print(said)
            return 0
        with run.owned():
            if said := self.nothing_to_do(planned):  # by now, after another command at the same moment
                print(said)
                return 0
            run_folder.freeze(run, schema.to_yaml(cfg))
            if self.where == "slurm":
                (number,) = sbatch.submit(run.jobs, resources, [run], [job])
                print(f"submitted; the job goes on by itself until the run is finished\n{hints(run, number)}")
                return 0
        return follow(job, run, local_executor(run, resources)) if self.where == "local" else in_foreground(job, run)

    def nothing_to_do(self, planned: Planned) -> str:
        """Why there is nothing to submit, if the run is complete; else nothing.  Raises InUseError if Slurm has it."""
        run = planned.run
        if (event := run.finished()) and run_folder.is_complete(planned.cfg, run):
            return f"{run.path} is complete.\n{summary(run, event)}"
        if found := self.queued([planned]).get(run.path):
            number, job = found
            where = "in the queue already" if job.state == "PENDING" else f"running already, on {job.nodes}"
            raise InUseError(f"{run.path} is {where}.\n{hints(run, number)}")
        return ""

    def several(self, planned: Sequence[Planned], after: str) -> int:
        """A sweep: those of its runs that are neither finished nor in the queue."""
        folder = planned[0].run.path.parent
        if self.asked.dry_run:
            print(f"# {folder}\n" + "\n".join(f"#   {each.run.path.name}" for each in planned))
            print(f"# the first of {len(planned)}\n{schema.to_yaml(planned[0].cfg)}\n# the job")
            runs = [each.run for each in planned]
            print(sbatch.script(folder / planned[0].run.jobs.name, self.resources(planned[0], after), runs, self.where))
            return 0
        with ExitStack() as owned:
            queued = self.queued(planned)
            complete = [each for each in planned if run_folder.is_complete(each.cfg, each.run)]
            left = [each for each in planned if each not in complete and each.run.path not in queued]
            print(
                f"{relative(folder)}: {len(planned)} runs, {len(complete)} complete, {len(queued)} in the queue already"
            )
            if self.where != "slurm":
                return self.one_after_the_other(left)
            for each in left:
                owned.enter_context(each.run.owned())
            queued = self.queued(left)  # by now, after another command at the same moment
            left = [each for each in left if each.run.path not in queued]
            if not left:
                return 0
            for each in left:
                run_folder.freeze(each.run, schema.to_yaml(each.cfg))
                share_jobs_folder(each.run)
            runs = [each.run for each in left]
            jobs = [run_folder.train_job(run, self.asked) for run in runs]
            numbers = sbatch.submit(runs[0].jobs.resolve(), self.resources(left[0], after), runs, jobs)
        array = numbers[0].partition("_")[0]
        print(
            f"submitted {len(left)} runs; each goes on by itself until it is finished\n"
            f"  job     {array}\n"
            f"  watch   python jobs/status.py {relative(folder)} --watch\n"
            f"  stop    scancel {array}, or one of them: scancel {numbers[-1]}   (the same command goes on with them)"
        )
        return 0

    def one_after_the_other(self, left: Sequence[Planned]) -> int:
        """On this machine.  One that fails does not keep the others from running; Ctrl-C ends all."""
        worst = 0
        for each in left:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # between two runs it is ours
            job = run_folder.train_job(each.run, self.asked)
            with each.run.owned():
                run_folder.freeze(each.run, schema.to_yaml(each.cfg))
            executor = local_executor(each.run, self.resources(each, ""))
            code = follow(job, each.run, executor) if self.where == "local" else in_foreground(job, each.run)
            if code == 130:
                return code
            worst = max(worst, code)
        return worst


def find(wanted: str, dry_run: bool) -> tuple[str, list[slurm_queries.Offer]]:
    """Where the run is to run, and what Slurm offers there.  Raises SilentError, NoSlurmError."""
    if wanted in {"local", "debug"}:
        return wanted, []
    try:
        return "slurm", slurm_queries.offers()
    except NoSlurmError:
        if wanted == "slurm" and not dry_run:
            raise
        return "local" if wanted == "auto" else "slurm", []
    except SilentError:
        if not dry_run:
            raise
        return "slurm", []


def share_jobs_folder(run: RunFolder) -> None:
    """What an array says and keeps is in one folder for all of its tasks, which each run points at."""
    shared = run.path.parent / run.jobs.name
    shared.mkdir(exist_ok=True)
    if not run.jobs.is_symlink() and not run.jobs.exists():
        run.jobs.symlink_to(Path("..") / run.jobs.name)


def hints(run: RunFolder, job: str) -> str:
    """What to type while a job waits or runs."""
    return (
        f"  job     {job}\n"
        f"  watch   tail -F {relative(run.logs)}/rank-0.log\n"
        f"  status  python jobs/status.py {relative(run.path)}\n"
        f"  stop    scancel {job}   (the same command goes on with the run)"
    )


if __name__ == "__main__":
    gc.enable()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        leave()
