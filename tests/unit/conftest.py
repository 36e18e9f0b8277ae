"""Fixtures of many tests, and the names that Ansible ships modules by: so no file is imported twice."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coldframe import machine

if TYPE_CHECKING:
    from tests.unit.fl_runs import Start

for _path in Path(machine.__file__).parent.glob("[a-z]*.py"):
    _module = importlib.import_module(f"coldframe.machine.{_path.stem}")
    sys.modules[f"ansible.module_utils.{_path.stem}"] = _module


# These import torch where they are used: its compiler fails in a process that has imported Ansible.


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets that holds the synthetic one."""
    from fl import data

    folder = tmp_path_factory.mktemp("data")
    data.prepare("synthetic", folder)
    return folder


@pytest.fixture
def start(synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A function that runs a training of our app, and returns its journal and the grid."""
    from tests.unit.fl_runs import starter

    return starter(synthetic, tmp_path, monkeypatch)


def pytest_collection_finish() -> None:
    """Leave what all tests share out of every collection: some of flwr's strategies ask for many."""
    gc.collect()
    gc.freeze()
