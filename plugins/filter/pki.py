"""Filters: see coldframe/controller/certificates.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # Ansible loads plugins by path, not as a package

from coldframe.controller.certificates import (
    coldframe_certificate_fits,
    coldframe_request_asks_for,
)
from coldframe.controller.openpgp import coldframe_key_fingerprints


class FilterModule:
    """Ansible's way to find the filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "coldframe_certificate_fits": coldframe_certificate_fits,
            "coldframe_request_asks_for": coldframe_request_asks_for,
            "coldframe_key_fingerprints": coldframe_key_fingerprints,
        }
