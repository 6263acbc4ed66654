"""Holdfast depends on none of the libraries: it imports them only where they are used, and says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from trainer.fake_sidecar import python_env

pytestmark = pytest.mark.torch
LIBRARIES = ("transformers", "accelerate", "lightning", "torchdata")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=python_env(), capture_output=True, text=True, timeout=60, check=False
    )


def test_holdfast_imports_none_of_them() -> None:
    done = run(f"import holdfast.integrations, holdfast.checkpointer, sys; print(set({LIBRARIES!r}) & sys.modules.keys())")
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformers", "accelerate", "lightning"])
def test_a_library_that_is_missing_is_named(name: str) -> None:
    done = run(f"import sys; sys.modules['{name}'] = None; import holdfast.integrations.{name}")
    assert done.returncode == 1
    assert f"holdfast.integrations needs '{name}' for this: pip install {name}" in done.stderr


def test_optimizers_are_unwrapped() -> None:
    import torch
    from holdfast.integrations._library import bare_optimizer

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    class Own(torch.optim.SGD):
        pass

    inner = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    assert bare_optimizer(Wrapper(Wrapper(inner))) is inner
    own = Own([torch.nn.Parameter(torch.zeros(1))], lr=1)
    assert bare_optimizer(own) is own
    with pytest.raises(TypeError, match="not a torch optimizer"):
        bare_optimizer(object())


def test_examples_run_without_a_network() -> None:
    for script in (Path(__file__).parents[2] / "examples").glob("*/train.py"):
        assert "from_pretrained" not in script.read_text(), script
