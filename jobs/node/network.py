"""The network on which the nodes of a job meet: the one on which Slurm has started it, or the one that the user names.

torch's rendezvous and gloo use the address to which a machine's name resolves.  That may be the loopback interface, as
with 127.0.1.1 on Debian, or a network on which nodes do not see each other.  The one on which srun starts tasks works.
"""

import os
import socket
from contextlib import suppress

import psutil

INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"  # set by the user, in `setup` of the cluster file; else by this job


def choose(first_address: str) -> str:
    """Makes gloo use the interface on which this node reaches the first one; returns this node's address on it.

    If the user has named an interface, it is that one's.  "" if none is found: then torch uses the machine's name.
    """
    named = os.environ.get(INTERFACE_VARIABLE, "").partition(",")[0]
    if named:
        return _address_of(named)
    address = _source_address(first_address)
    if interface := _interface_with(address):
        os.environ[INTERFACE_VARIABLE] = interface
    return address if interface else ""


def _source_address(target: str) -> str:
    """The address of this machine with which it reaches another one; nothing is sent."""
    with suppress(OSError):
        family = socket.getaddrinfo(target, None)[0][0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return str(probe.getsockname()[0])
    return ""


def _interface_with(address: str) -> str:
    for name, found in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in found):
            return name
    return ""


def _address_of(interface: str) -> str:
    """Its first IPv4 address, else its first IPv6 address that is not only valid on one link."""
    found = psutil.net_if_addrs().get(interface, [])
    for family in (socket.AF_INET, socket.AF_INET6):
        for each in found:
            if each.family == family and not each.address.startswith("fe80"):
                return each.address
    return ""
