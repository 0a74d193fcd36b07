"""What is asked of a cluster: by a file, by flags, and what is refused."""

from pathlib import Path

import pytest

from jobs.login import cluster_config
from jobs.login.cluster_config import ClusterConfig, load
from jobs.login.resources import Resources, megabytes
from jobs.login.sbatch import parameters, script
from jobs.login.slurm_queries import Offer
from vit.run.folder import RunFolder

EXAMPLES = sorted(cluster_config.FOLDER.glob("*.yaml"))
OFFER = Offer(partition="gpu", default=True, minutes=1440, count=4, gpus=4, cpus=64, memory=500_000)


def resources(cluster: ClusterConfig, gpus: int = 4, nodes: int = 1) -> Resources:
    cpus = gpus * cluster.cpus_per_gpu
    return Resources(nodes=nodes, gpus=gpus, cpus=cpus, gpu_devices=True, cluster=cluster, folders=("/data", "/runs"))


def written(tmp_path: Path, text: str) -> str:
    (tmp_path / "mine.yaml").write_text(text)
    return str(tmp_path / "mine.yaml")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_file_is_a_cluster(path: Path) -> None:
    """And each opens with the command that uses it."""
    load(path.stem, {})
    assert f"--cluster-config {path.stem} " in path.read_text().splitlines()[0]


def test_the_generic_file_has_every_key_with_its_default() -> None:
    """It is the one to copy: nothing in it changes anything, and nothing is left out."""
    assert load("generic", {}) == ClusterConfig()
    text = (cluster_config.FOLDER / "generic.yaml").read_text()
    assert [line.partition(":")[0] for line in text.splitlines() if line and line[0] not in "# "] == list(
        ClusterConfig.__dataclass_fields__
    )


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    """Values as YAML would spoil them are kept: a limit of 24:00:00, an account of digits."""
    name = written(tmp_path, "time: 24:00:00\naccount: 0815\nmodules: [a, b]\nsbatch: {mail_type: END, comment: x}\n")
    cluster = load(
        name, {"account": None, "modules": ["c"], "sbatch": ["comment=y", "spread-job"], "cpus_per_gpu": "3"}
    )
    assert (cluster.minutes, cluster.account, cluster.modules, cluster.cpus_per_gpu) == (1440, "0815", ("c",), 3)
    assert cluster.sbatch == {"mail-type": "END", "comment": "y", "spread-job": ""}


def test_what_comes_of_a_file_is_in_the_script(tmp_path: Path) -> None:
    """Every key, in sbatch's words."""
    name = written(
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


def test_gpus_that_come_with_the_node_are_not_asked_for(tmp_path: Path) -> None:
    """`gres: none`."""
    asked = parameters(resources(ClusterConfig(gres="none")), [RunFolder(tmp_path)])
    assert not {"gres", "gpus_per_node"} & asked.keys()
    assert parameters(resources(ClusterConfig()), [RunFolder(tmp_path)])["gpus_per_node"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: gpu", "unknown key 'partitoin'; did you mean 'partition'?  (known are partition, account,"),
        ("- gpu", "write lines of `key: value`"),
        ("time: tomorrow", "time 'tomorrow': write 24:00:00"),
        ("mem: lots", "mem 'lots': write megabytes or a number with its unit"),
        ("gres: gpu:4", "gres 'gpu:4': write gpu, gpu:TYPE or none; --gpus says how many"),
        ("signal: TERM@30", "signal 'TERM@30': write USR2@SECONDS"),
        ("signal: USR2@60", "signal 'USR2@60': a run may need 90 s to save; write USR2@100, or more"),
        ("cpus_per_gpu: many", "cpus_per_gpu: write a whole number, not 'many'"),
        ("cpus_per_gpu: 0", "cpus_per_gpu must be at least 1, not 0"),
        ("requeue: maybe", "requeue: true or false, not 'maybe'"),
        ("account: [a, b]", "account: write one value"),
        ("sbatch: {nodes: 4}", "sbatch.nodes: this is set by --nodes"),
        ("sbatch: {mem-per-gpu: {a: b}}", "sbatch: write a line `option: value` for each"),
        ("a: [", "while parsing"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(text: str, message: str, tmp_path: Path) -> None:
    """One line: the file, the key, and what may stand there."""
    name = written(tmp_path, text)
    with pytest.raises(ValueError, match=r"mine\.yaml: ") as caught:
        load(name, {})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_answered_with_those_that_are() -> None:
    """By their names."""
    with pytest.raises(
        ValueError, match=r"--cluster-config no: .* configs/clusters has apptainer, generic, university"
    ):
        load("no", {})


@pytest.mark.parametrize(
    ("flags", "asked", "message"),
    [
        ({"partition": "gpuu"}, {}, "--partition gpuu: there is no such partition; there are gpu"),
        ({}, {"gpus": 8}, "--gpus 8: --nodes takes several; a node of partition gpu has at most 4"),
        ({}, {"nodes": 5}, "--nodes 5: partition gpu has 4"),
        ({"cpus_per_gpu": "17"}, {}, "--cpus-per-gpu 17: that is 68 cores; a node of partition gpu has at most 64"),
        ({"mem": "600G"}, {}, "--mem 600G: in MB, a node of partition gpu has at most 500000"),
        ({"time": "2-00:00:00"}, {}, "--time 2-00:00:00: a job of partition gpu may take 1440 minutes at most"),
    ],
)
def test_what_no_partition_has_is_refused(flags: dict[str, str], asked: dict[str, int], message: str) -> None:
    """Before it is submitted: Slurm itself lets some of it wait for ever."""
    with pytest.raises(ValueError, match=r"at most|such|has") as caught:
        resources(load(None, flags), **asked).check([OFFER])
    assert message in str(caught.value)


def test_what_a_partition_has_is_not_refused() -> None:
    """All of it, to the last core."""
    resources(load(None, {"time": "1440", "cpus_per_gpu": "16", "mem": "480G", "partition": "gpu"}), nodes=4).check(
        [OFFER]
    )


def test_memory_is_read_as_slurm_reads_it() -> None:
    """Megabytes, or with a unit."""
    assert [megabytes(text) for text in ("", "0", "500", "2048K", "3M", "2G", "1T", "2GB")] == [
        *(0, 0, 500, 2, 3, 2048, 1024**2, 2048)
    ]
