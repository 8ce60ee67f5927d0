"""A pruned module is in eval mode; the one that was given keeps the mode of each of its parts."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.network.samples import Samples

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


class Cache:
    """Keys and values, as Hugging Face's decoders return them: no tensor."""


class Decoder(nn.Module):
    """Returns a cache too, unless its configuration or that of its only part says not to."""

    def __init__(self, *, outer: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.config = types.SimpleNamespace(use_cache=True)
        if not outer:
            self.first.config, self.config = self.config, None

    def forward(self, x: Tensor) -> dict[str, object]:
        logits = self.last(self.first(x).relu())
        cached = (self.config or self.first.config).use_cache
        return {"logits": logits, **({"past_key_values": Cache()} if cached else {})}


@pytest.mark.parametrize("outer", [True, False])
def test_a_cache_is_off_only_while_a_network_is_traced_or_run(outer: bool) -> None:
    net, x = Decoder(outer=outer), IMAGES.flatten(1)[:, :8]
    result = secateur.prune(
        net, x, sparsity=0.5, evaluation=x.flip(-1), allocation="uniform", **FAST
    )
    assert len(result.report.layers) == 2 - 1  # the first one stays
    for module in (net, result.model):
        assert "past_key_values" in module(x)
        assert (module.config or module.first.config).use_cache
    file = secateur.frontends.open(result.model).to_onnx(x)
    assert [of.name for of in file.graph.output] == ["output"]


class Padded(nn.Module):
    """PyTorch's encoder, which packs sentences without their padding where it may."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layers(x, src_key_padding_mask=mask == 0)


def test_no_layer_hides_in_a_fast_path() -> None:
    samples = {"x": torch.randn(8, 5, 16), "mask": torch.ones(8, 5)}
    samples["mask"][::2, 3:] = 0
    net, held = Padded().eval(), Samples(samples)
    graph = secateur.frontends.open(net).trace(held)
    assert sum(of.weights for of in graph.layers) == 2 * (4 * 16 * 16 + 2 * 16 * 32)
    assert not any(of.obstacle for of in graph.layers if of.weights)
    values = dict(graph.parameters) | dict(held.named(graph.inputs).tensors)
    for index, op in enumerate(graph.ops):
        values[op.name] = graph.run(index, values)
    with secateur.frontends.open(net).running(held) as run, torch.no_grad():
        assert torch.allclose(run(held), values[graph.outputs[0]], atol=1e-5)
    assert net.layers.use_nested_tensor
