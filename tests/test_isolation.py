"""The tests give the same results whatever the user has in the project's folder, at home and in the environment."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT

HOSTILE = {
    **{"WANDB_MODE": "online", "SLURM_JOB_ID": "4242", "SLURM_RESTART_COUNT": "5", "SBATCH_PARTITION": "none"},
    **{"VIT_SOMETHING": "1", "NUMBA_DISABLE_JIT": "1", "MPLBACKEND": "none", "MPLCONFIGDIR": "/proc/none"},
    **{"RANK": "7", "WORLD_SIZE": "9", "MASTER_ADDR": "192.0.2.1", "COLUMNS": "20", "LC_ALL": "C", "FORCE_COLOR": "1"},
    **{"OMP_NUM_THREADS": "7", "GIT_DIR": "/none", "TORCH_LOGS": "+all"},
}
PROBE = """
import os, subprocess, sys
from pathlib import Path

def test_nothing_of_the_user_is_seen():
    assert not [name for name in {names!r} if name in os.environ]
    assert sorted(path.name for path in Path.home().iterdir()) == [".gitconfig"]
    assert os.umask(0o022) == 0o022
    assert Path("configs/demo.yaml").exists() and Path("jobs/submit.py").exists()
    assert not [name for name in ("runs", "data", "wandb") if Path(name).exists()]
    program = "import tqdm, matplotlib; print(matplotlib.rcParams['lines.linewidth'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1.5\\n"
"""


def test_the_tests_see_nothing_that_the_user_has(tmp_path: Path) -> None:
    """Damaged runs and data with the names of all configs, variables, a home with settings, another folder."""
    project = tmp_path / "project"
    project.mkdir()
    for name in ("configs", "data_prep", "jobs", "tests", "vit"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "setup.py", "Makefile"):
        shutil.copy(ROOT / name, project)
    for config in (ROOT / "configs").glob("*.yaml"):
        run = project / "runs" / config.stem
        (run / "checkpoints" / "step-00000010").mkdir(parents=True)
        (run / "config.yaml").write_text("seed: [")
        (run / "ledger.jsonl").write_text('{"damaged')
    for name in ("imagenet", "fashion-mnist"):
        (project / "data" / name).mkdir(parents=True)
        for file in ("train.beton", "val.beton", "train.beton.json", "val.beton.json"):
            (project / "data" / name / file).write_text("damaged")
    home, shadow = tmp_path / "home", tmp_path / "shadow"
    for folder, file, text in (
        (home / ".config" / "matplotlib", "matplotlibrc", "lines.linewidth: 9"),
        (home, ".gitconfig", "[core]\n\tbare = true\n"),
        (shadow, "tqdm.py", "raise SystemExit('the wrong tqdm')"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    (project / "tests" / "test_probe.py").write_text(PROBE.format(names=[*HOSTILE]))
    environment = os.environ | HOSTILE | {"HOME": str(home), "PYTHONPATH": f"{shadow}:{project}"}
    del environment["TESTS_CHECKOUT"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(project)]
    command += ["-c", str(project / "setup.cfg"), str(project / "tests" / "test_probe.py")]
    command += [
        str(project / "tests/vit/config/test_config_files.py"),
        "-k",
        "user or cost and (demo.yaml or vit_b16.)",
    ]
    done = subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, timeout=300, check=False, umask=0o077
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_no_test_runs_a_command_in_the_folder_of_the_project() -> None:
    """There it would find `runs/` and `data/`, or leave its own."""
    found = re.compile(r"cwd=(str\()?ROOT\b|chdir\(ROOT\b")
    assert [str(path) for path in (ROOT / "tests").rglob("*.py") if found.search(path.read_text())] == []
