"""A pruned module is in eval mode; the one that was given keeps the mode of each of its parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur

FAST = {"method": "magnitude", "progress": False}
IMAGES = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Its body is frozen, as in fine-tuning; with `numbers` forward holds sizes."""

    def __init__(self, *, numbers: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.numbers = numbers
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).relu()
        x = x.reshape(-1, 8, 16).flatten(1) if self.numbers else x.flatten(1)
        return self.head(self.drop(x))


def modes(module: nn.Module) -> dict[str, bool]:
    return {name: part.training for name, part in module.named_modules()}


def in_eval(module: nn.Module) -> bool:
    return not any(modes(module).values())


@pytest.mark.parametrize(
    ("pattern", "numbers"), [("unstructured", False), ("channels", False), ("channels", True)]
)
def test_the_copy_is_in_eval_mode(pattern: str, numbers: bool) -> None:
    net = Net(numbers=numbers).train()
    net.body.eval()
    before = modes(net)
    target = {"max_macs": 0.7} if pattern == "channels" else {"sparsity": 0.5}
    result = secateur.prune(
        net, IMAGES, pattern=pattern, evaluation=IMAGES.flip(-1), **target, **FAST
    )
    assert in_eval(result.model)
    assert modes(net) == before
    assert isinstance(result.model, torch.fx.GraphModule) == numbers


def test_files_become_modules_in_eval_mode(tmp_path: Path) -> None:
    net = Net(numbers=False).eval()
    batch = {0: torch.export.Dim("batch", min=2)}
    program = torch.export.export(net, (IMAGES[:2],), dynamic_shapes=(batch,))
    torch.export.save(program, tmp_path / "net.pt2")
    result = secateur.prune(tmp_path / "net.pt2", IMAGES, sparsity=0.5, **FAST)
    assert in_eval(result.model)
    result.save(tmp_path / "out")
    assert in_eval(secateur.load(net.train(), tmp_path / "out" / "model.safetensors"))
    assert net.training


def test_a_step_of_a_recipe_is_in_eval_mode() -> None:
    net = Net(numbers=False).train()
    result = secateur.prune(
        net, IMAGES, sparsity=0.5, allocation="uniform", method="bias-correction"
    )
    assert result.steps
    assert all(in_eval(result.after(step)) for step in result.steps)
