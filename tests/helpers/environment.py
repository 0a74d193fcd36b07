"""What the tests must not see: the user's variables, home folder, umask, working directory, `runs/` and `data/`."""

import atexit
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Variables that change what the project, its libraries or Slurm's commands do.
PREFIXES = (
    *("WANDB_", "SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SUBMITIT_"),
    *("VIT_", "NUMBA_", "MPL", "MATPLOTLIB", "OMP_", "MKL_", "NCCL_", "GLOO_", "TORCH", "PYTORCH_", "TRITON_"),
    *("CUBLAS_", "CUDNN_", "JSONARGPARSE_", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "LC_", "XDG_CONFIG", "GIT_CONFIG"),
    *("GIT_DIR", "GIT_WORK", "GIT_AUTHOR", "GIT_COMMITTER", "PYTHON"),
)
NAMES = (
    "RANK",
    "WORLD_SIZE",
    "COLUMNS",
    "LINES",
    "NO_COLOR",
    "FORCE_COLOR",
    "NETRC",
    "LANG",
    "LANGUAGE",
    "VIRTUAL_ENV",
)
KEPT = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
# What users have in the project's folder: what commands write there by default, and environments.
NOT_IN_CHECKOUT = ("runs", "data", "wandb", "build")
CHECKOUT_VARIABLE = "TESTS_CHECKOUT"


def isolate() -> None:
    """Clears the environment of this process and of all that it starts, before libraries read it.

    The home folder is an empty one.  `TESTS_CHECKOUT` is a folder with the project's files but not `runs/` or `data/`.
    """
    os.umask(0o022)
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [path for path in sys.path if path not in inherited or path in ("", str(ROOT))]
    for name in list(os.environ):
        if (name.startswith(PREFIXES) or name in NAMES) and name not in KEPT:
            del os.environ[name]
    os.environ["LANG"] = "C.UTF-8"
    if str(ROOT) in inherited:
        os.environ["PYTHONPATH"] = str(ROOT)
    if CHECKOUT_VARIABLE in os.environ:
        return  # a process of pytest-xdist
    folder = Path(tempfile.mkdtemp(prefix="tests-"))
    atexit.register(partial(_remove, folder, os.getpid()))
    os.environ.setdefault("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))  # of fonts, which take long to list
    for name in ("home", "checkout"):
        (folder / name).mkdir()
    (folder / "home" / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
    for path in ROOT.iterdir():
        if path.name not in NOT_IN_CHECKOUT and not path.name.startswith("."):
            (folder / "checkout" / path.name).symlink_to(path)
    os.environ |= {"HOME": str(folder / "home"), CHECKOUT_VARIABLE: str(folder / "checkout")}


def _remove(folder: Path, process: int) -> None:
    """Not in a fork."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
