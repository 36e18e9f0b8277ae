"""The description of a federation: site.yml leaves it on every machine, and every other verb follows it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coldframe.controller.checks import Machine
from coldframe.controller.settings import INVENTORY, Finding
from coldframe.limits import LIMITS
from coldframe.units import format_size

CLIENTS = "fl_client_"
# What the other verbs see of a federation besides its clients; all else of the inventory matters to site.yml.
VISIBLE = (
    "fl_address",
    "fl_port",
    "fl_metrics_port",
    "fl_monitoring",
    "prometheus_port",
    "node_exporter_port",
    "container_exporter_port",
    "grafana_port",
)
# Paths on the controller: they are followed where this controller has deployed, and may differ.
CONTROLLER = ("fl_results_dir", "fl_data_dir", "fl_data_source")
FREE = (*CONTROLLER, "fl_federation", "fl_keep_runs", "fl_min_disk")
GROUPS = (("fl_server", "the server"), ("fl_clients", "clients"))


@dataclass(frozen=True)
class Description:
    """What the last deployment made; empty where nothing stands that has a description.

    Attributes
    ----------
    machines : mapping
        By name: ``groups``, ``address`` (what other machines call it) and ``settings`` (inventory variables,
        typed).
    roster : sequence of mapping
        The clients with their limits.
    typed : mapping
        The inventory's variables that were given by ``-e``: they beat the inventory, so what the inventory
        says of these does not count.
    """

    machines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    roster: Sequence[Mapping[str, Any]] = ()
    typed: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.machines)

    def clients_of(self, machines: Iterable[Machine]) -> list[dict[str, Any]]:
        """Return the clients that stand on these machines."""
        names = {machine.name for machine in machines}
        return [dict(client) for client in self.roster if client["machine"] in names]

    def follow(self, machines: Iterable[Machine], typed: Collection[str], here: bool) -> list[Machine]:
        """Return the machines with the settings that they were deployed with.

        Parameters
        ----------
        typed : collection of str
            The variables of ``-e`` now, which are not changed.
        here : bool
            Whether this controller has deployed the federation.
        """
        found = []
        for machine in machines:
            deployed = self.machines.get(machine.name, {}).get("settings", {})
            taken = {
                name: value
                for name, value in deployed.items()
                if name in INVENTORY
                and name not in typed
                and (
                    name not in CONTROLLER or (here and (name in self.typed or name not in machine.settings))
                )
            }
            found.append(replace(machine, settings={**machine.settings, **taken}))
        return found

    def repeat(self, raw: Mapping[str, Any], typed: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return the machines' variables as if what was typed for the deployment were typed again."""
        again = {name: value for name, value in self.typed.items() if name not in typed}
        return {machine: {**variables, **again} for machine, variables in raw.items()}

    def differences(
        self,
        machines: Sequence[Machine],
        groups: Mapping[str, Iterable[str]],
        typed: Collection[str],
        planned: Sequence[Mapping[str, Any]],
        site: str,
    ) -> list[Finding]:
        """Findings about what is typed, or written in the inventory, and contradicts what stands.

        Parameters
        ----------
        machines : sequence of Machine
            With the settings that they have now, before `follow`.
        groups : mapping
            The inventory's groups, with the machines that ``--limit`` leaves out.
        planned : sequence of mapping
            The roster that the variables make, see `repeat`.
        site : str
            The command that deploys what is typed and written now.
        """
        findings = self._members(groups, site)
        for name in [name for name in INVENTORY if name not in FREE]:
            seen = name in VISIBLE or name.startswith(CLIENTS)
            if name not in typed and (name in self.typed or not seen):
                continue
            texts = {machine.name: self._difference(name, machine, planned) for machine in machines}
            differing = {machine: text for machine, text in texts.items() if text}
            if name in typed and differing:
                where = "; ".join(f"on {machine} {text}" for machine, text in differing.items())
                problem = f"{name} is typed, and the federation stands otherwise: {where}"
                findings.append(Finding(problem, f"leave it out, or deploy it first: {site}"))
            elif differing:
                findings += [
                    Finding(
                        f"the inventory has changed since the federation was deployed: {text} ({name})",
                        f"write it as it was, or deploy it first: {site}",
                        machine,
                    )
                    for machine, text in differing.items()
                ]
        return findings

    def _members(self, groups: Mapping[str, Iterable[str]], site: str) -> list[Finding]:
        findings = []
        for group, what in GROUPS:
            now = list(groups.get(group, []))
            then = [name for name, item in self.machines.items() if group in item["groups"]]
            for name in [name for name in now if name not in then]:
                problem = f"{name} is in the group {group}, and was not deployed with {what}"
                findings.append(Finding(problem, f"take it out, or deploy it first: {site}"))
            for name in [name for name in then if name not in now]:
                problem = f"{name} has {what} of this federation, and is not in the group {group}"
                findings.append(Finding(problem, f"put it back, or deploy without it first: {site}"))
        return findings

    def _difference(self, name: str, machine: Machine, planned: Sequence[Mapping[str, Any]]) -> str:
        """Say what a setting makes now and what stands, or nothing where that comes to the same."""
        deployed = self.machines.get(machine.name)
        if deployed is None or name not in machine.settings:
            return ""
        now = machine.settings[name]
        then = deployed["address"] if name == "fl_address" else deployed["settings"].get(name)
        if now == then:
            return ""
        if not name.startswith(CLIENTS):
            was = "its default" if then is None else text_of(name, then)
            return f"{name}={text_of(name, now)} instead of {was}"
        if not machine.facts:
            return ""  # how many cores its clients would share is not known
        return clients_differ(
            name.removeprefix(CLIENTS),
            [client for client in planned if client["machine"] == machine.name],
            [client for client in self.roster if client["machine"] == machine.name],
        )


def describe(
    federation: str,
    machines: Iterable[Machine],
    roster: Iterable[Mapping[str, Any]],
    usual: Mapping[str, Mapping[str, Any]],
    typed: Mapping[str, Any],
    now: float,
) -> dict[str, Any]:
    """Return the description, as JSON, of what site.yml deploys.

    Parameters
    ----------
    usual : mapping
        By machine, the settings that it has where nothing sets them.
    typed : mapping
        The variables of ``-e``.
    now : float
        Unix time: of several descriptions the last one counts.
    """
    return {
        "federation": federation,
        "time": now,
        "typed": {name: value for name, value in typed.items() if name in INVENTORY},
        "machines": {
            machine.name: {
                "groups": sorted(machine.groups),
                "address": machine.address,
                # Not how this controller reaches it: that is its inventory's affair.
                "settings": {
                    **usual[machine.name],
                    **{name: value for name, value in machine.settings.items() if name in INVENTORY},
                },
            }
            for machine in machines
        },
        "roster": list(roster),
    }


def newest(machines: Iterable[Machine], federation: str) -> tuple[Description, str]:
    """Return the description that the server's machine has, and the deployment's plan.

    Where it has none (the server is about to move there, or it does not answer), the last one that a machine
    with containers of the federation has. So no machine of clients decides what verbs follow while the
    server's answers. Both are empty where there is none: nothing stands, or an older version has deployed it.
    """
    found: list[tuple[bool, dict[str, Any], str]] = []
    for machine in machines:
        facts = machine.facts or {}
        noted = facts.get("deployment", {}).get("noted", {})
        containers = facts.get("docker", {}).get("containers", [])
        if is_whole(noted.get("description")) and any(
            item["federation"] == federation for item in containers
        ):
            found.append(("fl_server" in machine.groups, noted["description"], str(noted["plan"])))
    if not found:
        return Description(), ""
    _, last, plan = max(found, key=lambda item: (item[0], float(item[1]["time"])))
    return Description(last["machines"], last["roster"], last["typed"]), plan


def is_whole(description: object) -> bool:
    """Whether what a machine has is a description, and not something else that somebody has put there."""
    kinds = {"time": int | float, "machines": Mapping, "roster": list, "typed": Mapping}
    return isinstance(description, Mapping) and all(
        isinstance(description.get(key), kind) for key, kind in kinds.items()
    )


def to_set(
    before: Iterable[Machine], after: Iterable[Machine], usual: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the variables, with machine and value, that the playbooks would not see of themselves.

    The clients' settings are not among them: they are in the roster."""
    return [
        {"machine": new.name, "name": name, "value": value}
        for old, new in zip(before, after, strict=True)
        for name, value in new.settings.items()
        if not name.startswith(CLIENTS) and {**usual[new.name], **old.settings}.get(name) != value
    ]


def clients_differ(key: str, now: Sequence[Mapping[str, Any]], then: Sequence[Mapping[str, Any]]) -> str:
    """Say how a machine's clients would differ from those that stand, in one limit or in their number."""
    names = [sorted(str(client["name"]) for client in clients) for clients in (now, then)]
    if names[0] != names[1]:
        shown = [", ".join(some) or "none" for some in names]
        return f"the clients would be {len(now)} ({shown[0]}) instead of {len(then)} ({shown[1]})"
    stood = {client["name"]: client for client in then}
    limits = (key,) if key in LIMITS else (*LIMITS, "profile")
    changed = [
        (client["name"], limit, client.get(limit), stood[client["name"]].get(limit))
        for client in now
        for limit in limits
        if client.get(limit) != stood[client["name"]].get(limit)
    ]
    return ", ".join(
        f"{name} would have {limit}={text_of(limit, would)} instead of {text_of(limit, has)}"
        for name, limit, would, has in changed
    )


def text_of(name: str, value: Any) -> str:
    """A setting for people."""
    if value is None:
        return "none"
    if name.endswith("memory"):
        return format_size(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
