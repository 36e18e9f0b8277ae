"""The libraries of an app, loaded already or not, use as many threads as the CPU limit has cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from coldframe.recording import threads

# As the zygote does: numpy and torch are loaded with one thread, and a child is given three.
CHILD = """
import json, os, sys
import numpy, torch
from coldframe.recording import threads
before = [library.get() for library in threads.loaded_blas()]
if os.fork() == 0:
    for name in threads.VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(json.loads(sys.argv[1]))
    threads.apply()
    product = numpy.ones((400, 400)) @ numpy.ones((400, 400))
    found = {name: os.environ[name] for name in threads.VARIABLES}
    found |= {"before": before, "blas": [library.get() for library in threads.loaded_blas()]}
    print(json.dumps(found | {"torch": torch.get_num_threads(), "sum": product.sum()}), flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize(("limit", "chosen", "expected"), [(0.5, None, 1), (None, "3", 3), (0.5, "2,1", 2)])
def test_as_many_as_the_limit_allows_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, chosen: str | None, expected: int
) -> None:
    group = SimpleNamespace(cpu_limit=lambda: limit, cpuset_count=lambda: None)
    monkeypatch.setattr(threads.cgroups, "own", lambda: group)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    assert threads.allowed() == expected


def test_libraries_that_are_loaded_are_told_and_later_ones_read_their_variable() -> None:
    chosen = {"OMP_NUM_THREADS": "2", "RAYON_NUM_THREADS": "5", "NUMEXPR_NUM_THREADS": "none"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(chosen)],
        env={**os.environ, **dict.fromkeys(threads.VARIABLES, "1")},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found.pop("before") == [1], "numpy's OpenBLAS was loaded with one thread"
    assert found.pop("blas") == [2]
    assert (found.pop("torch"), found.pop("sum")) == (2, 400**3)
    assert found == {**dict.fromkeys(threads.VARIABLES, "2"), **chosen}, "what the user set stays"
