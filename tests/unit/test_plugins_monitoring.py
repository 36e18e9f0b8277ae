"""Targets and the names in certificates follow the inventory."""

from __future__ import annotations

from pathlib import Path

import yaml

from coldframe.controller.monitoring import (
    PORTS,
    coldframe_certificate_names,
    coldframe_host,
    coldframe_ports,
    coldframe_targets,
)


def test_every_machine_is_a_target_and_the_server_alone_has_the_runs() -> None:
    hostvars = {"server": {"coldframe_address": "192.0.2.1"}, "c1": {"coldframe_address": "2001:db8::1"}}
    targets = coldframe_targets(["server", "c1"], hostvars, "server", "lab")
    assert targets["node"] == [
        {"targets": ["192.0.2.1:9100"], "labels": {"federation": "lab", "machine": "server"}},
        {"targets": ["[2001:db8::1]:9100"], "labels": {"federation": "lab", "machine": "c1"}},
    ]
    assert [target["targets"] for target in targets["containers"]] == [
        ["192.0.2.1:9101"],
        ["[2001:db8::1]:9101"],
    ]
    assert [target["targets"] for target in targets["fl"]] == [["192.0.2.1:9093"]]


def test_ports_follow_that_of_the_server_and_each_can_be_moved() -> None:
    hostvars = {"server": {"fl_port": "9292"}, "c1": {"node_exporter_port": 9500, "prometheus_port": "x"}}
    assert coldframe_ports("c1", hostvars, ["server"]) == {
        "fl_port": 9292,
        "fl_metrics_port": 9293,
        "prometheus_port": 9290,
        "node_exporter_port": 9500,
        "container_exporter_port": 9301,
        "grafana_port": 3200,
    }
    assert coldframe_ports("server", {"server": {}}, [])["fl_metrics_port"] == 9093
    assert coldframe_ports("server", {"server": {}}, [])["grafana_port"] == 3000
    assert coldframe_ports("low", {"low": {"fl_port": 6500}}, ["low"])["grafana_port"] == 6497


def test_certificates_bear_address_or_name_and_the_loopback() -> None:
    loopback = ["DNS:localhost", "IP:127.0.0.1"]
    assert coldframe_certificate_names(["2001:db8::1"]) == ["IP:2001:db8::1", *loopback]
    assert coldframe_certificate_names(["desk.example.org"]) == ["DNS:desk.example.org", *loopback]
    assert coldframe_certificate_names(["127.0.0.1"]) == ["IP:127.0.0.1", "DNS:localhost"]


def test_an_address_of_ipv6_stands_in_brackets_in_a_url():
    hosts = [coldframe_host(address) for address in ("fd00::1", "192.0.2.1", "watch.lab")]
    assert hosts == ["[fd00::1]", "192.0.2.1", "watch.lab"]


def test_the_roles_defaults_are_those_ports() -> None:
    names = {
        "fl_port": ("fl_server_port", "fl_gateway_port"),
        "prometheus_port": ("prometheus_listen_port",),
        "node_exporter_port": ("node_exporter_listen_port",),
        "container_exporter_port": ("container_exporter_listen_port",),
        "grafana_port": ("grafana_listen_port",),
    }
    found: dict[str, int] = {}
    for path in (Path(__file__).parents[2] / "roles").glob("*/defaults/main.yml"):
        found |= yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    assert {name: found[name] for own in names.values() for name in own} == {
        name: PORTS[port] for port, own in names.items() for name in own
    }
