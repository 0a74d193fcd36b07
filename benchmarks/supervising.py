"""What the supervisors of a job's nodes exchange, and how it grows with the number of nodes.

    python benchmarks/supervising.py [--quick] [--nodes N ...]

First the supervisors alone, all in one process, with the watchdogs and the rendezvous of torch's elastic agent that
they have in a job: open connections to the first node, messages and bytes per second while nothing happens, and
messages of one rendezvous.  They are counted by `ss`, from the kernel's counters of each connection.

Then, without --quick, whole jobs on a Slurm cluster of eight nodes on this machine, with one rank on each node: file
operations in the run folder (by `strace`) of all supervisors and of the ranks, messages, and the requests that the
controller gets (`sdiag`) while it trains, when a rank is killed and restarted in place, and when it is requeued.  This
needs root, and a minute or more for each number of nodes.  The last line is one JSON object.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous import registry as rendezvous

from benchmarks.cluster_run import Run, make_data
from benchmarks.measured.machine import machine, save_figures
from jobs.node.peers import Peers, port_of
from jobs.node.watchdog import Watchdog
from tests.helpers.slurm_cluster import Cluster, missing
from tests.helpers.waiting import wait_for
from vit.run.command import run_command
from vit.run.heartbeat import HeartbeatSlots

ALONE, QUICK, WHOLE = (2, 4, 8, 16, 32, 64), (2, 4, 8), (2, 4, 8)
SETTLE_SECONDS, SECONDS, JOB_SECONDS = 3.0, 5.0, 20.0
WAIT_SECONDS = 600.0  # for the start of a job: all nodes are this machine
# Requests of the daemons of the nodes, whatever runs on them.
OF_NODES = ("MESSAGE_", "REQUEST_PING", "REQUEST_COMPLETE", "REQUEST_STEP_COMPLETE", "ACCOUNTING_")
CHANGES = "openat,newfstatat,stat,lstat,statx,mkdir,mkdirat,unlink,unlinkat,rename,renameat2,fsync,getdents64,access"


def traffic(port: int) -> tuple[int, int, int]:
    """Connections to a port of this machine, messages that were sent to it, and bytes in both directions."""
    command = ["ss", "--tcp", "--info", "--numeric", "--oneline", "state", "established", f"( dport = :{port} )"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    messages = [int(number) for number in re.findall(r"\bdata_segs_out:(\d+)", text)]
    sizes = [int(number) for number in re.findall(r"\bbytes_(?:sent|received):(\d+)", text)]
    return len(text.splitlines()) - 1, sum(messages), sum(sizes)


def rate(port: int, seconds: float) -> dict[str, float]:
    """Connections to a port, and messages and bytes per second."""
    (_, before, bytes_before), begun = traffic(port), time.monotonic()
    time.sleep(seconds)
    connections, after, bytes_after = traffic(port)
    passed = time.monotonic() - begun
    each = {"messages_per_second": (after - before) / passed, "bytes_per_second": (bytes_after - bytes_before) / passed}
    return {"connections": connections} | {name: round(value, 1) for name, value in each.items()}


def in_parallel(actions: Iterable[Callable[[], object]]) -> float:
    """Calls functions in threads of their own; returns the seconds until all have ended."""
    threads, begun = [threading.Thread(target=action) for action in actions], time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - begun


def alone(nodes: int, seconds: float) -> dict[str, float]:
    """The supervisors of so many nodes, without ranks."""
    name = f"supervising {nodes} {os.getpid()}"
    peers = [Peers(nodes, node, f"n{node}", "127.0.0.1", name) for node in range(nodes)]
    port, slots = port_of(name), HeartbeatSlots(1)
    in_parallel(peer.connect for peer in peers)
    watchdogs = [Watchdog(slots, peer, 0, 600, Path()) for peer in peers]
    with ExitStack() as at_end:
        for peer, watchdog in zip(peers, watchdogs, strict=True):
            watchdog.start()
            at_end.callback(peer.close)
            at_end.callback(watchdog.stop)
        before = traffic(port)[1]
        handlers = [
            rendezvous.get_rendezvous_handler(
                RendezvousParameters("c10d", peer.endpoint, name, nodes, nodes, is_host=peer.node == 0, timeout=600)
            )
            for peer in peers
        ]
        took = in_parallel(handler.next_rendezvous for handler in handlers)
        met = traffic(port)[1] - before
        time.sleep(SETTLE_SECONDS)
        found = rate(port, seconds)
        for handler in handlers:
            handler.shutdown()
    return found | {"rendezvous_messages": met, "rendezvous_seconds": round(took, 2)}


class Job:
    """A run of one rank on each of so many nodes."""

    def __init__(self, cluster: Cluster, folder: Path, nodes: int) -> None:
        self.cluster, self.nodes = cluster, nodes
        self.run = Run(cluster, folder, f"nodes-{nodes}", "--micro_batch", "8")
        self.starts = 0

    def wait_for_start(self) -> None:
        """Waits until the ranks train again."""
        self.starts += 1
        begun = lambda: len(self.run.events("started")) >= self.starts  # noqa: E731
        wait_for(begun, f"start {self.starts} on {self.nodes} nodes", WAIT_SECONDS)
        self.run.wait_for_step(self.starts)

    def requests(self, action: Callable[[], object]) -> dict[str, int]:
        """The requests that the controller gets during an action, without those of the nodes' own daemons."""
        self.cluster.call("sdiag", "--reset")
        action()
        text = self.cluster.call("sdiag").partition("by message type")[2].partition("by user")[0]
        found = {name: int(count) for name, count in re.findall(r"(\w+)\s+\(\s*\d+\) count:(\d+)", text)}
        return {name: count for name, count in found.items() if not name.startswith(OF_NODES)}

    def file_operations(self) -> dict[str, float]:
        """File operations per second in the run folder, of all supervisors and of all ranks, while it trains."""
        processes = {"supervisors": self.run.processes("submitit.core"), "ranks": self.run.ranks()}
        with tempfile.TemporaryDirectory() as logs:
            traces = {}
            for name, found in processes.items():
                ids = [word for process in found for word in ("-p", str(process.pid))]
                command = ["strace", "-f", "-qq", "-y", "-o", f"{logs}/{name}", "-e", f"trace={CHANGES}", *ids]
                traces[name] = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            time.sleep(JOB_SECONDS)
            for trace in traces.values():
                trace.terminate()
                trace.wait()
            folder = str(self.run.folder.path)
            lines = {name: (Path(logs) / name).read_text().splitlines() for name in traces}
        counts = {name: sum(folder in line for line in found) for name, found in lines.items()}
        return {f"{name}_files_per_second": round(count / JOB_SECONDS, 2) for name, count in counts.items()}

    def measure(self) -> dict[str, Any]:
        """All figures."""
        begin = ("--gpus", "1", "--nodes", str(self.nodes))
        out: dict[str, Any] = {
            "requests_start": self.requests(lambda: (self.run.submit(*begin), self.wait_for_start()))
        }
        time.sleep(SETTLE_SECONDS)
        start = f"{self.run.folder.path} {self.run.events('supervising')[-1]['life']}"
        out["requests_training"] = self.requests(lambda: out.update(rate(port_of(start), JOB_SECONDS)))
        out |= self.file_operations()

        def restart() -> None:
            self.run.ranks()[-1].kill()
            self.wait_for_start()

        def requeue() -> None:
            self.cluster.call("scancel", "--signal", "USR2", self.run.job)
            self.wait_for_start()

        def lose_a_supervisor() -> None:
            self.run.processes("submitit.core")[-1].kill()
            self.wait_for_start()

        out["requests_restart_in_place"] = self.requests(restart)
        out["requests_requeue"] = self.requests(requeue)
        out["requests_lost_supervisor"] = self.requests(lose_a_supervisor)
        self.cluster.call("scancel", self.run.job)
        wait_for(self.cluster.nodes_idle, "all nodes to be idle", WAIT_SECONDS)
        return out


def whole_jobs(counts: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Jobs on a cluster of as many nodes as the largest needs."""
    folder = Path(tempfile.mkdtemp(prefix="supervising-"))
    cluster = Cluster(nodes=max(counts))
    try:
        make_data(folder)
        return {nodes: Job(cluster, folder, nodes).measure() for nodes in counts}
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def show(title: str, table: Mapping[int, Mapping[str, Any]]) -> None:
    """Prints a table with one column for each number of nodes."""
    print(f"\n{title}\n{'nodes':32}{''.join(f'{nodes:>10}' for nodes in table)}")
    for name in next(iter(table.values())):
        cells = [row[name] for row in table.values()]
        values = [sum(cell.values()) if isinstance(cell, dict) else cell for cell in cells]
        print(f"{name:32}{''.join(f'{value:>10,}' for value in values)}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less than 50 s: supervisors alone, on 2, 4 and 8 nodes")
    parser.add_argument("--nodes", type=int, nargs="+", default=WHOLE, help="of the whole jobs")
    options = parser.parse_args()
    why = "ss (iproute2) was not found" if shutil.which("ss") is None else "" if options.quick else missing()
    if why:
        sys.exit(f"supervising.py: {why}")
    logging.disable(logging.WARNING)
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as in a job
    figures: dict[str, Any] = {"machine": machine()}
    figures["alone"] = {nodes: alone(nodes, SECONDS) for nodes in (QUICK if options.quick else ALONE)}
    show("supervisors alone", figures["alone"])
    if not options.quick:
        figures["jobs"] = whole_jobs(options.nodes)
        show("whole jobs; requests to the controller", figures["jobs"])
        save_figures("supervising", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
