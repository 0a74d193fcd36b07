"""Nodes in networks of their own: their names resolve to one that they do not share, and they meet on another one."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.slurm_config import Node

PREFIX = "vt"  # of the names of bridges and interfaces, which may have 15 characters
# Each node has `office`, on which nobody else is, and `fabric`, which leads to the others and to the controller.
SUBNET, OFFICE = "10.213.77", "10.213.78"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def two_networks(folder: Path, count: int) -> Iterator[tuple[str, list[Node]]]:
    """The address of this machine on the network of the nodes, and the nodes."""
    bridge, nodes = f"{PREFIX}br0", []
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("address", "add", f"{SUBNET}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for number in range(1, count + 1):
            name = f"n{number}.example.org"
            space = f"{PREFIX}-n{number}"
            _ip("netns", "add", space)
            _ip("link", "add", f"{PREFIX}{number}", "type", "veth", "peer", "name", "fabric", "netns", space)
            _ip("link", "set", f"{PREFIX}{number}", "master", bridge, "up")
            for words in (
                ("link", "set", "lo", "up"),
                ("address", "add", f"{SUBNET}.{10 + number}/24", "dev", "fabric"),
                ("link", "set", "fabric", "up"),
                ("link", "add", "office", "type", "veth", "peer", "name", "unused"),
                ("address", "add", f"{OFFICE}.{10 * number}/29", "dev", "office"),
                ("link", "set", "office", "up"),
                ("link", "set", "unused", "up"),
            ):
                _ip("-n", space, *words)
            hosts = folder / f"hosts-{number}"
            every = [f"{OFFICE}.{10 * other} n{other}.example.org n{other}" for other in range(1, count + 1)]
            hosts.write_text("\n".join(["127.0.0.1 localhost", *every]) + "\n")
            script = f'mount --bind {hosts} /etc/hosts && hostname n{number} && exec "$@"'
            prefix = ("nsenter", f"--net=/run/netns/{space}", "unshare", "--mount", "--uts", "sh", "-c", script, "sh")
            nodes.append(Node(name, f"{SUBNET}.{10 + number}", prefix))
        yield f"{SUBNET}.1", nodes
    finally:
        for number in range(1, count + 1):
            subprocess.run(["ip", "netns", "delete", f"{PREFIX}-n{number}"], capture_output=True, check=False)
            subprocess.run(["ip", "link", "delete", f"{PREFIX}{number}"], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", bridge], capture_output=True, check=False)
