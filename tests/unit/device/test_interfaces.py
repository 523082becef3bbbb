"""The network interface that ranks meet over: chosen where nobody chose, said in words."""

from __future__ import annotations

import socket

import pytest

from openrlhf_ext.device.choose import Device
from openrlhf_ext.device.interfaces import interface_to, meeting_environment, meets_over

CPU = Device("cpu", 0, frozenset())
GPU = Device("cuda", 2, frozenset())


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in (CPU, GPU):
        monkeypatch.delenv(device.interface_variable, raising=False)


def own_address() -> str:
    """This machine's address on the network; loopback where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]


def test_ranks_that_meet_on_loopback_stay_on_it(monkeypatch: pytest.MonkeyPatch):
    assert meeting_environment(CPU, "127.0.0.1") == {"GLOO_SOCKET_IFNAME": "lo"}
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    assert meeting_environment(GPU, "localhost") == {"NCCL_SOCKET_IFNAME": "lo"}


def test_the_interface_is_the_one_that_leads_there():
    assert interface_to("127.0.0.1") == ("lo", "127.0.0.1")
    address = own_address()
    name, found = interface_to(address) or ("", "")
    assert found == address and name in {name for _, name in socket.if_nameindex()}
    assert interface_to("no such host.invalid") is None


def test_a_cpu_s_ranks_take_it_and_a_gpu_s_choose(monkeypatch: pytest.MonkeyPatch):
    address = own_address()
    if address == "127.0.0.1":
        pytest.skip("this machine is on no network")
    found = interface_to(address)
    assert found is not None
    assert meeting_environment(CPU, address) == {"GLOO_SOCKET_IFNAME": found[0]}
    assert meeting_environment(GPU, address) == {}
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert meeting_environment(CPU, address) == {}, "what the user chose stands"


def test_it_is_said(monkeypatch: pytest.MonkeyPatch):
    assert meets_over(GPU) == "an interface that nccl chose (NCCL_SOCKET_IFNAME names one)"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert meets_over(CPU) == "lo (127.0.0.1)"
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "^docker,lo")
    assert meets_over(GPU) == "^docker,lo"
