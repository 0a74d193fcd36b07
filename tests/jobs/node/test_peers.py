"""The supervisors of a job's nodes notice a node that is lost, and send few messages for it."""

import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from jobs.node import peers
from jobs.node.peers import STAGGER_SECONDS, Peers
from tests.helpers.paths import CHECKOUT
from tests.helpers.waiting import wait_for

FIRST_NODE = """
import sys, time
from jobs.node.peers import Peers
peers = Peers(int(sys.argv[1]), 0, "n0", "127.0.0.1", sys.argv[2])
peers.connect()
print("connected", flush=True)
time.sleep(600)
"""
calls: list[int] = []  # of all nodes: which store sent a message


class CountingStore(TCPStore):
    """A store that counts the messages that are sent to it."""

    def __getattribute__(self, name: str) -> object:
        if name in ("set", "get", "add", "check", "multi_get", "compare_set", "wait"):
            calls.append(id(self))
        return super().__getattribute__(name)


@contextmanager
def connected(nodes: int, first: int = 0, name: str = "") -> Iterator[list[Peers]]:
    """The nodes of a job from `first` on, all of them in this process."""
    name = name or str(uuid.uuid4())
    found = [Peers(nodes, node, f"n{node}", "127.0.0.1", name) for node in range(first, nodes)]
    in_parallel(peer.connect for peer in found)
    try:
        yield found
    finally:
        for peer in found:
            peer.close()


def in_parallel(actions: Iterator[Callable[[], object]]) -> None:
    """Calls functions in threads of their own, and waits for them."""
    threads = [threading.Thread(target=action) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def messages_per_second(nodes: int) -> float:
    """Messages of all nodes, of which each sends some, while nothing happens."""
    with connected(nodes):
        time.sleep(1)
        before, begun = len(calls), time.monotonic()
        time.sleep(4)
        sent, seconds = calls[before:], time.monotonic() - begun
    assert len(set(sent)) == nodes
    return len(sent) / seconds


def test_messages_grow_with_the_number_of_nodes_not_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of 64 nodes would otherwise send 16,000 heartbeats a second to its first node."""
    monkeypatch.setattr(peers, "TCPStore", CountingStore)
    few, many = messages_per_second(3), messages_per_second(12)
    assert many < 1.6 * 12 / 3 * few  # 5 and 22 on an idle machine; the square would be 16 times as many


def test_all_nodes_hear_of_a_lost_one_and_only_the_first_asks_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would otherwise all ask Slurm for the same requeue at the same moment."""
    monkeypatch.setattr(peers, "HEARTBEAT_SECONDS", 2)
    with connected(5) as found:
        time.sleep(1.5)
        found[3].close()  # it sends no heartbeats any more
        wait_for(lambda: all(peer.lost for i, peer in enumerate(found) if i != 3), "all to notice", 30)
        assert {peer.lost for i, peer in enumerate(found) if i != 3} == {"n3"}
        assert [peer.turn() for peer in found] == [0, None, None, None, None]


def test_if_the_first_node_dies_the_others_ask_slurm_one_after_the_other() -> None:
    """SIGKILL of the process that hosts the store."""
    name = str(uuid.uuid4())
    command = [sys.executable, "-c", FIRST_NODE, "4", name]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "connected\n"
        with connected(4, first=1, name=name) as found:
            time.sleep(1.5)  # heartbeats, from which the others know its name
            first.send_signal(signal.SIGKILL)
            wait_for(lambda: all(peer.first_is_lost for peer in found), "all to notice", 30)
            assert {peer.lost for peer in found} == {"n0"}
            assert [peer.turn() for peer in found] == [0, STAGGER_SECONDS, 2 * STAGGER_SECONDS]


def test_reports_of_all_nodes_reach_the_first_one_and_its_decision_all() -> None:
    """Each node reports; the first one collects and decides."""
    with connected(6) as found:
        reports, decisions = list[list[str]](), list[str]()

        def end(peer: Peers) -> None:
            peer.report(0, f"report of {peer.name}")
            if peer.node == 0:
                reports.append(peer.collect_reports(0, "report of n0"))
            decisions.append(peer.exchange_decision(0, "restart" if peer.node == 0 else None))

        in_parallel((lambda peer=peer: end(peer)) for peer in found)
        assert reports == [[f"report of n{node}" for node in range(6)]]
        assert decisions == ["restart"] * 6
        assert all(peer.has_ended(0) for peer in found)
        assert not any(peer.has_ended(1) for peer in found)


def test_nodes_wait_for_each_other_at_the_end_and_stop_waiting_if_one_fails() -> None:
    """A node whose ranks have exited must not wait for ranks that failed."""
    with connected(3) as found:
        ended = dict[int, bool]()
        in_parallel((lambda peer=peer: ended.update({peer.node: peer.all_finished(0)})) for peer in found)
        assert ended == {0: True, 1: True, 2: True}
        found[1].report(1, "failed")
        in_parallel((lambda peer=peer: ended.update({peer.node: peer.all_finished(1)})) for peer in found[::2])
        assert ended == {0: False, 1: True, 2: False}
