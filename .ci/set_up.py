"""Creates `.venv` (make setup): shows each step with its time, and starts over if it was interrupted.

python3.11 .ci/set_up.py --torch cpu --index URL

Needs only Python itself.  An older Python can read it, too, and then says that it is too old.
"""

import argparse
import contextlib
import fcntl
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

from set_up_checks import (
    DOWNLOAD,
    INSTALLED,
    NO_NETWORK,
    ROOT,
    UNREACHABLE,
    VENV,
    SetupError,
    check_cpu_builds,
    check_space,
    end_with_parent,
    index_options,
    size,
)

READY = os.path.join(VENV, "ready")  # exists while the environment is whole; says which builds of torch it has
UNFINISHED = os.path.join(VENV, "unfinished")  # exists during a set-up; says which builds it installs
PYTHON = os.path.join(VENV, "bin", "python")
BUILDS = ("cuda", "cpu")
BIG = 50  # MB: larger downloads are shown
UNITS = {"kB": 1e-3, "MB": 1, "GB": 1e3}
# What pip, or FFCV's own setup.py, says where FFCV or a package that only FFCV needs cannot be installed.
FFCV_FAILED = re.compile(
    r"(?<=RuntimeError: )Could not find required package: .*|Failed (?:building wheel for|to build) '?ffcv.*"
    r"|.*No matching distribution found for (?:ffcv|numba|pandas).*|.*conflicting.*(?:ffcv|numba|pandas).*"
)
WITHOUT_FFCV = (
    "WARNING: FFCV is not installed; training, evaluation and data preparation do not need it, only data.decoder ffcv "
    "and comparisons with FFCV do (README.md, Without FFCV)"
)


class Steps:
    """Prints numbered steps, and lines below them, with the time since the start."""

    def __init__(self, count):
        self.count, self.number, self.start = count, 0, time.monotonic()

    def step(self, text):
        self.number += 1
        show(f"[{self.number}/{self.count}] {self.time():>5}  {text}")

    def note(self, text):
        show(f"      {self.time():>5}    {text}")

    def time(self):
        seconds = int(time.monotonic() - self.start)
        return f"{seconds // 60}:{seconds % 60:02}"


def show(text):
    """Prints a line at once, also into a log."""
    print(text, flush=True)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch", default="", help="cpu or cuda: which builds of torch and torchvision")
    parser.add_argument("--index", default="", help="address of the package index that has the CPU-only builds")
    options = parser.parse_args()
    try:
        if not (3, 11) <= sys.version_info[:2] <= (3, 14):
            found = ".".join(map(str, sys.version_info[:2]))
            raise SetupError(
                f"Python 3.11 to 3.14 is needed, not {found} ({sys.executable}); try make PYTHON=/path/to/python3.11"
            )
        if options.torch not in ("", *BUILDS):
            raise SetupError(f"TORCH is {' or '.join(BUILDS)}, not {options.torch!r}")
        if options.index and options.torch != "cpu":
            raise SetupError("TORCH_INDEX is the index of the CPU-only builds; give TORCH=cpu, too")
        set_up(options.torch, options.index)
    except SetupError as error:
        sys.exit(f"make setup: {error}")
    except KeyboardInterrupt:
        show("\nmake setup: interrupted; run the same command again, downloads are kept")
        sys.exit(130)


def set_up(torch, index):
    """Creates the environment, or updates it if it is whole and has these builds of torch."""
    end_with_parent(signal.SIGTERM)  # make may be killed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    had = content(READY) or ("cuda" if os.path.exists(READY) else "")  # an older version left the file empty
    cpu_only = glob.glob(os.path.join(VENV, "lib", "*", "site-packages", "torch-*+cpu.dist-info"))
    torch = torch or had or content(UNFINISHED) or ("cpu" if cpu_only else "cuda")
    python = os.path.join(VENV, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    ours = had or os.path.exists(UNFINISHED) or not os.path.exists(VENV) or not os.listdir(VENV)
    fresh = ours and (had != torch or os.path.exists(UNFINISHED) or not os.path.exists(python))
    if fresh:
        introduce(torch)
        check_space(torch)
    steps = Steps(4)
    libraries = "libjpeg-turbo" if without_ffcv() else "OpenCV and libjpeg-turbo, with which FFCV is built"
    steps.step(f"system packages: a C++ compiler, {libraries}")
    if subprocess.call([os.path.join(ROOT, ".ci", "system-packages")], env=dict(os.environ, PYTHON=sys.executable)):
        sys.exit(1)  # it has said why
    if torch == "cpu" and had and fresh:
        check_cpu_builds(PYTHON, index, steps.note)  # before a whole environment is removed
    with unfinished() as file:
        create(steps, fresh)
        if torch == "cpu" and not had:
            check_cpu_builds(PYTHON, index, steps.note)
        file.write(torch)
        file.flush()
        warning = install(steps, torch, index)
        check_torch(steps)
        check_decoder(steps)
        os.replace(UNFINISHED, READY)
    show(f"set-up done in {steps.time()}; .venv has {size(VENV) / 1e9:.1f} GB")
    if warning:
        show(warning)


def without_ffcv():
    """Whether the user wants no FFCV (setup.py)."""
    return os.environ.get("VIT_WITHOUT_FFCV", "0") not in ("", "0")


def content(path):
    """The text of a small file; empty if it does not exist."""
    if not os.path.exists(path):
        return ""
    with open(path) as file:
        return file.read().strip()


def introduce(torch):
    """Says what will happen, and what one may want instead."""
    if torch == "cpu":
        show("set-up: creates .venv with CPU-only builds of torch")
        return
    show(
        f"set-up: creates .venv with torch and CUDA: downloads {DOWNLOAD / 1e9:.1f} GB, takes {INSTALLED / 1e9:.1f} GB "
        "of disk, and 3 minutes or more"
    )
    if not glob.glob("/dev/nvidia[0-9]*") and not shutil.which("nvidia-smi"):
        show("  no NVIDIA driver is here; for smaller, CPU-only builds: make setup TORCH=cpu (README.md, Set-up)")


@contextlib.contextmanager
def unfinished():
    """Marks the environment, and keeps another set-up out until this one and its pip have ended."""
    os.makedirs(VENV, exist_ok=True)
    with open(UNFINISHED, "a+") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError("another set-up of this folder is running; wait for it, or end it") from None
        file.truncate(0)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(READY)
        yield file


def create(steps, fresh):
    """Makes the environment, without what an interrupted set-up, or one with other builds, has left."""
    steps.step("environment: .venv with Python " + ".".join(map(str, sys.version_info[:3])))
    for entry in os.scandir(VENV) if fresh else ():
        if entry.path != UNFINISHED:
            remove = shutil.rmtree if entry.is_dir(follow_symlinks=False) else os.unlink
            remove(entry.path)
    if subprocess.call([sys.executable, "-m", "venv", VENV]):
        raise SetupError("Python's venv module does not work; on Debian and Ubuntu: sudo apt-get install python3-venv")


def constraints(torch):
    """The file of tested versions; for CPU-only builds, one that has these."""
    path = os.path.join(ROOT, "constraints.txt")
    if torch == "cpu":
        text = re.sub(r"^(torch|torchvision)===?(\S+)$", r"\1===\2+cpu", content(path), flags=re.MULTILINE)
        path = os.path.join(VENV, "constraints.txt")
        with open(path, "w") as file:
            file.write(text + "\n")
    return path


def install(steps, torch, index):
    """Installs the packages; without FFCV if that is what fails.  Returns a warning, or an empty text."""
    what, ffcv = "torch for CPUs only" if torch == "cpu" else "torch with CUDA", "" if without_ffcv() else " FFCV and"
    steps.step(
        f"packages: {what},{ffcv} about 90 others; {'the' if not ffcv else 'FFCV and the'} C++ parts are compiled"
    )
    command = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--constraint", constraints(torch)]
    command += [*index_options(index), "--editable", ".[dev]"]
    code, output, errors = run_pip(command, steps)
    why = ffcv_failure(output, errors) if code and ffcv else ""
    if why:
        steps.note(f"FFCV cannot be installed ({why}); again, without it")
        os.environ["VIT_WITHOUT_FFCV"] = "1"
        code, output, errors = run_pip(command, steps)
    if code:
        if NO_NETWORK.search("".join(output + errors)):
            raise SetupError(UNREACHABLE)
        sys.stderr.write("".join(output[-30:] + errors[-30:]))
        raise SetupError("pip could not install the packages and says why above; mend it, then run make setup again")
    return WITHOUT_FFCV if why else ""


def ffcv_failure(output, errors):
    """Why FFCV, or a package that only FFCV needs, could not be installed; empty if something else failed."""
    found = FFCV_FAILED.search("".join(errors))
    if found:
        return found[0].strip()
    looked_at = [line for line in output if re.match(r"\s*(Collecting|Processing) ", line)]
    failed = looked_at and re.search(r"[ /](ffcv|numba|pandas)\b", looked_at[-1])
    return f"building {failed[1]} fails" if failed else ""


def run_pip(command, steps):
    """Runs pip, which shows its own progress on a terminal: its exit code, and the lines of its output and errors."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        close_fds=False,  # the lock is held until pip has ended
        preexec_fn=lambda: end_with_parent(signal.SIGKILL),  # noqa: PLW1509  # no thread runs yet
        stdout=None if sys.stdout.isatty() else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    errors = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
    reader.start()
    output = follow(process.stdout or (), steps)
    code = process.wait()
    reader.join()
    return code, output, errors


def follow(output, steps):
    """Shows what matters of pip's output in a log: large downloads, and what takes long.  Returns all its lines."""
    lines, total = [], 0.0
    for line in output:
        lines.append(line)
        file = re.match(r"\s*(Downloading|Using cached) (?:\S*/)?([\w.]+)-([^-\s/]+)-\S+ \(([\d.]+) ([kMG]B)\)", line)
        if file:
            megabytes = float(file[4]) * UNITS[file[5]]
            total += megabytes
            if megabytes >= BIG:
                kept = "" if file[1] == "Downloading" else " (downloaded before)"
                steps.note(f"{file[2]} {file[3]}: {megabytes:,.0f} MB{kept}")
        elif line.startswith("Building wheels"):
            steps.note(f"all {total:,.0f} MB are here; compiling")
        elif line.startswith("Installing collected packages"):
            steps.note(f"unpacking {line.count(',') + 1} packages")
    return lines


def check_torch(steps):
    """Raises SetupError unless torch and torchvision, which must be of the same kind, can be imported."""
    steps.step("check: torch and torchvision work together")
    program = "import torch, torchvision; print('torch', torch.__version__, 'and torchvision', torchvision.__version__)"
    done = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode or done.stdout.count("+cpu") not in (0, 2):
        why = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
        raise SetupError(f"torch and torchvision do not work together ({why}); run make clean, then make setup")
    steps.note(done.stdout.strip())


def check_decoder(steps):
    """Says by what images will be decoded, or why they cannot be: a compiler may have been missing, or the headers."""
    program = "from vit.data.native import decoder_in_use; print(decoder_in_use())"
    done = subprocess.run([PYTHON, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    steps.note((done.stdout.strip() or done.stderr.strip()).splitlines()[-1])


if __name__ == "__main__":
    main()
