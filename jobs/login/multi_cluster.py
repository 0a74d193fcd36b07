"""Sites with several clusters behind one login node: SLURM_CLUSTERS names the one that all commands ask.

A job's number means nothing on another cluster, so a run remembers the one that it was submitted to (`cluster` in the
event `submitted`), and is not looked for on another one.
"""

import functools
import os
from collections.abc import Mapping, Sequence

from jobs.login import slurm_queries
from jobs.node.candidates import newest_submission
from jobs.slurm import client, scontrol
from vit.config.user_error import UserError
from vit.run.folder import Event


def check_clusters(environment: Mapping[str, str]) -> None:
    """Raises UserError if the commands would not all ask the same cluster."""
    named, for_sbatch = environment.get(client.CLUSTER, ""), environment.get("SBATCH_CLUSTERS", "")
    if for_sbatch not in ("", named):
        raise UserError(
            f"SBATCH_CLUSTERS is {for_sbatch}, for sbatch alone: use export {client.CLUSTER}={for_sbatch} instead"
        )
    if "," in named or named == "all":
        raise UserError(f"{client.CLUSTER} is {named}: a run belongs to one cluster; name one of them")


def named_cluster() -> str:
    """The cluster that the user has named; "" for the own one."""
    return os.environ.get(client.CLUSTER, "")


def elsewhere(events: Sequence[Event]) -> str:
    """Why the jobs of a run cannot be looked for, in words; "" if they are on the cluster that is asked.

    Raises SlurmUnreachableError, SlurmNotFoundError if the name of the own cluster is needed.
    """
    newest, asked = newest_submission(events), named_cluster()
    if not newest or newest.get("cluster", "") == asked:
        return ""
    submitted = str(newest.get("cluster", ""))
    if not asked and submitted == _own_cluster():
        return ""
    where = (
        f"on cluster {submitted}: export {client.CLUSTER}={submitted}"
        if submitted
        else f"not on {asked}: unset {client.CLUSTER}"
    )
    return f"job {newest['job']} is {where}"


@functools.cache
def _own_cluster() -> str:
    """The name of the cluster that is asked if the user has named none.

    Raises SlurmUnreachableError, SlurmNotFoundError.
    """
    return scontrol.config_of("\n".join(slurm_queries.lines_of(*scontrol.CONFIG))).get("ClusterName", "")
