"""Communication between the supervisors of a job's nodes: heartbeats, reports and decisions.

Only the first node looks at the heartbeats of all others, and tells them if one is lost.  So the number of messages
grows with the number of nodes, and not with its square.
"""

import datetime
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from jobs.node.suspension_log import SUSPENDED_SECONDS

START_SECONDS = 600  # timeout for all nodes of a job to start
HEARTBEAT_SECONDS = 30  # a node without a heartbeat for this long is considered dead
REPORT_SECONDS = 60  # timeout for the reports of all nodes
POLL_SECONDS = 0.1  # between two looks at what other nodes have reported
STAGGER_SECONDS = 0.5  # between nodes that ask Slurm for the same: one of them is enough


def port_of(start_id: str) -> int:
    """The port of the store: below the kernel's ephemeral ports, and different after each requeue."""
    return 10_000 + zlib.crc32(start_id.encode()) % 20_000


class PeerLostError(RuntimeError):
    """Another node of the job does not respond."""


class Peers:
    """One supervisor's connection to the others, by a store that the first node hosts for the whole start of the job.

    The ranks of each attempt use that store for their rendezvous too.  With one store per attempt, one node could
    close it while another one still connects to it.
    """

    def __init__(self, nodes: int, node: int, name: str, address: str, start_id: str) -> None:
        self.nodes, self.node, self.name = nodes, node, name
        self._address, self._port = address, port_of(start_id)
        self.endpoint = f"{address}:{self._port}"  # of the store, if there are several nodes
        self.lost: str | None = None  # the name of a node that is considered dead
        self.first_is_lost = False  # the first node does not respond: each node decides for itself
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._exchange_heartbeats, daemon=True)

    def connect(self) -> None:
        """Waits until the first node responds.  Raises PeerLostError, also if another process has its port."""
        if self.nodes > 1:
            try:
                with _store_errors_as_peer_lost():
                    self._store, self._heartbeat_store = self._open_store(), self._open_store()
                    self._set_first_beats()
            except PeerLostError:
                self.lost, self.first_is_lost = "the first node", True
                raise
            self._thread.start()

    def _set_first_beats(self) -> None:
        """So that no look at a heartbeat has to wait for a node that has not started yet."""
        if self.node == 0:
            for key in ("lost", *(f"alive/{node}" for node in range(self.nodes))):
                self._store.compare_set(key, "", "")

    def _open_store(self) -> TCPStore:
        wait = datetime.timedelta(seconds=START_SECONDS)
        return TCPStore(
            self._address, self._port, is_master=self.node == 0, wait_for_workers=False, multi_tenant=True, timeout=wait
        )

    def close(self) -> None:
        """Ends the heartbeat thread: one that uses the store while Python shuts down would abort the process."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def report(self, attempt: int, text: str) -> None:
        """Tells the other nodes that this attempt has ended here, and why."""
        if self.nodes > 1:
            with _store_errors_as_peer_lost():
                self._store.set(f"report/{attempt}/{self.node}", text)
                self._store.add(f"reports/{attempt}", 1)
                self._store.set(f"over/{attempt}", "")

    def has_ended(self, attempt: int) -> bool:
        """Whether any node has reported that this attempt has ended."""
        if self.nodes == 1:
            return False
        with _store_errors_as_peer_lost():
            return bool(self._store.check([f"over/{attempt}"]))

    def all_finished(self, attempt: int) -> bool:
        """Waits until the ranks of all nodes have exited; returns False if one failed instead.  Raises PeerLostError.

        It waits in Python, where signals are handled.  The elastic agent's own barrier waits in C++ for five minutes.
        """
        if self.nodes == 1:
            return True
        with _store_errors_as_peer_lost():
            if self._store.add(f"done/{attempt}", 1) == self.nodes:
                self._store.set(f"all done/{attempt}", "")
            while not self._store.check([f"all done/{attempt}"]):
                if self.lost is not None:
                    raise PeerLostError("no heartbeat")
                if self.has_ended(attempt):
                    return False
                time.sleep(POLL_SECONDS)
        return True

    def collect_reports(self, attempt: int, own: str) -> list[str]:
        """The reports of all nodes on an attempt that has ended, without those of nodes that do not respond."""
        if self.nodes == 1:
            return [own]
        deadline = time.monotonic() + REPORT_SECONDS
        with _store_errors_as_peer_lost():
            while self._store.add(f"reports/{attempt}", 0) < self.nodes:
                if self.lost is not None or time.monotonic() > deadline:
                    break
                time.sleep(POLL_SECONDS)
            keys = [f"report/{attempt}/{node}" for node in range(self.nodes)]
            return [text.decode() for text in self._store.multi_get([k for k in keys if self._store.check([k])])]

    def exchange_decision(self, attempt: int, text: str | None = None) -> str:
        """Sends the first node's decision to all: it passes `text`, the others wait for it.  Raises PeerLostError."""
        key = f"decision/{attempt}"
        if self.nodes == 1:
            assert text is not None
            return text
        with _store_errors_as_peer_lost():
            if text is not None:
                self._store.set(key, text)
                return text
            deadline = time.monotonic() + 2 * REPORT_SECONDS
            while not self._store.check([key]):
                if self.lost is not None or time.monotonic() > deadline:
                    raise PeerLostError("the first node has not decided")
                time.sleep(POLL_SECONDS)
            return self._store.get(key).decode()

    def turn(self) -> float | None:
        """Seconds after which this node may ask Slurm to requeue the job; None if it leaves that to the first node.

        If that is lost, the others ask one after the other: Slurm ends all of them when the first one has asked.
        """
        if self.node and not self.first_is_lost:
            return None
        return STAGGER_SECONDS * max(0, self.node - 1)

    def _exchange_heartbeats(self) -> None:
        """Sends a heartbeat each second, and reads those of all nodes, or else that of the first one."""
        store = self._heartbeat_store  # a connection of its own: the other one may be blocked by a call that waits
        watched = [node for node in range(self.nodes) if node != self.node] if self.node == 0 else [0]
        keys = ["lost", *(f"alive/{node}" for node in watched)]
        changed = dict.fromkeys(watched, time.monotonic())
        seen = dict.fromkeys(watched, "")
        count, before = 0, time.monotonic()
        while self.lost is None and not self._closed.wait(1):
            if (now := time.monotonic()) - before > SUSPENDED_SECONDS:  # restart all timeouts
                changed = dict.fromkeys(changed, now)
            before = now
            count += 1
            try:
                store.set(f"alive/{self.node}", f"{self.name} {count}")
                told, *beats = (value.decode() for value in store.multi_get(keys))
                for node, beat in zip(watched, beats, strict=True):
                    if beat != seen[node]:
                        seen[node], changed[node] = beat, time.monotonic()
                    timeout = HEARTBEAT_SECONDS if beat else START_SECONDS
                    if time.monotonic() - changed[node] > timeout:
                        self.lost, self.first_is_lost = beat.partition(" ")[0] or f"node {node}", node == 0
                self.lost = self.lost or told or None
                if self.lost and self.node == 0:
                    store.set("lost", self.lost)
            except (DistError, RuntimeError):
                self.lost, self.first_is_lost = seen.get(0, "").partition(" ")[0] or "the first node", True


@contextmanager
def _store_errors_as_peer_lost() -> Iterator[None]:
    """Converts errors of the store, which the first node hosts, to PeerLostError."""
    try:
        yield
    except PeerLostError:
        raise
    except (DistError, RuntimeError) as error:
        raise PeerLostError(f"the first node does not respond: {error}") from error
