"""A name that leads the controller to a machine leads the other machines' containers there, or is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from ansible.errors import AnsibleError

from coldframe.controller.checks import Machine
from coldframe.controller.resolution import check_resolution, coldframe_names


def machine(name: str, *groups: str, host: str = "", **resolved: str) -> Machine:
    """A machine that has told how it resolves names; dots are written as underscores."""
    found = {key.replace("_", "."): value for key, value in resolved.items()}
    return Machine(
        name, frozenset(groups), host=host, facts={"address": f"192.0.2.{len(name)}", "resolved": found}
    )


SERVER = machine("srv", "fl_server", "fl_clients", host="alias", alias="hosts")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("", "it cannot resolve alias, the address of srv"),
        ("hosts", "alias, the address of srv, stands in its hosts file alone, which containers do not read"),
        ("dns", None),
        ("unknown", None),
        (None, None),
    ],
)
def test_clients_have_to_find_the_server(how: str | None, words: str | None) -> None:
    known = {} if how is None else {"alias": how}
    client = machine("far", "fl_clients", host="192.0.2.7", **known)
    findings = check_resolution([SERVER, client], "")
    assert [(found.problem, found.machine) for found in findings] == ([(words, "far")] if words else [])
    if words:
        assert findings[0].remedy.endswith(
            "set fl_address of srv in the inventory to what all machines reach, such as 192.0.2.3"
        )


def test_the_monitor_has_to_find_everybody_and_clients_need_not() -> None:
    clients = [
        machine(name, "fl_clients", host="other", other="", alias="dns") for name in ("far", "farther")
    ]
    assert check_resolution([SERVER, *clients[:1]], "") == []
    watching = machine("srv", "fl_server", host="alias", other="")
    assert [found.machine for found in check_resolution([watching, clients[0]], "srv")] == ["srv"]


class Variables(dict[str, Any]):
    """Variables of a machine, of which one cannot be read."""

    def get(self, key: str, default: Any = None) -> Any:
        if key == "fl_address" and self[key] == "!vault":
            raise AnsibleError("no vault secrets")
        return super().get(key, default)


def test_names_are_those_that_no_address_stands_for() -> None:
    hostvars: Mapping[str, Any] = {
        "a": {"ansible_host": "alias"},
        "b": {"ansible_host": "alias", "fl_address": "192.0.2.2"},
        "c": {},
        "d": {"ansible_connection": "local"},
        "e": Variables(fl_address="!vault"),
        "f": {"ansible_host": "127.0.0.1"},
        "g": {"fl_address": "fd00::1"},
    }
    assert coldframe_names(list(hostvars), hostvars) == ["alias", "c"]
