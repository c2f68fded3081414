"""The network interface on which gloo listens for the other ranks."""

from __future__ import annotations

import os
import socket

import psutil
import pytest

from spark_hpo.train.rendezvous.interface import gloo_on_reachable_address

VARIABLE = "GLOO_SOCKET_IFNAME"


@pytest.fixture
def interface(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The name and the address of an interface that other machines reach."""
    monkeypatch.delenv(VARIABLE, raising=False)
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family is socket.AF_INET and not entry.address.startswith("127."):
                return name, entry.address
    pytest.skip("this machine has a loopback interface only")


def test_gloo_uses_the_interface_of_the_address_if_the_host_name_is_loopback(
    interface: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, address = interface
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    with gloo_on_reachable_address(address):
        assert os.environ[VARIABLE] == name
    assert VARIABLE not in os.environ


def test_gloo_keeps_a_host_name_that_others_reach_and_the_choice_of_the_user(
    interface: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: interface[1])
    with gloo_on_reachable_address(interface[1]):
        assert VARIABLE not in os.environ
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    with gloo_on_reachable_address("127.0.0.1"):
        assert VARIABLE not in os.environ
    monkeypatch.setenv(VARIABLE, "chosen")
    with gloo_on_reachable_address(interface[1]):
        assert os.environ[VARIABLE] == "chosen"
    assert os.environ[VARIABLE] == "chosen"
