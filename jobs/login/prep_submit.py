"""Submits the job that writes the data sets, or writes them here where there is no Slurm."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace

from jobs.login import run_folder, sbatch, slurm_queries
from jobs.login.cluster_config import ClusterConfig
from jobs.login.prep_config import load_prep, write_here
from jobs.login.resources import Resources, relative
from jobs.login.slurm_queries import Offer
from jobs.node.prep_job import PrepJob
from vit.run.folder import RunFolder


class Preparation:
    """What --prep asks for.  Raises ValueError for what cannot be written."""

    def __init__(self, asked: Namespace, cluster: ClusterConfig, where: str, offers: Sequence[Offer]) -> None:
        path = Path(asked.prep)
        self.prep, self.where, self.dry_run = load_prep(path), where, asked.dry_run
        self.run = RunFolder((asked.runs_dir / f"prep-{path.stem}").absolute())
        folders = {str(asked.runs_dir.absolute()), *(str(one.out.parent) for one in self.prep.sets)}
        self.resources = Resources(
            nodes=1,
            gpus=0,
            cpus=self.prep.cpus,
            gpu_devices=False,
            cluster=replace(cluster, **self.prep.job),
            folders=tuple(sorted(folders)),
        )
        self.resources.check(offers)

    def submit(self) -> tuple[int, str]:
        """The exit code, and the number of the job to wait for, if there is one."""
        if not self.prep.left:
            print("the data sets are there: " + ", ".join(relative(one.out) for one in self.prep.sets))
            return 0, ""
        if self.dry_run:
            print("# to be written: " + ", ".join(relative(one.out) for one in self.prep.left))
            for one in self.prep.left:
                print(f"#   python -m data_prep.write_beton {' '.join(one.arguments)}")
            if self.where == "slurm":
                print(sbatch.script(self.run.jobs, self.resources, [self.run], self.where))
            return 0, "PREP" if self.where == "slurm" else ""
        if self.where != "slurm":
            return write_here(self.prep), ""
        with self.run.owned():
            before = self.run.last("submitted")
            if before and str(before["job"]) in slurm_queries.jobs([str(before["job"])]):
                print(f"{relative(self.run.path)} is in the queue already: job {before['job']}")
                return 0, str(before["job"])
            run_folder.freeze(self.run, self.prep.text)
            for one in self.prep.left:
                one.out.parent.mkdir(parents=True, exist_ok=True)
            job = PrepJob(str(self.run.path), tuple(one.arguments for one in self.prep.left), self.prep.cpus)
            (number,) = sbatch.submit(self.run.jobs, self.resources, [self.run], [job])
        print(
            f"submitted {relative(self.run.path)}: writes {', '.join(relative(one.out) for one in self.prep.left)}\n"
            f"  job     {number}\n"
            f"  watch   tail -F {relative(self.run.jobs)}/{number}_0_log.out"
        )
        return 0, number
