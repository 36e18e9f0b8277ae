"""Limits as plain values: what is wanted, what differs from the kernel, and the commands that mend it.

Nothing here touches a machine. A set of limits is a dictionary: `cpu` (cores), `memory` (bytes), `pids`,
`down` and `up` (bit/s), `delay` and `jitter` (seconds, of the round trip), `loss` (percent of packets, each
way), and `online` (false: the network is cut). None, or a missing key, is no limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PERIOD = 100_000  # microseconds; a longer one would multiply the latency of a throttled client
PAGE = 4096  # the kernel rounds memory limits down to pages
RATE_FLOOR = 1000  # bit/s; a heartbeat takes seconds there
CPU_FLOOR = 0.05  # cores; below, a client's heartbeats suffer
MEMORY_FLOOR = 384 << 20  # bytes: the peak of a whole training client, and a tenth more
MARGIN = 1.1  # a new memory limit leaves at least a tenth above what is in use
PIDS_MARGIN = 32  # processes and threads that a task may start beyond what runs between two
LATENCY = 0.1  # seconds that a packet may wait for a limited rate; else it is dropped
WINDOW = 60.0  # seconds: requests whose stamps are nearer than this were typed at the same time

CONTROL_GROUP = ("cpu", "memory", "pids")
SHAPING = ("down", "up", "delay", "jitter", "loss")
LIMITS = (*CONTROL_GROUP, *SHAPING)
KEYS = (*LIMITS, "online")
NETEM = ("delay", "jitter", "loss")

# How far the kernel's value may lie from the one asked for: quotas are microseconds per period, memory is
# pages, rates are bytes per second, times are ticks.
TOLERANCE = {"cpu": 0.0005, "memory": PAGE - 1, "pids": 0, "down": 8, "up": 8, "loss": 0.01}
TICK = 1e-4

Limits = dict[str, Any]
# By limit: {"value", "stamp", "until" (unix time or None), "then" (the entry it covers, or None)}
Asked = dict[str, dict[str, Any]]


def ask(asked: Asked, limits: Mapping[str, Any], stamp: float, until: float | None = None) -> Asked:
    """Return what is asked for after a request; a request that began earlier than one seen already changes
    nothing.

    Every request bears the time at which it began, the same on all machines. So two that run at once end in
    one state, that of the later, whichever reaches a machine first.

    Parameters
    ----------
    until : float, optional
        Unix time at which the limits give way to those that they cover.
    """
    result = dict(asked)
    for key, value in limits.items():
        old = result.get(key)
        if old and concurrent(stamp, old["stamp"]):
            continue
        entry: dict[str, Any] = {"value": value, "stamp": stamp, "until": until, "then": None}
        if until is not None and old:
            entry["then"] = old["then"] if old["until"] is not None else old
        result[key] = entry
    return result


def concurrent(stamp: float, seen: float) -> bool:
    """Return whether a request is the earlier one of two that ran at once, and the later was seen already."""
    # A stamp far older is no race but a controller whose clock is wrong: its user means what was typed last.
    return 0 < seen - stamp < WINDOW


def undo(asked: Asked, stamp: float) -> Asked:
    """Return what is asked for after an undo: nothing but what was asked for later."""
    return {key: entry for key, entry in asked.items() if concurrent(stamp, entry["stamp"])}


def expire(asked: Asked, now: float) -> Asked:
    """Return what is asked for when the limits whose time is over have gone."""
    result: Asked = {}
    for key, entry in asked.items():
        current: dict[str, Any] | None = entry
        if entry["until"] is not None and entry["until"] <= now:
            current = entry["then"]
        if current:
            result[key] = current
    return result


def next_expiry(asked: Asked) -> float | None:
    """Return when the next limit gives way, as unix time."""
    return min((entry["until"] for entry in asked.values() if entry["until"] is not None), default=None)


def desired(baseline: Mapping[str, Any], asked: Asked, overlay: Mapping[str, Any] | None = None) -> Limits:
    """Return the limits that shall hold: the baseline, over it what was asked for, over that a trace's."""
    wanted = {**baseline, **{key: entry["value"] for key, entry in asked.items()}, **(overlay or {})}
    # A rate, delay or loss of zero is none: how a profile's delay is left out where the kernel has no netem.
    shaping = {key: wanted.get(key) or None for key in SHAPING}
    group = {key: wanted.get(key) for key in CONTROL_GROUP}
    return {**group, **shaping, "online": wanted.get("online", True)}


def differences(wanted: Mapping[str, Any], verified: Mapping[str, Any]) -> Limits:
    """Return those of the wanted limits that the kernel does not hold."""
    return {
        key: value
        for key, value in wanted.items()
        if not _same(key, value, verified.get(key)) and key in KEYS
    }


def _same(key: str, one: Any, other: Any) -> bool:
    if key == "online" or one is None or other is None:
        return (bool(one) if one is not None else None) == (bool(other) if other is not None else None)
    tolerance = TOLERANCE.get(key, TICK)
    if key in ("down", "up"):
        tolerance = max(tolerance, one * 1e-3)
    return abs(float(one) - float(other)) <= tolerance


def refusals(
    wanted: Mapping[str, Any], use: Mapping[str, Any], cores: float, netem: bool, force: bool = False
) -> list[str]:
    """Return why limits cannot be given to a client, each with what to type instead; nothing has been
    changed yet.

    Parameters
    ----------
    wanted : mapping
        The limits that are asked for: only these are judged.
    use : mapping
        ``memory`` (bytes without droppable cache) and ``pids`` in use; empty for a client that does not run.
    netem : bool
        Whether the kernel can delay and lose packets.
    force : bool
        Go below what is in use.
    """
    found = []
    cpu, memory, pids = (wanted.get(key) for key in CONTROL_GROUP)
    if cpu is not None and cpu < CPU_FLOOR:
        found.append(f"cpu={cpu:g} is less than a client needs to answer the server: type -e cpu={CPU_FLOOR}")
    if cpu is not None and cpu > cores:
        found.append(f"cpu={cpu:g} is more than the machine's {cores:g} cores: type -e cpu={cores:g} or less")
    found += [
        f"{way}={wanted[way]}bit is less than a client needs to answer the server: type -e {way}=1kbit"
        for way in ("down", "up")
        if 0 < (wanted.get(way) or 0) < RATE_FLOOR
    ]
    used = use.get("memory") or 0
    if memory is not None and not force and memory < used * MARGIN:
        least = -(-int(used * MARGIN) >> 20) + 1
        found.append(
            f"memory={memory >> 20}m is below the {used >> 20} MB in use and a tenth more, and "
            f"would kill the client: type -e memory={least}m, or -e force=true to do it all the same"
        )
    running = use.get("pids") or 0
    if pids is not None and not force and pids < running + PIDS_MARGIN:
        found.append(
            f"pids={pids} leaves a task less than {PIDS_MARGIN} beside the {running} processes and threads "
            f"that run: type -e pids={running + PIDS_MARGIN}, or -e force=true to do it all the same"
        )
    missing = [key for key in NETEM if wanted.get(key)]
    if missing and not netem:
        one = len(missing) == 1
        found.append(
            f"{' and '.join(missing)} {'needs' if one else 'need'} the kernel's netem, which this machine "
            f"lacks: load it (modprobe sch_netem) or leave {'it' if one else 'them'} out"
        )
    return found


def engine_update(changes: Mapping[str, Any]) -> dict[str, int]:
    """Return the engine's words for limits of cpu, memory and pids.

    Period and quota, never cpus: the two ways exclude each other for a container's life. Memory and swap go
    together: a limit on memory alone lets a client swap. The engine takes 0 for "leave as it is", so no
    limit is -1.
    """
    update: dict[str, int] = {}
    if "cpu" in changes:
        cpu = changes["cpu"]
        update |= {"CpuPeriod": PERIOD, "CpuQuota": -1 if cpu is None else round(cpu * PERIOD)}
    if "memory" in changes:
        memory = -1 if changes["memory"] is None else int(changes["memory"])
        update |= {"Memory": memory, "MemorySwap": memory}
    if "pids" in changes:
        update["PidsLimit"] = -1 if changes["pids"] is None else int(changes["pids"])
    return update


def engine_limits(described: Mapping[str, Any]) -> Limits:
    """Return the limits with which the engine would start a container, from its ``HostConfig``; 0 is none."""
    quota, period = described.get("CpuQuota") or 0, described.get("CpuPeriod") or PERIOD
    cpu = quota / period if quota > 0 else (described.get("NanoCpus") or 0) / 1e9
    memory, pids = described.get("Memory") or 0, described.get("PidsLimit") or 0
    return {
        "cpu": cpu if cpu > 0 else None,
        "memory": memory if memory > 0 else None,
        "pids": pids if pids > 0 else None,
    }


def one_way(wanted: Mapping[str, Any], direction: str) -> Limits:
    """Return what one direction (`down` or `up`) of a client's link shall do: half of the delay each."""
    return {
        "rate": wanted.get(direction),
        "delay": (wanted.get("delay") or 0) / 2,
        "jitter": (wanted.get("jitter") or 0) / 2,
        "loss": wanted.get("loss") or 0,
    }


def parse_qdiscs(listed: Iterable[Mapping[str, Any]], device: str | None = None) -> Limits:
    """Return what one direction of a link does, from the answer of ``tc -j qdisc show``.

    Returns
    -------
    dict
        ``rate`` (bit/s or None), ``delay``, ``jitter`` (seconds), ``loss`` (percent), and ``kinds``: the
        disciplines of ours that stand there, outermost first.
    """
    found: Limits = {"rate": None, "delay": 0.0, "jitter": 0.0, "loss": 0.0, "kinds": ()}
    for discipline in listed:
        if device is not None and discipline.get("dev") != device:
            continue
        kind, options = discipline.get("kind"), discipline.get("options", {})
        if kind == "tbf":
            found["rate"] = options["rate"] * 8
            found["kinds"] += ("tbf",)
        elif kind == "netem":
            delay, loss = options.get("delay") or {}, options.get("loss-random") or {}
            found["delay"], found["jitter"] = delay.get("delay", 0.0), delay.get("jitter", 0.0)
            found["loss"] = loss.get("loss", 0.0) * 100
            found["kinds"] = ("netem", *found["kinds"])
    return found


def both_ways(down: Mapping[str, Any], up: Mapping[str, Any]) -> Limits:
    """Return a client's limits from what its two directions do; zero is none."""
    return {
        "down": down["rate"],
        "up": up["rate"],
        "delay": (down["delay"] + up["delay"]) or None,
        "jitter": (down["jitter"] + up["jitter"]) or None,
        "loss": (down["loss"] + up["loss"]) / 2 or None,  # so one that is missing on one side shows
    }


def only_rate(rate: int | None) -> Limits:
    """Return what one direction of a link does that has no more than a rate."""
    kinds = () if rate is None else ("tbf",)
    return {"rate": rate, "delay": 0.0, "jitter": 0.0, "loss": 0.0, "kinds": kinds}


def burst(rate: int) -> int:
    """Return how many bytes may be sent at once: 10 ms of them, since less cannot be held at high rates."""
    return max(16384, rate // 8 // 100)


def shape(device: str, wanted: Mapping[str, Any], kinds: Sequence[str]) -> list[list[str]]:
    """Return the calls of tc, without ``tc``, that make one direction of a link do what is wanted.

    Where the same disciplines stand already they are changed in place, which drops no packet.
    """
    needs_netem = any(wanted[key] for key in NETEM)
    goal = (("netem",) if needs_netem else ()) + (("tbf",) if wanted["rate"] else ())
    calls: list[list[str]] = []
    if kinds and tuple(kinds) != goal:
        calls.append(["qdisc", "del", "dev", device, "root"])
    place = ["root", "handle", "1:"]
    if needs_netem:
        words = ["netem", "limit", "10000", "delay", f"{wanted['delay'] * 1e6:.0f}us"]
        words += [f"{wanted['jitter'] * 1e6:.0f}us"] if wanted["jitter"] else []
        words += ["loss", f"{wanted['loss']:g}%"] if wanted["loss"] else []
        calls.append(["qdisc", "replace", "dev", device, "root", "handle", "2:", *words])
        place = ["parent", "2:1", "handle", "3:"]
    if wanted["rate"]:
        rate = int(wanted["rate"])
        words = ["tbf", "rate", f"{rate}bit", "burst", str(burst(rate)), "latency", f"{LATENCY * 1e3:.0f}ms"]
        calls.append(["qdisc", "replace", "dev", device, *place, *words])
    return calls
