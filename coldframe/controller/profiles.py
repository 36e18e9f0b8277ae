"""Profiles: named limits that stand for a device or a network, and what they are on a machine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from coldframe.controller.settings import VERBS, cast_value, nearest, typed

PATH = Path(__file__).resolve().parents[2] / "group_vars" / "all" / "profiles.yml"

Profiles = Mapping[str, Mapping[str, Any]]


@cache
def known() -> tuple[Profiles, float]:
    """The profiles of this checkout, and the training steps per second of a reference core."""
    found = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    return found["coldframe_profiles"], found["coldframe_reference_speed"]


def profile_limits(names: str, profiles: Profiles) -> dict[str, Any]:
    """The limits of a profile, or of several with commas between: those of a device and those of a network.

    Raises
    ------
    ValueError
        If one is not known; the message is "PROBLEM: REMEDY".
    """
    limits: dict[str, Any] = {}
    for name in (part.strip() for part in names.split(",")):
        if name not in profiles:
            near = nearest(name, profiles)
            remedy = f"did you mean {near}? Type {typed('profile', near)}" if near else known_names(profiles)
            raise ValueError(f"profile={name} is not known: {remedy}")
        for key, value in profiles[name].items():
            limits[key] = cast_value(VERBS["throttle"][key], value)
    return limits


def known_names(profiles: Profiles) -> str:
    """What one can choose from."""
    return f"known are {', '.join(profiles)}"


def on_machine(limits: Mapping[str, Any], reference: float, speed: float | None) -> dict[str, Any]:
    """A profile's limits on a machine: as many of its cores as do the work of the profile's reference cores.

    Parameters
    ----------
    speed : float, optional
        Training steps per second of one of its cores. Where it is not known they count as reference cores.
    """
    if "cpu" not in limits or not speed:
        return dict(limits)
    return {**limits, "cpu": round(limits["cpu"] * reference / speed, 3)}


def speed_of(facts: Mapping[str, Any] | None) -> float | None:
    """Training steps per second of one of a machine's cores, as calibrate.yml has measured them."""
    return ((facts or {}).get("calibration") or {}).get("steps_per_second")
