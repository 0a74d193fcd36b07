"""Plugins of a site in Lua, which change or refuse jobs: one in the controller (job_submit), one in sbatch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.slurm_cluster import Cluster
from tests.helpers.waiting import wait_for

LIBRARIES = ("/usr/lib/x86_64-linux-gnu/slurm-wlm", "/usr/lib/x86_64-linux-gnu/slurm", "/usr/lib64/slurm")
SETTINGS = {"job_submit": "JobSubmitPlugins=lua", "cli_filter": "CliFilterPlugins=lua"}
# Around the body of the function that is called for each job.
SCRIPTS = {
    "job_submit": """
function slurm_job_submit(job, partitions, user)
{body}
  return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user) return slurm.SUCCESS end
return slurm.SUCCESS
""",
    "cli_filter": """
function slurm_cli_setup_defaults(options, early) return slurm.SUCCESS end
function slurm_cli_pre_submit(options, offset)
{body}
  return slurm.SUCCESS
end
function slurm_cli_post_submit(offset, job, step) return slurm.SUCCESS end
""",
}


def missing_plugin(kind: str) -> str:
    """Why no such plugin can be used on this machine; "" if it can."""
    if any(Path(folder, f"{kind}_lua.so").exists() for folder in LIBRARIES):
        return ""
    return f"{kind}_lua.so is not installed (Debian: slurm-wlm-basic-plugins)"


@contextmanager
def plugin(slurm: Cluster, kind: str, body: str) -> Iterator[None]:
    """The cluster has this plugin meanwhile."""
    etc = slurm.dir / "etc"
    before, script = (etc / "slurm.conf").read_text(), etc / f"{kind}.lua"
    script.write_text(SCRIPTS[kind].format(body=body))
    try:
        _configure(slurm, f"{SETTINGS[kind]}\n{before}")
        yield
    finally:
        _configure(slurm, before)
        script.unlink()


def _configure(slurm: Cluster, text: str) -> None:
    (slurm.dir / "etc" / "slurm.conf").write_text(text)
    slurm.restart("slurmctld")
    wait_for(slurm.responds, "slurmctld to respond")
    slurm.wait_until_idle()
