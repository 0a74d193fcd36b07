"""The network interface through which the ranks of one machine communicate, without a name service or a network."""

import socket
from dataclasses import dataclass

import psutil

from vit.config.user_error import UserError


@dataclass(frozen=True)
class Loopback:
    """The loopback interface of this machine."""

    interface: str  # usually lo
    address: str  # 127.0.0.1, or ::1 where there is only IPv6


def find_loopback() -> Loopback:
    """The loopback interface.  Raises UserError if there is none, or if it is down."""
    interfaces = {address.address: name for name, found in psutil.net_if_addrs().items() for address in found}
    for address, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        if address in interfaces and _can_connect(address, family):
            return Loopback(interfaces[address], address)
    raise UserError(
        "this machine has no loopback interface, through which its ranks communicate: run `ip link set lo up`, or "
        "start the container with a network"
    )


def _can_connect(address: str, family: socket.AddressFamily) -> bool:
    try:
        with socket.create_server((address, 0), family=family) as server:
            socket.create_connection(server.getsockname()[:2], timeout=5).close()
    except OSError:
        return False
    return True
