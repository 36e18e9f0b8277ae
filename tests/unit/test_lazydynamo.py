"""torch's compiler stays out of tasks that compile nothing, and is whole in those that do."""

from __future__ import annotations

import subprocess
import sys

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


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_training_does_not_import_the_compiler() -> None:
    done = python(TRAIN)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("use", USES)
def test_any_other_use_brings_the_real_one(use: str) -> None:
    after = "assert lazydynamo.is_loaded() and torch._dynamo is sys.modules['torch._dynamo']"
    done = python(f"{TRAIN}\n{USES[use]}\n{after}\noptimizer.step(loss)")
    assert done.returncode == 0, done.stderr
