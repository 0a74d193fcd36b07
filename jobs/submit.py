"""Submits a training run to Slurm, or resumes it; without Slurm, runs it on this machine.

python jobs/submit.py --config configs/vit_b16.yaml --nodes 1 --gpus 4
"""

import gc
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn


def exit_interrupted() -> NoReturn:
    """Ends the process at once, after a Ctrl-C before anything was submitted."""
    with suppress(OSError):  # nobody reads the output any more
        print("stopped before anything was submitted; run the same command to start again", flush=True)
    os._exit(130)


ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script: sys.path[0] is jobs/, except with PYTHONSAFEPATH
    sys.path[: not getattr(sys.flags, "safe_path", False)] = [str(ROOT)]
if __name__ == "__main__":
    gc.disable()  # imports create no garbage, and collecting takes 5 % of the command's time
    # Imports take a while: Ctrl-C may come before main.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: exit_interrupted())
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()  # before what an older Python does not have

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from jsonargparse import Namespace

from jobs.estimate.request import Request
from jobs.login import dry_run, local_run, run_files, run_folder, sbatch, slurm_queries, sweep_arrays
from jobs.login.held_jobs import SubmissionError
from jobs.login.initial_weights import check_initial_weights, check_number_of_classes, initial_settings
from jobs.login.local_run import INTERRUPTED, summary
from jobs.login.multi_cluster import check_clusters
from jobs.login.queued_runs import in_queue_message, queued_jobs
from jobs.login.resources import Resources, check_path, display_path, local_executor
from jobs.login.sizes import Size, choose_sizes, runnable
from jobs.login.slurm_queries import SlurmNotFoundError, SlurmUnreachableError
from jobs.login.submit_options import check_options, load_cluster, names_cluster, submit_parser
from jobs.login.sweep import SweepPoint, sweep_configs, sweep_points
from jobs.node import submitter_lock
from vit.checkpoint.initial_settings import InitialSettings
from vit.config import schema
from vit.config.parser import Parser, parse_config
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.run.command import print_error, run_command
from vit.run.counts import counted
from vit.run.disk_errors import NOT_WRITABLE
from vit.run.folder import InUseError, RunFolder


def main(args: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if args is None else args
    try:
        parser, settings = submit_parser((__doc__ or "").partition("\n")[0]), initial_settings()
        cfg, options = parse_config(parser, argv, settings)
        return Submission(parser, argv, options, settings).run(cfg)
    except (UserError, InUseError, OSError, SlurmUnreachableError, SlurmNotFoundError, SubmissionError) as error:
        message: Exception | str = error
        if isinstance(error, SlurmUnreachableError | SlurmNotFoundError):
            message = f"{error}; use --cluster local to run on this machine"
        unwritable = isinstance(error, OSError) and error.errno in NOT_WRITABLE
        print_error("submit.py", message, "use --runs-dir to choose a writable folder" if unwritable else "")
        return 2 if isinstance(error, UserError | OSError) else 1
    except KeyboardInterrupt:
        exit_interrupted()


@dataclass(frozen=True)
class PlannedRun:
    """A requested run, with its resolved config."""

    folder: RunFolder
    cfg: Config
    point: SweepPoint | None = None  # if it belongs to a sweep


class Submission:
    """One call of the command."""

    def __init__(self, parser: Parser, argv: Sequence[str], options: Namespace, settings: InitialSettings) -> None:
        self.parser, self.argv, self.options, self.settings = parser, argv, options, [settings]
        check_options(options)
        check_clusters(os.environ)
        self.cluster = load_cluster(options)
        requested = "slurm" if options.cluster == "auto" and names_cluster(options) else options.cluster
        self.sizes: list[Size] = []
        self.backend, self.available, self.warning = slurm_queries.find_backend(requested, options.dry_run)

    def run(self, cfg: Config) -> int:
        """Submits what the options request; returns the exit code."""
        dependency, pending_data = "", set[Path]()
        if self.options.prep:
            from jobs.login import prep_submit  # not at the top: it takes time, and is rarely needed

            preparation = prep_submit.Preparation(self.options, self.cluster, self.backend, self.available)
            pending_data = {data_set.out for data_set in preparation.prep.pending}
        runs = self.plan(cfg, pending_data) if self.options.config else []
        if self.options.estimate:
            from jobs.estimate import table  # not at the top: a submission does not need it

            return table.show(self.estimates(runs))
        if self.options.prep:
            code, dependency = preparation.submit()
            if code or not runs:
                return code
        return self.submit_sweep(runs, dependency) if self.options.sweep else self.submit_run(runs[0], dependency)

    def estimates(self, runs: Sequence[PlannedRun]) -> Request:
        """What the runs would take, on each number of GPUs."""
        planned, resources = [(r.folder, r.cfg) for r in runs], [self.resources(runs[0], size) for size in self.sizes]
        return Request(planned, resources, self.backend, self.available)

    def plan(self, cfg: Config, pending_data: Collection[Path]) -> list[PlannedRun]:
        """The requested runs, all of them checked.  Raises UserError."""
        if not self.options.sweep:
            sizes, remarks = choose_sizes(self.options.nodes, self.options.gpus, [cfg], self.backend)
            cfg = run_folder.resolve_config(cfg, self.options, pending_data)
            runs = [PlannedRun(RunFolder(run_folder.folder_path(self.options)), cfg)]
        else:
            parent, points = run_folder.folder_path(self.options, "-sweep"), sweep_points(self.options.sweep)
            folders, found = [RunFolder(parent / point.name) for point in points], self.settings.pop().found
            self.settings += [initial_settings(folder, found) for folder in folders]
            configs = sweep_configs(self.parser, self.argv, points, self.settings)  # all, before any data is read
            sizes, remarks = choose_sizes(self.options.nodes, self.options.gpus, configs, self.backend)
            configs = [run_folder.resolve_config(c, self.options, pending_data) for c in configs]
            runs = [PlannedRun(*each) for each in zip(folders, configs, points, strict=True)]
        for run, settings in zip(runs, self.settings, strict=True):
            check_path(run.folder.path, self.backend == "slurm")
            if run_files.is_interrupted(run.folder) and not self.options.dry_run:
                with submitter_lock.owned(run.folder), submitter_lock.submitting(run.folder):
                    run_files.recover(run.folder)
            run_folder.check_unchanged(run.cfg, run.folder, self.options)
            run_folder.check_class_names(run.cfg, run.folder, self.options)
            check_number_of_classes(settings, run.cfg, pending_data)
        planned = [(run.folder, run.cfg) for run in runs]
        check_initial_weights(planned, self.settings, self.options.dry_run)
        self.sizes = runnable(sizes, lambda size: self.resources(runs[0], size).check(self.available), remarks)
        if self.warning:
            print_error("submit.py", self.warning)
        run_folder.print_remarks(planned, self.options, pending_data, self.sizes[0].ranks, remarks)
        return runs

    def resources(self, run: PlannedRun, size: Size, dependency: str = "") -> Resources:
        """What the job of a run requests in this size."""
        data, weights = run.cfg.data, run.cfg.init_from
        inputs = [data.train, data.val, *([Path(weights)] if weights else [])]
        return Resources(
            nodes=size.nodes,
            gpus=size.gpus,
            gpu_type=size.gpu_type,
            cpus=size.gpus * self.cluster.cpus_per_gpu,
            use_gpus=run.cfg.device != "cpu",
            cluster=self.cluster,
            dependency=dependency,
            max_requeues=self.options.max_requeues,
            max_parallel=self.options.max_parallel or 0,
            bind_folders=tuple(sorted({str(self.options.runs_dir.absolute()), *(str(path.parent) for path in inputs)})),
        )

    def submit_run(self, run: PlannedRun, dependency: str) -> int:
        """Submits one run, or executes it on this machine; returns the exit code."""
        folder, cfg = run.folder, run.cfg
        if self.options.dry_run:
            sizes = [(size, self.resources(run, size, dependency)) for size in self.sizes]
            dry_run.print_run(folder, cfg, sizes, self.backend)
            return 0
        if self.is_complete(run):
            return 0
        with ExitStack() as until_end:
            with submitter_lock.owned(folder):
                until_end.enter_context(submitter_lock.submitting(folder))
                # Again: another command may have run at the same time.
                run_folder.check_unchanged(cfg, folder, self.options)
                if self.is_complete(run):
                    return 0
                if self.backend == "slurm":
                    (job_ids,) = self.submit_jobs(folder.jobs, [run], dependency)
                    hints = sbatch.job_hints(folder, job_ids)
                    print(f"submitted; the job is requeued as needed until the run is finished\n{hints}")
                    return 0
                wait = self.start_here(run)
            return wait()

    def submit_jobs(self, jobs_folder: Path, runs: Sequence[PlannedRun], dependency: str) -> list[list[str]]:
        """Submits runs to Slurm in all sizes; returns the ids of the jobs of each run."""
        folders = [run.folder for run in runs]
        sizes = [
            (
                self.resources(runs[0], size, dependency),
                [run_folder.train_job(folder, self.options, size) for folder in folders],
            )
            for size in reversed(self.sizes)  # else Slurm keeps free GPUs for a larger job that is ahead in the queue
        ]
        with run_files.replaced(folders, [schema.to_yaml(run.cfg) for run in runs], on_slurm=True, sizes=len(sizes)):
            self.estimates(runs).record()
            return sbatch.submit(jobs_folder, folders, sizes)

    def start_here(self, run: PlannedRun) -> Callable[[], int]:
        """Starts a run on this machine; returns a function that waits for its end and returns the exit code."""
        folder, (size,) = run.folder, self.sizes
        job = run_folder.train_job(folder, self.options, size)
        with run_files.replaced([folder], [schema.to_yaml(run.cfg)], on_slurm=False):
            self.estimates([run]).record()
            if self.backend == "local":
                executor = local_executor(folder, self.resources(run, size))
                return partial(local_run.wait, local_run.start(job, folder, executor))
            run_files.record_submission(folder)
        return partial(local_run.run_in_foreground, job, folder)

    def is_complete(self, run: PlannedRun) -> bool:
        """Whether the run is complete; says so.  Raises InUseError if its job is in Slurm's queue."""
        folder = run.folder
        event = folder.finished()
        if event and run_folder.is_complete(run.cfg, folder):
            print(f"{folder.path} is complete.\n{summary(folder, event)}")
            return True
        found = queued_jobs([folder], self.backend)
        if found:
            raise InUseError(in_queue_message(folder, found[folder.path]))
        return False

    def submit_sweep(self, runs: Sequence[PlannedRun], dependency: str) -> int:
        """Submits those runs of a sweep that are neither complete nor in the queue; returns the exit code."""
        parent = runs[0].folder.path.parent
        array_size = sweep_arrays.array_size(len(runs), self.options.max_parallel, self.backend)
        if self.options.dry_run:
            sizes = [(size, self.resources(runs[0], size, dependency)) for size in self.sizes]
            dry_run.print_sweep([run.folder for run in runs], array_size, runs[0].cfg, sizes, self.backend)
            return 0
        with ExitStack() as until_end, ExitStack() as submission:
            _, queued, pending = self.sort_by_state(runs)
            for run in pending:
                submission.enter_context(submitter_lock.owned(run.folder))
                until_end.enter_context(submitter_lock.submitting(run.folder))
            # Again: another command may have run at the same time.
            complete, queued, pending = self.sort_by_state(runs)
            counts = f"{counted(len(runs), 'run')}, {len(complete)} complete, {len(queued)} already in the queue"
            print(f"{display_path(parent)}: {counts}")
            for run in pending:
                run_folder.check_unchanged(run.cfg, run.folder, self.options)
            if self.backend != "slurm":
                submission.close()
                return self.run_one_by_one(pending)
            if not pending:
                return 0
            for run in pending:
                run_files.link_jobs_folder(run.folder)
            submit_jobs = partial(self.submit_jobs, pending[0].folder.jobs.resolve(), dependency=dependency)
            sweep_arrays.submit(parent, pending, array_size, submit_jobs)
        return 0

    def sort_by_state(self, runs: Sequence[PlannedRun]) -> tuple[list[PlannedRun], list[PlannedRun], list[PlannedRun]]:
        """Those runs that are complete, those whose jobs are in Slurm's queue, and the others."""
        jobs = queued_jobs([run.folder for run in runs], self.backend)
        complete = [run for run in runs if run_folder.is_complete(run.cfg, run.folder)]
        queued = [run for run in runs if run not in complete and run.folder.path in jobs]
        return complete, queued, [run for run in runs if run not in complete and run not in queued]

    def run_one_by_one(self, runs: Sequence[PlannedRun]) -> int:
        """Runs a sweep on this machine; returns the exit code.

        A run that fails does not stop the others; Ctrl-C stops all.
        """
        worst = 0
        for run in runs:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # run_locally replaces it
            try:
                with submitter_lock.owned(run.folder):
                    wait = self.start_here(run)
            except InUseError as error:
                print_error("submit.py", error)
                worst = max(worst, 1)
                continue
            code = wait()
            if code == INTERRUPTED:
                return code
            worst = max(worst, code)
        return worst


if __name__ == "__main__":
    gc.enable()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command(main, keep_going=True)
