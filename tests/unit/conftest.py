"""Gives what our modules import the name that Ansible ships it by: no file is imported twice."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path

from coldframe import machine

for _path in Path(machine.__file__).parent.glob("[a-z]*.py"):
    _module = importlib.import_module(f"coldframe.machine.{_path.stem}")
    sys.modules[f"ansible.module_utils.{_path.stem}"] = _module


def pytest_collection_finish() -> None:
    """Leave what all tests share out of every collection: some of flwr's strategies ask for many."""
    gc.collect()
    gc.freeze()
