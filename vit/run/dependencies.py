"""A package that is not installed: one line that says how to install it or how to find it, and no traceback.

To be called before anything else is imported.  Imports only the standard library, and runs on older versions of Python.
"""

import importlib.util
import os
import shlex
import sys
from types import TracebackType
from typing import Optional, Type  # noqa: UP035

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
USER_ERROR = 2  # exit code for what the user can fix

# The packages of setup.cfg by the name under which they are imported.
PACKAGES = {
    **{name: name for name in ("torch", "torchvision", "numpy", "jsonargparse", "submitit", "wandb", "psutil")},
    **{name: name for name in ("rich", "setproctitle", "safetensors", "numba", "pandas", "tqdm", "matplotlib")},
    **{"yaml": "PyYAML", "ffcv": "FFCV", "PIL": "Pillow", "cv2": "opencv-python"},
}
# Those that only FFCV needs: an installation with VIT_WITHOUT_FFCV=1 has none of them (setup.py).
FOR_FFCV = ("ffcv", "numba", "pandas")
FFCV_ADVICE = "pip install ffcv==1.0.2 numba pandas (README.md, Without FFCV)"


def explain_missing_packages() -> None:
    """From now on, an import that fails because a package of this project is not installed ends the process.

    Other errors keep their traceback: a module of our own, or a library that is installed but broken.
    """
    if sys.version_info < (3, 11):  # noqa: UP036  # the system's may be older
        found = ".".join(map(str, sys.version_info[:2]))
        _exit(f"Python 3.11 to 3.14 is needed, but {sys.executable} is {found}")
    previous = sys.excepthook

    def hook(kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:  # noqa: UP006, UP045
        if issubclass(kind, KeyboardInterrupt):  # while the command imports; later it is handled by `run_command`
            return
        name = error.name if isinstance(error, ModuleNotFoundError) else None
        if name not in PACKAGES or importlib.util.find_spec(name) is not None:
            previous(kind, error, trace)
            return
        _exit(f"{PACKAGES[name]} is not installed in {sys.executable}", PACKAGES[name])

    sys.excepthook = hook


def _exit(problem: str, package: str = "") -> None:
    """Prints the name of the command, the problem and what to do, as one line."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = spec.name.replace(".__main__", "") if spec else os.path.relpath(os.path.abspath(sys.argv[0]), ROOT)
    console = sys.modules.get("vit.run.console")
    program = console.started_as(program) if console else program
    sys.stderr.write(f"{program}: {problem}; {_advice(package)}\n")
    sys.exit(USER_ERROR)


def _advice(package: str) -> str:
    """How to install the packages, or to use the environment in which they are."""
    if package in map(PACKAGES.get, FOR_FFCV):
        return f"run `{shlex.quote(sys.executable)} -m {FFCV_ADVICE.replace(' (', '` (')}"
    if any(name.startswith("vit_slurm-") for name in os.listdir(ROOT)):  # an installed copy, in site-packages
        return f"run `{shlex.quote(sys.executable)} -m pip install {package}`"
    environment = os.path.join(ROOT, ".venv")
    activate = f"`source {_quoted(os.path.join(environment, 'bin', 'activate'))}`"
    if not os.path.exists(os.path.join(ROOT, "Makefile")):  # a copy of the source in a run folder
        return "use the Python with which the run was submitted, or install the package there"
    setup = "`make setup`" if os.path.samefile(ROOT, os.getcwd()) else f"`make -C {_quoted(ROOT)} setup`"
    if os.path.realpath(sys.prefix) == os.path.realpath(environment):
        return f"run {setup}"
    if os.path.exists(os.path.join(environment, "bin", "activate")):
        return f"run {activate}, or {setup}"
    return f"run {setup}, and then {activate}"


def _quoted(path: str) -> str:
    """A path for a shell: the absolute one, or the one from the working directory if that is shorter."""
    return shlex.quote(min(path, os.path.relpath(path), key=len))
