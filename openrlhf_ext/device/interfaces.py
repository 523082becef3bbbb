"""Which network interface ranks of several machines meet over."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator

from openrlhf_ext.device.choose import Device

_ADDRESS_OF = 0x8915
"""SIOCGIFADDR of linux/sockios.h."""


def meeting_environment(device: Device, host: str) -> dict[str, str]:
    """What a process sets before it meets others at `host`; what its user set stands.

    On the loopback address ranks stay on it. Elsewhere a CPU's collectives would take the address that the machine's
    name stands for, which is often a loopback one: they get the interface by which the host is reached. A GPU's choose
    for themselves, and prefer what is faster than the way to that host.
    """
    name = device.interface_variable
    if host == "localhost" or host.startswith("127."):
        return {name: "lo"}
    route = None if name in os.environ or device.count else interface_to(host)
    return {} if route is None else {name: route[0]}


def meets_over(device: Device) -> str:
    """The interface in words, after the process has met the others."""
    chosen = os.environ.get(device.interface_variable)
    if chosen is None:
        return f"an interface that {device.collective} chose ({device.interface_variable} names one)"
    addresses = dict(_interfaces())
    return f"{chosen} ({addresses[chosen]})" if chosen in addresses else chosen


def interface_to(host: str) -> tuple[str, str] | None:
    """Name and IPv4 address of the interface by which this machine reaches a host; None where there is no telling."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # which sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    return next(((name, address) for name, address in _interfaces() if address == own), None)


def _interfaces() -> Iterator[tuple[str, str]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _ADDRESS_OF, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
            yield name, socket.inet_ntoa(answer[20:24])
