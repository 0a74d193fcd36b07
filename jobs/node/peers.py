"""The supervisors of a job's nodes: which of them live, and what they tell each other."""

import datetime
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

START_SECONDS = 600  # until all nodes of a job have started
LOST_SECONDS = 30  # a node that gave no sign for so long is taken for dead
ANSWER_SECONDS = 60
PAUSE_SECONDS = 10  # without a turn of a loop that has one a second: the job was suspended, and time did not count


class LostError(RuntimeError):
    """Another node of the job does not answer."""


class Team:
    """One for each supervisor, all of them at one store, which the first node keeps for the whole life of the job.

    The ranks of each attempt meet there too.  A store for each attempt would be torn down while others still find it.
    """

    def __init__(self, nodes: int, node: int, name: str, address: str, life: str) -> None:
        self.nodes, self.node, self.name = nodes, node, name
        # Below the ports that the kernel hands out, and another one after a requeue.
        self._address, self._port = address, 10_000 + zlib.crc32(life.encode()) % 20_000
        self.endpoint = f"{address}:{self._port}" if nodes > 1 else "localhost:0"
        self.lost: str | None = None  # the name of a node that is gone
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def meet(self) -> None:
        """Waits until the first node is there.  Raises LostError, also if its port is somebody else's."""
        if self.nodes > 1:
            try:
                with _losing():
                    self._store, self._watched = self._connect(), self._connect()
            except LostError:
                self.lost = "the first node"
                raise
            self._thread.start()

    def _connect(self) -> TCPStore:
        wait = datetime.timedelta(seconds=START_SECONDS)
        return TCPStore(
            self._address, self._port, is_master=self.node == 0, wait_for_workers=False, multi_tenant=True, timeout=wait
        )

    def close(self) -> None:
        """A thread that speaks to the store while Python ends aborts the process."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def report(self, attempt: int, text: str) -> None:
        """Tells the others that this attempt is over here, and why."""
        if self.nodes > 1:
            with _losing():
                self._store.set(f"report/{attempt}/{self.node}", text)
                self._store.set(f"over/{attempt}", "")

    def over(self, attempt: int) -> bool:
        """Whether any node told so."""
        if self.nodes == 1:
            return False
        with _losing():
            return bool(self._store.check([f"over/{attempt}"]))

    def all_done(self, attempt: int) -> bool:
        """Waits until the ranks of all nodes have left by themselves; False if one failed instead.  Raises LostError.

        Python waits here, where signals are heard.  The elastic agent's own barrier waits in C++ for five minutes.
        """
        if self.nodes == 1:
            return True
        with _losing():
            self._store.set(f"done/{attempt}/{self.node}", "")
            while not all(self._store.check([f"done/{attempt}/{node}"]) for node in range(self.nodes)):
                if self.lost is not None:
                    raise LostError("no sign of life")
                if self.over(attempt):
                    return False
                time.sleep(0.05)
        return True

    def reports(self, attempt: int, own: str) -> list[str]:
        """What all nodes said of an attempt that is over, as far as they can still say it."""
        texts, deadline = {self.node: own}, time.monotonic() + ANSWER_SECONDS
        while len(texts) < self.nodes and self.lost is None and time.monotonic() < deadline:
            with _losing():
                for node in set(range(self.nodes)) - texts.keys():
                    if self._store.check([key := f"report/{attempt}/{node}"]):
                        texts[node] = self._store.get(key).decode()
            time.sleep(0.05)
        return list(texts.values())

    def decided(self, attempt: int, text: str | None = None) -> str:
        """The first node's word on what follows; it gives one, the others wait for it.  Raises LostError."""
        key = f"decision/{attempt}"
        if self.nodes == 1:
            assert text is not None
            return text
        with _losing():
            if text is not None:
                self._store.set(key, text)
                return text
            deadline = time.monotonic() + 2 * ANSWER_SECONDS
            while not self._store.check([key]):
                if self.lost is not None or time.monotonic() > deadline:
                    raise LostError("the first node has not decided")
                time.sleep(0.05)
            return self._store.get(key).decode()

    def _watch(self) -> None:
        """Gives a sign each second, and looks for those of the others."""
        store = self._watched  # a connection of its own: another call may wait at the other one
        changed = dict.fromkeys(range(self.nodes), time.monotonic())
        seen: dict[int, str] = {}
        count, before = 0, time.monotonic()
        while self.lost is None and not self._closed.wait(1):
            if (now := time.monotonic()) - before > PAUSE_SECONDS:
                changed = dict.fromkeys(changed, now)
            before = now
            count += 1
            try:
                store.set(f"alive/{self.node}", f"{self.name} {count}")
                for node in set(range(self.nodes)) - {self.node}:
                    sign = store.get(f"alive/{node}").decode() if store.check([f"alive/{node}"]) else ""
                    if sign != seen.get(node):
                        seen[node], changed[node] = sign, time.monotonic()
                    patience = LOST_SECONDS if sign else START_SECONDS
                    if time.monotonic() - changed[node] > patience:
                        self.lost = sign.partition(" ")[0] or f"node {node}"
            except (DistError, RuntimeError):
                self.lost = seen.get(0, "").partition(" ")[0] or "the first node"


@contextmanager
def _losing() -> Iterator[None]:
    """A store that does not answer is a first node that is gone."""
    try:
        yield
    except LostError:
        raise
    except (DistError, RuntimeError) as error:
        raise LostError(f"the first node does not answer: {error}") from error
