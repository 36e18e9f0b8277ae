"""Filters: see coldframe/controller/certificates.py."""

from __future__ import annotations

from typing import Any

from coldframe.controller.certificates import (
    coldframe_certificate_fits,
    coldframe_request_asks_for,
)


class FilterModule:
    """Ansible's way to find the filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "coldframe_certificate_fits": coldframe_certificate_fits,
            "coldframe_request_asks_for": coldframe_request_asks_for,
        }
