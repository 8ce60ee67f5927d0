"""On a GPU: the results of the CPU, to rounding. CI has no GPU and runs none of this."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor

import secateur
from secateur import frontends
from secateur.core.normal_equations import NormalEquations
from secateur.core.patterns import Channels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
IMAGES = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for width in (3, 16, 16, 16):
        layers += [nn.Conv2d(width, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 144, 10)).eval()


CASES: dict[str, dict[str, Any]] = {
    "50 %": {"sparsity": 0.5},
    "80 %, blocks trained": {"sparsity": 0.8},
    "2:4": {"pattern": "2:4"},
    "channels": {"max_macs": 0.6, "recipe": secateur.Recipe(pattern=Channels())},
    "the paper's": {"sparsity": 0.5, "recipe": "paper"},
    "under a cap": {"sparsity": 0.5, "memory": "20 MB"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_gpu_gives_what_the_cpu_gives(case: str) -> None:
    here = secateur.prune(network(), IMAGES, **CASES[case])
    there = secateur.prune(network(), IMAGES, device="cuda", **CASES[case])
    assert there.report.sparsity == pytest.approx(here.report.sparsity, abs=1e-3)
    assert any("not in TF32" in note for note in there.report.notes)
    with torch.no_grad():
        wanted, got, dense = here.model(IMAGES), there.model.cpu()(IMAGES), network()(IMAGES)
    lost = (wanted - dense).square().mean()
    found = (got - dense).square().mean()
    if case == "80 %, blocks trained":  # steps of training part from rounding; better is fine
        assert found < 1.3 * lost
    else:
        assert found == pytest.approx(lost, rel=0.05)


def test_a_module_on_a_gpu_stays_there() -> None:
    result = secateur.prune(network().cuda(), IMAGES, sparsity=0.5)
    assert {of.device.type for of in frontends.open(result.model).tensors().values()} == {"cuda"}
    found = secateur.evaluate(result.model, IMAGES, reference=network().cuda())
    assert found.agreement is not None


def test_conjugate_gradients_wait_for_the_gpu_once_in_eight_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, 256, 64, generator=generator)
    gram = base.mT @ base / 256
    weight = torch.randn(1, 48, 64, generator=generator)
    mask = torch.rand(1, 48, 64, generator=generator) < 0.5
    found, waits = {}, 0
    for device in ("cpu", "cuda"):
        scale = torch.ones_like(gram[:, :1])
        system = NormalEquations(*(of.to(device) for of in (gram, weight, scale)))
        run = partial(
            system.fit,
            torch.zeros_like(weight).to(device),
            mask.to(device),
            tolerance=1e-5,
            iterations=60,
        )
        waits = _waits(run)
        found[device], notes = run()
        assert not notes
    torch.testing.assert_close(found["cuda"].cpu(), found["cpu"], rtol=1e-3, atol=1e-4)
    assert 0 < waits <= 12


def _waits(run: Any) -> int:
    """How often a function waits for the GPU."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(of.message) for of in seen)


class Encoder(nn.Module):
    """Two wide layers and a narrow one, which no 2:4 kernel takes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(128, 256), nn.Linear(256, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.down(self.up(x).relu()))


@pytest.fixture(scope="module")
def pruned() -> secateur.PruneResult:
    torch.manual_seed(0)
    return secateur.prune(Encoder().eval(), ROWS, pattern="2:4", include=["up", "down"])


ROWS = torch.randn(256, 16, 128, generator=torch.Generator().manual_seed(2))
CUDA: dict[str, Any] = {"runtime": "torch-cuda-2:4", "batch": 4}


@pytest.mark.parametrize("graph", [False, True])
def test_layers_in_2_4_give_what_dense_ones_give(pruned: Any, graph: bool) -> None:
    fast = secateur.accelerate(pruned.model, ROWS, kernels="sparse", cuda_graph=graph, **CUDA)
    kernels = {of.name: of.kernel for of in fast.report.layers if not of.reason}
    assert kernels == {"up": "sparse", "down": "sparse"}
    assert next(of.reason for of in fast.report.layers if of.name == "head").startswith("10x128")
    assert isinstance(fast.model.up.weight, SparseSemiStructuredTensor)
    assert fast.report.relative_error < 1e-4
    assert fast.report.layers[0].rows == 4 * 16
    assert {"float", "half", "accelerated"} == fast.report.milliseconds.keys()
    assert "2 in 2:4" in fast.report.result
    assert "1 left alone" in fast.report.result
    assert any(torch.cuda.get_device_name() in note for note in fast.report.notes)
    with torch.inference_mode():
        found = fast.model(ROWS[:8].half().cuda()).float().cpu()
        torch.testing.assert_close(found, pruned.model(ROWS[:8]), rtol=2e-2, atol=2e-2)


def test_the_faster_kernel_is_taken_and_told(pruned: Any) -> None:
    with pytest.warns(secateur.SecateurWarning, match="no layer runs the 2:4 kernel"):
        fast = secateur.accelerate(pruned.model, ROWS, **CUDA)  # launching one takes longer
    assert fast.report.count("dense") == 2
    assert not isinstance(fast.model.up.weight, SparseSemiStructuredTensor)


def test_dense_weights_are_refused() -> None:
    with pytest.raises(secateur.errors.ModelError, match="zeros anywhere: only the 2:4 pattern"):
        secateur.accelerate(Encoder().eval(), ROWS, **CUDA)


def test_a_saved_module_is_the_same_when_loaded(pruned: Any, tmp_path: Any) -> None:
    fast = secateur.accelerate(pruned.model, ROWS, kernels="sparse", **CUDA)
    fast.save(tmp_path / "fast.safetensors")
    again = secateur.load_accelerated(Encoder(), tmp_path / "fast.safetensors")
    assert isinstance(again.down.weight, SparseSemiStructuredTensor)
    with torch.inference_mode():
        few = ROWS[:8].half().cuda()
        torch.testing.assert_close(again(few), fast.model(few), rtol=0, atol=0)
    wrong = nn.Sequential(nn.Linear(128, 256))
    with pytest.raises(secateur.errors.ModelError, match="does not fit the network"):
        secateur.load_accelerated(wrong, tmp_path / "fast.safetensors")


def test_pruning_for_the_runtime_gives_the_module() -> None:
    torch.manual_seed(0)
    with pytest.warns(secateur.SecateurWarning):
        result = secateur.prune(Encoder().eval(), ROWS, runtime="torch-cuda-2:4")
    assert result.acceleration is not None
    assert any(note.startswith("accelerated: ") for note in result.report.notes)
