"""Submits the job that writes the data sets; without Slurm, writes them on this machine."""

import shlex
from collections.abc import Sequence
from dataclasses import replace

from jsonargparse import Namespace

from jobs.login import run_files, sbatch, slurm_queries
from jobs.login.cluster_config import ClusterConfig
from jobs.login.prep_config import DataSet, load_prep, write_locally
from jobs.login.resources import Resources, check_path, display_path
from jobs.node.prep_job import PrepJob
from jobs.slurm.tables import PartitionNodes
from vit.config.own_files import find_config
from vit.run.folder import RunFolder
from vit.run.hints import command


class Preparation:
    """The data sets of --prep, and the job that writes them.  Raises UserError for a file that cannot be used."""

    def __init__(
        self, options: Namespace, cluster: ClusterConfig, backend: str, available: Sequence[PartitionNodes]
    ) -> None:
        path = find_config(options.prep)
        self.prep, self.backend, self.dry_run = load_prep(path), backend, options.dry_run
        self.run = RunFolder((options.runs_dir / f"prep-{path.stem}").absolute())
        check_path(self.run.path, self.backend == "slurm")
        outputs = {str(data_set.out.parent) for data_set in self.prep.data_sets}
        self.resources = Resources(
            nodes=1,
            gpus=0,
            cpus=self.prep.cpus,
            use_gpus=False,
            cluster=replace(cluster, **self.prep.job),
            bind_folders=tuple(sorted({str(options.runs_dir.absolute()), *outputs})),
        )
        self.resources.check(available)

    def submit(self) -> tuple[int, str]:
        """Returns the exit code, and the id of the job that training must wait for, or ""."""
        pending = self.prep.pending
        if not pending:
            print(f"all data sets exist: {_names(self.prep.data_sets)}")
            return 0, ""
        if self.dry_run:
            print(f"# data sets to write: {_names(pending)}")
            for data_set in pending:
                print(f"#   {command('data_prep.write_beton', shlex.join(data_set.arguments))}")
            if self.backend == "slurm":
                print(sbatch.script(self.run.jobs, self.resources, [self.run], self.backend))
            return 0, "PREP" if self.backend == "slurm" else ""
        if self.backend != "slurm":
            return write_locally(self.prep), ""
        with self.run.owned():
            run_files.recover(self.run)
            newest = self.run.last("submitted")
            if newest and str(newest["job"]) in slurm_queries.queued_jobs([str(newest["job"])]):
                print(f"{display_path(self.run.path)} is already in the queue: job {newest['job']}")
                return 0, str(newest["job"])
            for data_set in pending:
                data_set.out.parent.mkdir(parents=True, exist_ok=True)
            job = PrepJob(str(self.run.path), tuple(data_set.arguments for data_set in pending), self.prep.cpus)
            with run_files.replaced([self.run], [self.prep.text], on_slurm=True):
                ((job_id,),) = sbatch.submit(self.run.jobs, [self.run], [(self.resources, [job])])
        print(
            f"submitted {display_path(self.run.path)}, which writes {_names(pending)}\n"
            f"  job     {job_id}\n"
            f"  watch   tail -F {display_path(self.run.jobs)}/{job_id}_0_log.out"
        )
        return 0, job_id


def _names(data_sets: Sequence[DataSet]) -> str:
    return ", ".join(display_path(data_set.out) for data_set in data_sets)
