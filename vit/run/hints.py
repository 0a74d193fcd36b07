"""Commands of this project as they are printed: they work when pasted in the shell that printed them.

python -m vit.run.hints jobs/submit.py --config configs/vit_b16.yaml    prints such a command

Imports nothing but the standard library and, of this project, vit.config.own_files and vit.run.
"""

import os
import shlex
import shutil
import sys
from pathlib import Path

from vit.config.own_files import ROOT, is_checkout
from vit.run import console


def command(program: str, *words: str) -> str:
    """The command that runs a script (`jobs/status.py`) or a module (`vit.wandb_sender`).

    It is `vit-status` if this process was started in that way, or if there are no scripts, in an installed copy.
    `words` are inserted as they are: they must be quoted already.
    """
    if name := _console_command(program):
        return " ".join([name, *words])
    if program.endswith(".py"):
        return " ".join([python(), _script(program), *words])
    path = [] if _is_here(program) else [f"PYTHONPATH={shlex.quote(str(ROOT))}"]
    return " ".join([*path, python(), "-m", program, *words])


def python() -> str:
    """How this Python is started from a shell: `python` if that is the one in PATH, else its path."""
    found = shutil.which("python")
    if not sys.executable or (found and _is_this_python(Path(found))):
        return "python"
    return shlex.quote(_shorter(Path(sys.executable)))


def _console_command(program: str) -> str:
    """The command of the installation, if this user uses those; else empty."""
    name = console.name_of(program)
    if not name or not (console.started_as("") or not (is_checkout() or _is_here(program))):
        return ""
    file = (console.folder() or Path(sys.executable).parent) / name
    found = shutil.which(name)
    if found and file.exists() and file.samefile(found):
        return name
    return shlex.quote(_shorter(file)) if file.exists() else ""


def _is_here(program: str) -> bool:
    """Whether the script or the module is in the working directory."""
    file = program if program.endswith(".py") else program.replace(".", "/")
    return any(Path(file + end).is_file() for end in ("", ".py", "/__main__.py"))


def _script(program: str) -> str:
    """Relative to the working directory if it is there; else its path, relative if that is shorter."""
    return program if Path(program).exists() else shlex.quote(_shorter(ROOT / program))


def _is_this_python(found: Path) -> bool:
    """Whether it is the same program in the same environment: that of an environment is a link to another one."""
    return found.samefile(sys.executable) and _environment(found) == _environment(Path(sys.executable))


def _environment(python: Path) -> Path | None:
    """The virtual environment that an interpreter belongs to."""
    folder = python.absolute().parent
    return next((f.resolve() for f in (folder, folder.parent) if (f / "pyvenv.cfg").exists()), None)


def _shorter(path: Path) -> str:
    """The absolute path, or the one from the working directory if that is shorter.  A shell finds both."""
    relative = os.path.relpath(path)
    relative = relative if "/" in relative else f"./{relative}"
    return min(str(path), relative, key=len)


def main() -> None:
    """The command line."""
    print(command(sys.argv[1], *map(shlex.quote, sys.argv[2:])))


if __name__ == "__main__":
    from vit.run.command import run_command

    run_command(main)
