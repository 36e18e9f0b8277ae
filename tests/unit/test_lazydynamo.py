"""torch's compiler stays out of tasks that compile nothing, and is whole in those that do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

TRAIN = """
import sys
import torch
from coldframe.client import lazydynamo
lazydynamo.install()
model = torch.nn.Linear(4, 2)

def loss():
    optimizer.zero_grad()
    value = model(torch.ones(3, 4)).sum()
    value.backward()
    return value

for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adadelta, torch.optim.LBFGS):
    optimizer = kind(model.parameters(), lr=0.1)
    optimizer.step(loss)
    optimizer.load_state_dict(optimizer.state_dict())
    torch.optim.lr_scheduler.StepLR(optimizer, 1).step()
before = model.weight.clone()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
optimizer.step(loss)
assert torch.allclose(before - model.weight, torch.tensor(0.3)), "it trains"
assert not lazydynamo.is_loaded()
assert not [name for name in sys.modules if name.startswith("torch._dynamo.")]
"""
# Each is a way in which an app, or torch for it, asks for the compiler.
USES = {
    "torch.compile": 'assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)) == 2',
    "a submodule": "import torch._dynamo.config as c; assert c.recompile_limit",
    "a name": "from torch._dynamo import explain; assert callable(explain)",
    "a decorated function": (
        "f = torch.compiler.disable(lambda: 3); assert f() == 3; assert not lazydynamo.is_loaded()\n"
        "torch._dynamo.reset(); assert f() == 3"
    ),
    "an attribute": "torch._dynamo.reset()",
}


# Each use in a fork of a process that has trained: to import torch takes as long as to import the compiler.
FORKS = """
import json, os, traceback
failed = {}
for use, code in USES.items():
    ours, theirs = os.pipe()
    if os.fork() == 0:
        try:
            exec(code)
            os._exit(0)
        except BaseException:
            os.write(theirs, traceback.format_exc()[-4000:].encode())
            os._exit(1)
    os.close(theirs)
    said = open(ours).read()
    failed[use] = said if os.waitstatus_to_exitcode(os.wait()[1]) else ""
print(json.dumps(failed))
"""
REAL = "assert lazydynamo.is_loaded() and torch._dynamo is sys.modules['torch._dynamo']\noptimizer.step(loss)"


@pytest.fixture(scope="module")
def used() -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """How a process that trains has ended, and what went wrong in each use after it."""
    uses = {use: f"{code}\n{REAL}" for use, code in USES.items()}
    code = f"{TRAIN}\nUSES = {uses!r}\n{FORKS}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # what has threads must not be forked
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    return done, json.loads(done.stdout) if done.returncode == 0 else {}


def test_training_does_not_import_the_compiler(used: tuple[subprocess.CompletedProcess[str], Any]) -> None:
    done, _ = used
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("use", USES)
def test_any_other_use_brings_the_real_one(use: str, used: tuple[Any, dict[str, str]]) -> None:
    _, failed = used
    assert failed[use] == ""
