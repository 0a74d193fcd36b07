"""Free TCP ports."""

import os
import socket


def free_ports(count: int) -> list[int]:
    """Ports that no process listens on, below the kernel's ephemeral ports."""
    out: list[int] = []
    start = 10_000 + int.from_bytes(os.urandom(2), "big") % 20_000
    for port in range(start, start + 2000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        out.append(port)
        if len(out) == count:
            return out
    raise RuntimeError("no free ports")
