"""What Ray finds in the environment when it is imported: private and authenticated, unless the user says otherwise."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from openrlhf_ext.cluster.environment import is_loopback, prepare_environment
from openrlhf_ext.cluster.session import RaySettings, check_port_free, ray_session
from openrlhf_ext.errors import ResourceError


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in list(os.environ):
        if name.startswith("RAY_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"HOME": str(tmp_path)})


def test_a_ray_of_our_own_asks_for_a_token_made_for_this_run():
    prepare_environment(None, "127.0.0.1")
    assert os.environ["RAY_AUTH_MODE"] == "token"
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(bytes.fromhex(token)) == 32
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0", "Ray's switch for services on loopback only"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    prepare_environment(None, "127.0.0.1")
    assert os.environ["RAY_AUTH_TOKEN"] == token, "a token that is there is used"
    del os.environ["RAY_AUTH_TOKEN"]
    prepare_environment(None, "127.0.0.1")
    assert os.environ["RAY_AUTH_TOKEN"] != token


def test_the_users_choices_stand(tmp_path: Path):
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="1", RAY_memory_monitor_refresh_ms="250")
    prepare_environment(None, "0.0.0.0")
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["RAY_memory_monitor_refresh_ms"] == "250"  # noqa: SIM112 (as Ray spells it)


@pytest.mark.parametrize("where", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_of_the_user_is_used(where: str):
    os.environ[where] = "theirs"
    prepare_environment(None, "127.0.0.1")
    assert os.environ[where] == "theirs"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ) == {where}


def test_a_cluster_that_is_joined_decides_for_itself():
    prepare_environment("auto", "127.0.0.1")
    assert "RAY_AUTH_MODE" not in os.environ
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ
    os.environ["RAY_AUTH_TOKEN"] = "theirs"
    prepare_environment("auto", "127.0.0.1")
    assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.5.5.5", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.7", False),
    ],
)
def test_is_loopback(host: str, expected: bool):
    assert is_loopback(host) == expected


def test_a_port_in_use_is_named_before_ray_starts():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=rf"--ray.dashboard_port {port} on 127.0.0.1 is in use .*free port\.$"):
            with ray_session(RaySettings(dashboard=True, dashboard_port=port)):
                pytest.fail("Ray was started")
    check_port_free("127.0.0.1", port)


def test_an_address_that_does_not_answer():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and nobody listens
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(
            ResourceError, match=f"No Ray cluster answers at --ray.address {address} .*ray start --head"
        ):
            with ray_session(RaySettings(address=address)):
                pytest.fail("Ray was joined")


@pytest.mark.parametrize("address", ["nowhere", "host:", ":6379", "host:port", "ray://host:10001"])
def test_an_address_that_is_none(address: str):
    with pytest.raises(ResourceError, match=r"is no address: give host:port, or \"auto\""):
        with ray_session(RaySettings(address=address)):
            pytest.fail("Ray was joined")
