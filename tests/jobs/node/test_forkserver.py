"""Ranks are forks of a process that has done the imports: what they inherit of it, and who ends whom."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from jobs.node.forkserver import STOPPING, WANTED
from tests.helpers.paths import ROOT

# What is started: it says what it is, then does what its one argument says.
MODULE = """
import os, signal, sys, time
def main(arguments):
    (do,) = arguments
    print("torch" in sys.modules, "vit.train" in sys.modules, os.environ["PLACE"], os.getpid())
    print("a word", file=sys.stderr)
    if do == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        print("waiting")
        time.sleep(100)
    eval(do)
"""
# Its supervisor: starts what each line says, and says how that ended.
SUPERVISOR = """
import sys
from pathlib import Path
from jobs.node import forkserver as warm
for line in sys.stdin:
    do, log = line.rstrip().split("\\t")
    process = warm.start("started", [do], {"PLACE": "here"}, Path(log))
    print(process.kernel.pid, process.kernel.ppid(), flush=True)
    print(process.wait(), flush=True)
"""


def environment(folder: Path) -> dict[str, str]:
    """One in which the folder's modules go before all others, and nothing says how Python is to write."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return kept | {"PYTHONPATH": f"{folder}:{ROOT}"}


class Supervisor:
    """A process that starts others."""

    def __init__(self, folder: Path) -> None:
        (folder / "started.py").write_text(MODULE)
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
            env=environment(folder),
        )  # fmt: skip

    def start(self, do: str) -> tuple[psutil.Process, psutil.Process]:
        """Has it start the module; the new process, and the server that it is a fork of."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{do}\t{self.folder}/log\n")
        self.process.stdin.flush()
        started, server = self.says().split()
        return psutil.Process(int(started)), psutil.Process(int(server))

    def says(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def waiting(self) -> tuple[psutil.Process, psutil.Process]:
        """As `start`, of one that waits, once it does."""
        both = self.start("wait")
        until(lambda: "waiting" in self.log())
        return both

    def log(self) -> str:
        """What the processes said."""
        return (self.folder / "log").read_text() if (self.folder / "log").exists() else ""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path)
    with supervisor.process:
        yield supervisor
        supervisor.process.kill()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_warm_process_is_one_as_python_would_start_it_but_that_its_imports_are_done(supervisor: Supervisor) -> None:
    """Its words are in the log, in their order; its exit codes are Python's; it is told apart by its name."""
    supervisor.start("None")
    assert supervisor.says() == "0"
    first, second = supervisor.log().splitlines()
    assert first.startswith("True True here ")
    assert second == "a word"
    for do, code in (
        ("sys.exit(2)", "2"), ("1 / 0", "1"), ("os._exit(3)", "3"), ("os.kill(os.getpid(), 9)", "-9"),
        ("sys.exit('said last')", "1"),
    ):  # fmt: skip
        supervisor.start(do)
        assert supervisor.says() == code
    assert "ZeroDivisionError: division by zero\n" in supervisor.log()
    assert supervisor.log().endswith("said last\n")
    process, _ = supervisor.waiting()
    assert " ".join(process.cmdline()).strip() == "python -m started wait"
    names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in (process.pid, process.ppid())]
    assert names == ["started", "jobs.forkserver"], "one word: Slurm reads /proc/PID/stat up to the first blank"
    process.send_signal(signal.SIGTERM)
    assert supervisor.says() == "7"


def test_what_tells_a_job_to_stop_does_not_end_what_ranks_are_forks_of(supervisor: Supervisor) -> None:
    """Slurm sends its signals to all processes of a step; the next fork hears them again."""
    process, server = supervisor.waiting()
    for number in STOPPING:
        server.send_signal(number)
    assert server.num_threads() == 1
    process.kill()
    assert supervisor.says() == "-9"
    process, again = supervisor.waiting()
    assert again == server
    process.send_signal(signal.SIGUSR2)
    assert supervisor.says() == "-12"


def test_ranks_are_told_when_their_supervisor_dies(supervisor: Supervisor) -> None:
    """SIGKILL: what they are forks of ends at once, and they get SIGTERM."""
    process, server = supervisor.waiting()
    supervisor.process.kill()
    until(lambda: gone(server) and gone(process))
    assert "Traceback" not in supervisor.log()


def test_another_server_takes_the_place_of_one_that_died(supervisor: Supervisor) -> None:
    """As by a kernel that is out of memory.  Its forks are told, and count as failed."""
    process, server = supervisor.waiting()
    server.kill()
    assert supervisor.says() == "255"
    until(lambda: gone(process))
    supervisor.start("None")
    assert supervisor.says() == "0"


def test_another_server_takes_the_place_of_one_that_was_stopped(supervisor: Supervisor) -> None:
    """It would never answer."""
    process, server = supervisor.waiting()
    process.kill()
    assert supervisor.says() == "-9"
    server.suspend()
    until(lambda: server.status() == psutil.STATUS_STOPPED)
    supervisor.start("None")
    assert supervisor.says() == "0"
    assert gone(server)


def test_a_signal_at_any_moment_of_a_start_finds_the_process_or_none(tmp_path: Path) -> None:
    """None is left that nobody told, whichever thread the kernel gives the signal to."""
    (tmp_path / "started.py").write_text(MODULE)
    program = """
import os, random, signal, threading, time
from pathlib import Path
import psutil
from jobs.node import forkserver as warm

class Stopped(Exception): pass

def stop(*_):
    global told
    told = True
    if not (there := warm.running()):
        raise Stopped
    for process in there:
        process.send(signal.SIGUSR2)

def later(seconds):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGTERM)

signal.signal(signal.SIGTERM, warm.patiently(stop))
warm.end([warm.start("started", ["None"], {"PLACE": ""}, Path("log"))], signal.SIGTERM, 10)
server, ends = psutil.Process(warm._server()), []
for _ in range(60):
    told = False
    timer = threading.Thread(target=later, args=(random.uniform(0, 0.03),))
    try:
        timer.start()
        process = warm.start("started", ["wait"], {"PLACE": ""}, Path("log"))
        assert process.wait() == -signal.SIGUSR2
        ends.append("told")
    except Stopped:
        ends.append("stopped")
    timer.join()
    assert told
    assert not server.children(), ends
assert "told" in ends
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("torch", "patience", "why"),
    [
        ("import os; os._exit(3)", 60, "started cannot be started"),
        ("import time; time.sleep(100)", 1, "the imports of started did not end in 1 s"),
    ],
)
def test_imports_that_cannot_be_done_are_told_in_time(torch: str, patience: int, why: str, tmp_path: Path) -> None:
    """A library that ends the process, a disk that does not answer."""
    (tmp_path / "started.py").write_text(MODULE)
    (tmp_path / "torch.py").write_text(torch)
    program = "from pathlib import Path; from jobs.node import forkserver as warm\n"
    program += f"try: warm.start('started', ['None'], {{}}, Path('log'), patience_seconds={patience})\n"
    program += "except warm.ColdError as error: print(error)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.startswith(why), done.stdout + done.stderr


def test_an_import_that_fails_is_named(tmp_path: Path) -> None:
    """By the server once, and by what is started, which fails as it would by itself."""
    (tmp_path / "started.py").write_text(MODULE)
    (tmp_path / "torch.py").write_text("raise ImportError('no such driver')")
    program = "from pathlib import Path; from jobs.node import forkserver as warm\n"
    program += "print(warm.start('vit.node_check', [], {}, Path('log')).wait())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "1\n"
    assert "cannot be imported: vit.train, torch._dynamo, vit.node_check\n" in done.stderr
    assert "ImportError: no such driver\n" in (tmp_path / "log").read_text()


def test_a_folder_for_temporary_files_may_have_a_long_name(tmp_path: Path) -> None:
    """The path of a socket may not."""
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    program = "import tempfile; from jobs.node import forkserver as warm; warm.prepare(); print(tempfile.gettempdir())"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(folder)


def test_imports_do_not_touch_a_gpu() -> None:
    """CUDA cannot be used in a fork of a process that has: nothing that is imported may ask for it."""
    program = f"""
import importlib, torch
def asked(*_):
    raise AssertionError("an import asks for GPUs")
for name in ("_cuda_getDeviceCount", "_cuda_init"):
    if hasattr(torch._C, name):
        setattr(torch._C, name, asked)
torch.cuda.is_available = torch.cuda.device_count = asked
for module in {WANTED!r}:
    importlib.import_module(module)
assert not torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
