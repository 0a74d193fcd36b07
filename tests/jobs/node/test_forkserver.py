"""Processes started by the fork server: what they inherit, and which processes end together."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from jobs.node.forkserver import PRELOADED, STOP_SIGNALS
from tests.helpers.fork_supervisor import Supervisor, run_program, write_module
from tests.helpers.paths import CHECKOUT, ROOT
from tests.helpers.waiting import wait_for

# Prints the files that are read for what torch puts into the name of each compiled graph.
NAMES_GRAPHS = """
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if event == "open" else None)
from torch._inductor import codecache
codecache.torch_key()
codecache.triton_key()
print("read:", opened)
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path)
    with supervisor.process:
        yield supervisor
        supervisor.process.kill()


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_forked_process_behaves_like_one_started_by_python(supervisor: Supervisor) -> None:
    """Its imports are done; its output is in the log, in order; exit codes are Python's; its title names it."""
    supervisor.start("None")
    assert supervisor.read_line() == "0"
    first, second = supervisor.log().splitlines()
    assert first.startswith("True True here ")
    assert second == "to stderr"
    for action, code in (
        ("sys.exit(2)", "2"), ("1 / 0", "1"), ("os._exit(3)", "3"), ("os.kill(os.getpid(), 9)", "-9"),
        ("sys.exit('last line')", "1"),
    ):  # fmt: skip
        supervisor.start(action)
        assert supervisor.read_line() == code
    assert "ZeroDivisionError: division by zero\n" in supervisor.log()
    assert supervisor.log().endswith("last line\n")
    process, _ = supervisor.start_waiting()
    assert " ".join(process.cmdline()).strip() == "python -m started wait"
    names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in (process.pid, process.ppid())]
    assert names == ["started", "jobs.forkserver"], "no blanks: Slurm reads /proc/PID/stat up to the first one"
    process.send_signal(signal.SIGTERM)
    assert supervisor.read_line() == "7"


@pytest.mark.skipif(torch.__version__ < (2, 15), reason="torch's compiler cannot be imported without using the GPU")
def test_a_forked_process_need_not_import_the_compiler(supervisor: Supervisor) -> None:
    """That would take most of the time of a restart in place.  The server still has one thread and no subprocess."""
    supervisor.start("print('compiler imported:', 'torch._inductor.compile_fx' in sys.modules)")
    assert supervisor.read_line() == "0"
    assert "compiler imported: True" in supervisor.log()
    process, server = supervisor.start_waiting()
    assert server.num_threads() == 1
    assert server.children(recursive=True) == [process]


@pytest.mark.skipif(torch.__version__ < (2, 15), reason="torch's compiler cannot be imported without using the GPU")
def test_a_forked_process_need_not_read_the_files_of_the_compiler(supervisor: Supervisor) -> None:
    """Thousands of files, 400 MB: their digests are part of the name of each graph in the cache."""
    (supervisor.folder / "names_graphs.py").write_text(NAMES_GRAPHS)
    supervisor.start("__import__('names_graphs')")
    assert supervisor.read_line() == "0", supervisor.log()
    assert "read: []" in supervisor.log()


def test_a_forked_process_collects_garbage_but_not_in_what_it_inherited(supervisor: Supervisor) -> None:
    """The server itself collects nothing: its imports would take longer."""
    supervisor.start(
        "[print('collects:', gc.isenabled(), gc.get_freeze_count() > 100_000) for gc in [__import__('gc')]]"
    )
    assert supervisor.read_line() == "0"
    assert "collects: True True" in supervisor.log()


def test_the_signals_that_stop_a_job_do_not_end_the_fork_server(supervisor: Supervisor) -> None:
    """Slurm sends its signals to all processes of a step; the forks receive them."""
    process, server = supervisor.start_waiting()
    for number in STOP_SIGNALS:
        server.send_signal(number)
    assert server.num_threads() == 1
    process.kill()
    assert supervisor.read_line() == "-9"
    process, same_server = supervisor.start_waiting()
    assert same_server == server
    process.send_signal(signal.SIGUSR2)
    assert supervisor.read_line() == "-12"


def test_ranks_get_sigterm_when_their_supervisor_is_killed(supervisor: Supervisor) -> None:
    """The fork server ends with the supervisor, and the kernel then sends SIGTERM to its forks."""
    process, server = supervisor.start_waiting()
    supervisor.process.kill()
    wait_for(lambda: has_ended(server) and has_ended(process), "server and fork to end")
    assert "Traceback" not in supervisor.log()


def test_a_fork_server_that_died_is_replaced(supervisor: Supervisor) -> None:
    """For example when the kernel is out of memory.  Its forks get SIGTERM, and count as failed."""
    process, server = supervisor.start_waiting()
    server.kill()
    assert supervisor.read_line() == "255"
    wait_for(lambda: has_ended(process), "the fork to end")
    supervisor.start("None")
    assert supervisor.read_line() == "0"


def test_a_fork_server_that_was_stopped_by_sigstop_is_replaced(supervisor: Supervisor) -> None:
    """It would never respond."""
    process, server = supervisor.start_waiting()
    process.kill()
    assert supervisor.read_line() == "-9"
    server.suspend()
    wait_for(lambda: server.status() == psutil.STATUS_STOPPED, "the server to stop")
    supervisor.start("None")
    assert supervisor.read_line() == "0"
    assert has_ended(server)


def test_a_stop_signal_during_a_start_reaches_the_new_process(tmp_path: Path) -> None:
    """At any moment, and whichever thread the kernel delivers it to: no process is left running."""
    write_module(tmp_path)
    program = """
import os, random, signal, threading, time
from pathlib import Path
import psutil
from jobs.node import forkserver, forkserver_process

class Stopped(Exception): pass

def stop(*_):
    global handled
    handled = True
    if not (processes := forkserver.running()):
        raise Stopped
    for process in processes:
        process.send(signal.SIGUSR2)

def signal_later(seconds):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGTERM)

signal.signal(signal.SIGTERM, forkserver.deferred_while_starting(stop))
first = forkserver.start("started", ["None"], {"PLACE": ""}, Path("log"))
forkserver.stop_processes([first], signal.SIGTERM, 10)
server, outcomes = psutil.Process(forkserver_process.pid()), []
for _ in range(60):
    handled = False
    timer = threading.Thread(target=signal_later, args=(random.uniform(0, 0.03),))
    try:
        timer.start()
        process = forkserver.start("started", ["wait"], {"PLACE": ""}, Path("log"))
        assert process.wait() == -signal.SIGUSR2
        outcomes.append("signaled")
    except Stopped:
        outcomes.append("stopped before the start")
    timer.join()
    assert handled
    assert not server.children(), outcomes
assert "signaled" in outcomes
"""
    done = run_program(program, tmp_path, 100)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("torch", "timeout", "why"),
    [
        ("import os; os._exit(3)", 60, "started cannot be started"),
        ("import time; time.sleep(100)", 1, "the imports of started did not finish in 1 s"),
    ],
)
def test_imports_that_crash_or_hang_are_reported_in_time(torch: str, timeout: int, why: str, tmp_path: Path) -> None:
    """A library that ends the process, or a disk that does not respond."""
    write_module(tmp_path)
    (tmp_path / "torch.py").write_text(torch)
    program = "from pathlib import Path; from jobs.node import forkserver\n"
    program += f"try: forkserver.start('started', ['None'], {{}}, Path('log'), timeout_seconds={timeout})\n"
    program += "except forkserver.StartError as error: print(error)"
    done = run_program(program, tmp_path)
    assert done.stdout.startswith(why), done.stdout + done.stderr


def test_an_import_that_fails_is_reported(tmp_path: Path) -> None:
    """Once by the server, and by the started process, which fails as it would without the server."""
    write_module(tmp_path)
    (tmp_path / "torch.py").write_text("raise ImportError('no such driver')")
    program = "from pathlib import Path; from jobs.node import forkserver\n"
    program += "print(forkserver.start('vit.node_check', [], {}, Path('log')).wait())"
    done = run_program(program, tmp_path)
    assert done.stdout == "1\n"
    assert "cannot be imported: vit.train, torch._dynamo, vit.node_check\n" in done.stderr
    assert "ImportError: no such driver\n" in (tmp_path / "log").read_text()


def test_the_folder_for_temporary_files_may_have_a_long_path(tmp_path: Path) -> None:
    """The path of a socket may not."""
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    program = "import tempfile; from jobs.node import forkserver; forkserver.ensure_running(); "
    program += "print(tempfile.gettempdir())"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(folder)


def test_the_imports_do_not_initialize_cuda() -> None:
    """CUDA cannot be used in the forks of a process that has initialized it."""
    program = f"""
import importlib, torch
def fail(*_):
    raise AssertionError("an import queries the GPUs")
for name in ("_cuda_getDeviceCount", "_cuda_init"):
    if hasattr(torch._C, name):
        setattr(torch._C, name, fail)
torch.cuda.is_available = torch.cuda.device_count = fail
for module in {PRELOADED[1:-1]!r}:
    importlib.import_module(module)
assert not torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, check=True)
