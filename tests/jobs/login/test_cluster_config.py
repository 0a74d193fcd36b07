"""What jobs request from a cluster, through a file and options; and invalid or impossible requests."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.login import cluster_config
from jobs.login.cluster_config import ClusterConfig, load
from jobs.login.resources import Resources, megabytes
from jobs.login.sbatch import parameters, script
from jobs.slurm.tables import PartitionNodes
from vit.run.folder import RunFolder

FILES = sorted(cluster_config.CLUSTERS_FOLDER.glob("*.yaml"))
NODES = PartitionNodes(partition="gpu", default=True, minutes=1440, count=4, gpus=4, cpus=64, memory=500_000)


def resources(cluster: ClusterConfig, gpus: int = 4, nodes: int = 1) -> Resources:
    cpus = gpus * cluster.cpus_per_gpu
    return Resources(nodes=nodes, gpus=gpus, cpus=cpus, use_gpus=True, cluster=cluster, bind_folders=("/data", "/runs"))


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "mine.yaml").write_text(text)
    return str(tmp_path / "mine.yaml")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_in_configs_clusters_is_valid(path: Path) -> None:
    """And its first line has the option that uses it."""
    load(path.stem, {})
    assert f"--cluster-config {path.stem} " in path.read_text().splitlines()[0]


def test_the_generic_file_lists_every_key_with_its_default() -> None:
    """It is the file to copy, and changes nothing by itself."""
    assert load("generic", {}) == ClusterConfig()
    text = (cluster_config.CLUSTERS_FOLDER / "generic.yaml").read_text()
    assert [line.partition(":")[0] for line in text.splitlines() if line and line[0] not in "# "] == list(
        ClusterConfig.__dataclass_fields__
    )


def test_options_override_the_file(tmp_path: Path) -> None:
    """Values that YAML would convert keep their text: a time of 24:00:00, an account of digits."""
    name = write(tmp_path, "time: 24:00:00\naccount: 0815\nmodules: [a, b]\nsbatch: {mail_type: END, comment: x}\n")
    cluster = load(
        name, {"account": None, "modules": ["c"], "sbatch": ["comment=y", "spread-job"], "cpus_per_gpu": "3"}
    )
    assert (cluster.minutes, cluster.account, cluster.modules, cluster.cpus_per_gpu) == (1440, "0815", ("c",), 3)
    assert cluster.sbatch == {"mail-type": "END", "comment": "y", "spread-job": ""}


def test_every_key_of_a_file_reaches_the_sbatch_script(tmp_path: Path) -> None:
    """As an option of sbatch, a line before the job, or the command that runs Python."""
    name = write(
        tmp_path,
        "partition: gpu\naccount: a\nqos: q\nconstraint: c\nexclude: n[1-2]\nreservation: r\ntime: 90\nmem: 9G\n"
        "cpus_per_gpu: 3\ngres: gpu:a100\nexclusive: true\nrequeue: false\nsignal: USR2@300\nmodules: [cuda/12, gcc]\n"
        "setup: [source env.sh]\npython: python3\ncontainer: vit.sif\ncontainer_exec: singularity exec --nv\n"
        "sbatch: {mail-type: END, spread-job: ''}\n",
    )
    text = script(tmp_path, resources(load(name, {})), [RunFolder(tmp_path)], "slurm")
    for option in (
        "partition=gpu", "account=a", "qos=q", "constraint=c", "exclude='n[1-2]'", "reservation=r", "time=90", "mem=9G",
        "cpus-per-task=12", "gres=gpu:a100:4", "exclusive", "no-requeue", "signal=USR2@300", "mail-type=END",
        "spread-job",
    ):  # fmt: skip
        assert f"#SBATCH --{option}\n" in text, option
    assert "gpus-per-node" not in text
    lines = text.splitlines()
    assert lines.index("module load cuda/12 gcc") < lines.index("source env.sh") < lines.index("# command")
    assert "singularity exec --nv --bind /data --bind /runs vit.sif python3 -u -m submitit" in text


def test_gres_none_requests_no_gpus(tmp_path: Path) -> None:
    """For clusters whose nodes are allocated with all of their GPUs."""
    options = parameters(resources(ClusterConfig(gres="none")), [RunFolder(tmp_path)])
    assert not {"gres", "gpus_per_node"} & options.keys()
    assert parameters(resources(ClusterConfig()), [RunFolder(tmp_path)])["gpus_per_node"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: gpu", "unknown key 'partitoin'; did you mean 'partition'?  (known keys: partition, account,"),
        ("nodes: 4", "nodes is not allowed: it is set by --nodes"),
        ("time: 60\n# the same\ntime: 90", "time is already in line 1; remove one"),
        ("- gpu", "expected lines such as `partition: gpu`, not a list"),
        ("time: tomorrow", "time must be HH:MM:SS, D-HH:MM:SS or a number of minutes, not 'tomorrow'"),
        ("mem: lots", "mem must be a number of megabytes or a number with a unit such as 240G, not 'lots'"),
        ("mem: 240B", "mem must be a number of megabytes or a number with a unit such as 240G, not '240B'"),
        ("python: $UNSET_7/python", "the variable UNSET_7 is not set"),
        ("container_exec: apptainer exec 'a", "a quote is not closed"),
        ("gres: gpu:4", "gres must be gpu, gpu:TYPE or none, not 'gpu:4'; --gpus sets the number of GPUs"),
        ("signal: TERM@30", "signal must be USR2@SECONDS, not 'TERM@30'"),
        ("signal: USR2@60", "signal 'USR2@60' is too late: a run may need 90 s to save; use USR2@100 or more"),
        ("cpus_per_gpu: many", "cpus_per_gpu must be a whole number, not 'many'"),
        ("cpus_per_gpu: 0", "cpus_per_gpu must be at least 1, not 0"),
        ("requeue: maybe", "requeue must be true or false, not 'maybe'"),
        ("account: [a, b]", "account must be a single value, not ['a', 'b']"),
        ("modules: {a: b}", "modules must be a list of strings"),
        ("sbatch: {nodes: 4}", "sbatch.nodes is not allowed: it is set by --nodes"),
        ("sbatch: {mem-per-gpu: {a: b}}", "sbatch must have lines of the form `option: value`"),
        ("a: [", "a bracket that is not closed"),
    ],
)
def test_errors_in_a_file_are_reported_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    """With the file, the key, and the values that are allowed."""
    name = write(tmp_path, text)
    with pytest.raises(ValueError, match=r"mine\.yaml, line [13]: ") as caught:
        load(name, {})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("unit", ["", "K", "M", "G", "T", "KB", "MB", "GB", "TB"])
def test_every_unit_of_memory_that_is_accepted_is_compared_with_the_nodes(unit: str) -> None:
    """No text that passes the check fails later."""
    resources(load(None, {"mem": f"1{unit}"})).check([replace(NODES, memory=1024**2)])


def test_a_file_that_does_not_exist_is_reported_with_those_that_exist() -> None:
    with pytest.raises(
        ValueError, match=r"--cluster-config no: .* does not exist; configs/clusters has apptainer, generic, university"
    ):
        load("no", {})


@pytest.mark.parametrize(
    ("options", "job", "message"),
    [
        ({"partition": "gpuu"}, {}, "--partition gpuu: no such partition; available: gpu"),
        ({}, {"gpus": 8}, "--gpus 8: nodes of partition gpu have at most 4; use --nodes for more"),
        ({}, {"nodes": 5}, "--nodes 5: partition gpu has only 4"),
        ({"cpus_per_gpu": "17"}, {}, "--cpus-per-gpu 17: needs 68 cores, nodes of partition gpu have at most 64"),
        ({"mem": "600G"}, {}, "--mem 600G: nodes of partition gpu have at most 500000 MB"),
        ({"time": "2-00:00:00"}, {}, "--time 2-00:00:00: the limit of partition gpu is 1440 minutes; use --time 1440"),
    ],
)
def test_more_than_a_partition_has_is_refused(options: dict[str, str], job: dict[str, int], message: str) -> None:
    """Slurm itself would accept some of these jobs, and never start them."""
    with pytest.raises(ValueError, match="partition") as caught:
        resources(load(None, options), **job).check([NODES])
    assert message in str(caught.value)


def test_all_that_a_partition_has_is_accepted() -> None:
    """Every node, GPU, core, minute and most of the memory."""
    cluster = load(None, {"time": "1440", "cpus_per_gpu": "16", "mem": "480G", "partition": "gpu"})
    resources(cluster, nodes=4).check([NODES])


def test_memory_is_read_as_slurm_reads_it() -> None:
    """Megabytes, or a number with a unit."""
    assert [megabytes(text) for text in ("", "0", "500", "2048K", "3M", "2G", "1T", "2GB")] == [
        *(0, 0, 500, 2, 3, 2048, 1024**2, 2048)
    ]
