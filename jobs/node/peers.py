"""Communication between the supervisors of a job's nodes: heartbeats, reports and decisions."""

import datetime
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

START_SECONDS = 600  # timeout for all nodes of a job to start
HEARTBEAT_SECONDS = 30  # a node without a heartbeat for this long is considered dead
REPORT_SECONDS = 60  # timeout for the reports of all nodes
SUSPENDED_SECONDS = 10  # a loop that runs each second and took longer was suspended with its job: restart all timeouts


class PeerLostError(RuntimeError):
    """Another node of the job does not respond."""


class Peers:
    """One supervisor's connection to the others, by a store that the first node hosts for the whole start of the job.

    The ranks of each attempt use that store for their rendezvous too.  With one store per attempt, one node could
    close it while another one still connects to it.
    """

    def __init__(self, nodes: int, node: int, name: str, address: str, start_id: str) -> None:
        self.nodes, self.node, self.name = nodes, node, name
        # Below the kernel's ephemeral ports, and different after each requeue.
        self._address, self._port = address, 10_000 + zlib.crc32(start_id.encode()) % 20_000
        self.endpoint = f"{address}:{self._port}"  # of the store, if there are several nodes
        self.lost: str | None = None  # the name of a node that is considered dead
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._exchange_heartbeats, daemon=True)

    def connect(self) -> None:
        """Waits until the first node responds.  Raises PeerLostError, also if another process has its port."""
        if self.nodes > 1:
            try:
                with _store_errors_as_peer_lost():
                    self._store, self._heartbeat_store = self._open_store(), self._open_store()
            except PeerLostError:
                self.lost = "the first node"
                raise
            self._thread.start()

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
            self._store.set(f"done/{attempt}/{self.node}", "")
            while not all(self._store.check([f"done/{attempt}/{node}"]) for node in range(self.nodes)):
                if self.lost is not None:
                    raise PeerLostError("no heartbeat")
                if self.has_ended(attempt):
                    return False
                time.sleep(0.05)
        return True

    def collect_reports(self, attempt: int, own: str) -> list[str]:
        """The reports of all nodes on an attempt that has ended, without those of nodes that do not respond."""
        texts, deadline = {self.node: own}, time.monotonic() + REPORT_SECONDS
        while len(texts) < self.nodes and self.lost is None and time.monotonic() < deadline:
            with _store_errors_as_peer_lost():
                for node in set(range(self.nodes)) - texts.keys():
                    if self._store.check([key := f"report/{attempt}/{node}"]):
                        texts[node] = self._store.get(key).decode()
            time.sleep(0.05)
        return list(texts.values())

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
                time.sleep(0.05)
            return self._store.get(key).decode()

    def _exchange_heartbeats(self) -> None:
        """Sends a heartbeat each second, and checks those of the other nodes."""
        store = self._heartbeat_store  # a connection of its own: the other one may be blocked by a call that waits
        changed = dict.fromkeys(range(self.nodes), time.monotonic())
        seen: dict[int, str] = {}
        count, before = 0, time.monotonic()
        while self.lost is None and not self._closed.wait(1):
            if (now := time.monotonic()) - before > SUSPENDED_SECONDS:
                changed = dict.fromkeys(changed, now)
            before = now
            count += 1
            try:
                store.set(f"alive/{self.node}", f"{self.name} {count}")
                for node in set(range(self.nodes)) - {self.node}:
                    beat = store.get(f"alive/{node}").decode() if store.check([f"alive/{node}"]) else ""
                    if beat != seen.get(node):
                        seen[node], changed[node] = beat, time.monotonic()
                    timeout = HEARTBEAT_SECONDS if beat else START_SECONDS
                    if time.monotonic() - changed[node] > timeout:
                        self.lost = beat.partition(" ")[0] or f"node {node}"
            except (DistError, RuntimeError):
                self.lost = seen.get(0, "").partition(" ")[0] or "the first node"


@contextmanager
def _store_errors_as_peer_lost() -> Iterator[None]:
    """Converts errors of the store, which the first node hosts, to PeerLostError."""
    try:
        yield
    except PeerLostError:
        raise
    except (DistError, RuntimeError) as error:
        raise PeerLostError(f"the first node does not respond: {error}") from error
