"""Other tools that make networks narrower without training, driven as their documentation says.

Each entry of RIVALS takes a network and calibration images and returns a function from a share of
the multiply-accumulates to a network that has at most that share: a module, or an ONNX file.
Torch-Pruning and onnxsim know no such target; the channels that they are asked to remove are
searched for until it is met.

Neither is among Secateur's dependencies. Put them where Python finds them:

    pip install --no-deps --target RIVALS torch-pruning==1.6.1 onnxsim==0.8.1
    PYTHONPATH=RIVALS python benchmarks/channel_rivals.py
"""

from __future__ import annotations

import copy
import functools
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from low_rank import choose_ranks, factored, spectra
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import secateur
from secateur.export.files import save_onnx

Network = nn.Module | Path
AtShare = Callable[[float], Network]
TOLERANCE = 0.004  # a search ends when the share is less than this below the target
STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A tool with its settings.

    Attributes:
        prepare: from a network and images to networks of any share.
        recoveries: what is done afterwards, in rows of their own.
    """

    prepare: Callable[[nn.Module, Tensor], AtShare]
    recoveries: tuple[str, ...]


def counted(model: Network, images: Tensor) -> int:
    """Multiply-accumulates for an image, by Secateur's own count of the traced network."""
    return sum(layer.macs for layer in secateur.inspect(model, tuple(images.shape[1:])).layers)


def counted_fast(model: nn.Module, images: Tensor) -> float:
    """The same of a module of convolutions and linear layers, without tracing it."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images[:1])
    return counter.get_total_flops() / 2


def searched(
    prune: Callable[[float], Network], cost: Callable[[Any], float], dense: float
) -> AtShare:
    """Finds how much to ask a tool for, so that a share of the cost is met."""

    def at(share: float) -> Network:
        low, high, best = 0.0, 1.0, None
        for _ in range(STEPS):
            amount = (low + high) / 2
            network = prune(amount)
            spent = cost(network) / dense
            if spent > share:
                low = amount
                continue
            best, high = network, amount
            if spent > share - TOLERANCE:
                break
        if best is None:
            raise RuntimeError(f"the tool leaves more than {share:.0%} of the MACs at any amount")
        return best

    return at


def low_rank(model: nn.Module, images: Tensor) -> AtShare:
    """Activation-aware low rank: see `low_rank`."""
    found = spectra(model, images)
    dense = counted_fast(model, images)
    fixed = dense - sum(of.dense for of in found.values())

    def at(share: float) -> nn.Module:
        return factored(model, found, choose_ranks(found, fixed, share * dense))

    return at


def torch_pruning(
    model: nn.Module,
    images: Tensor,
    *,
    importance: str = "magnitude",
    residual: bool = False,
    **settings: bool,
) -> AtShare:
    """Torch-Pruning with global ranking and without training.

    Args:
        model: the network.
        images: calibration images.
        importance: a key of IMPORTANCES.
        residual: whether channels that several blocks share may go too, not only inner ones.
        settings: of its pruner, beyond `global_pruning=True`.
    """
    import torch_pruning as tp  # pyright: ignore

    criterion = IMPORTANCES[importance](tp)

    source = _copied(model)
    if importance == "taylor":
        _gradients(source, images)
    if importance == "activation":
        with criterion.compute_importance(source), torch.no_grad():
            source(images[:200])

    def prune(amount: float) -> nn.Module:
        smaller = _copied(source)
        pruner = tp.pruner.BasePruner(
            smaller,
            images[:1],
            importance=criterion,
            pruning_ratio=amount,
            max_pruning_ratio=0.95,
            ignored_layers=_ignored(smaller, residual),
            **{"global_pruning": True, **settings},
        )
        pruner.step()
        smaller.zero_grad()
        return smaller

    return searched(
        prune, functools.partial(counted_fast, images=images), counted_fast(model, images)
    )


IMPORTANCES: dict[str, Callable[[Any], Any]] = {
    "magnitude": lambda tp: tp.importance.GroupMagnitudeImportance(p=2),
    "batchnorm-scale": lambda tp: tp.importance.BNScaleImportance(),
    "lamp": lambda tp: tp.importance.LAMPImportance(p=2),
    "fpgm": lambda tp: tp.importance.FPGMImportance(p=2),
    "activation": lambda tp: tp.importance.ActivationImportance(),
    "taylor": lambda tp: tp.importance.GroupTaylorImportance(),
}


def _gradients(model: nn.Module, images: Tensor) -> None:
    """Gradients of the cross entropy to the network's own answers: no labels are needed."""
    for part in images.split(50):
        scores = model(part)
        F.cross_entropy(scores, scores.argmax(1)).backward()


def _copied(model: nn.Module) -> nn.Module:
    """A copy with the gradients and what importances left on the layers."""
    other = copy.deepcopy(model)
    for one, of in zip(other.parameters(), model.parameters(), strict=True):
        one.requires_grad_(True)
        one.grad = None if of.grad is None else of.grad.clone()
    return other


def _ignored(model: nn.Module, residual: bool) -> list[nn.Module]:
    """The classifier, and the layers whose channels other blocks share."""
    layers = [of for of in model.modules() if isinstance(of, nn.Conv2d | nn.Linear)]
    if residual:
        return [layers[-1]]
    names = {of: name for name, of in model.named_modules()}
    return [of for of in layers if not _INNER.search(names[of])]


_INNER = re.compile(r"[.]conv1$|_expand_conv$|_depthwise_conv$|^_conv_stem$|^_conv_head$")


def onnxsim(model: nn.Module, images: Tensor, *, calibrated: bool = False) -> AtShare:
    """onnxsim's structured pruning of the ONNX export, its BatchNorms folded by itself."""
    import onnxsim  # pyright: ignore

    folder = Path(tempfile.mkdtemp(prefix="onnxsim-"))
    save_onnx(model, folder / "dense.onnx", images[:4], [])
    dense, _ = onnxsim.simplify(str(folder / "dense.onnx"))
    onnx.save(dense, folder / "dense.onnx")
    more = {"calibration_data": batches(dense, images)} if calibrated else {}
    name = "apply_structured_wanda_pruning_cpp" if calibrated else "apply_structured_pruning_cpp"

    def prune(amount: float) -> Path:
        path = folder / f"{amount:.6f}.onnx"
        onnx.save(getattr(onnxsim, name)(dense, sparsity=amount, **more), path)
        return path

    cost = functools.partial(counted, images=images)
    return searched(prune, cost, cost(folder / "dense.onnx"))


def onnxsim_refitted(network: Path, images: Tensor) -> Path:
    """The recovery that onnxsim advises for pruning: layers refitted in closed form."""
    import onnxsim  # pyright: ignore

    dense, data = _dense(network, images)
    path = network.with_suffix(".refitted.onnx")
    onnx.save(onnxsim.apply_pruning_finetune(dense, str(network), calibration_data=data), path)
    return path


def onnxsim_batchnorm(network: Path, images: Tensor) -> Path:
    """The same, then BatchNorms that give channels the dense network's mean and spread.

    In the order of the network, so that each is fitted to what the ones before it leave; behind
    convolutions that kept all their channels, because others have nothing to be compared with.
    """
    from onnxsim.bn_recovery import calibrate_recovered_bn, insert_identity_bn  # pyright: ignore

    dense, data = _dense(network, images[:200])
    model = onnx.load(onnxsim_refitted(network, images))
    widths = _widths(dense)
    same = [name for name, width in _widths(model).items() if widths.get(name) == width]
    model, added = insert_identity_bn(model, conv_output_names=same)
    for one in added:
        model = calibrate_recovered_bn(
            model, calibration_data=data, target_model=dense, node_names=[one.node_name]
        )
    path = network.with_suffix(".batchnorm.onnx")
    onnx.save(model, path)
    return path


def _widths(model: onnx.ModelProto) -> dict[str, int]:
    """How many channels the convolutions give, by the name of the value."""
    shapes = {of.name: of.dims for of in model.graph.initializer}
    convolutions = (of for of in model.graph.node if of.op_type == "Conv")
    return {of.output[0]: shapes[of.input[1]][0] for of in convolutions}


def _dense(network: Path, images: Tensor) -> tuple[onnx.ModelProto, list[dict[str, Any]]]:
    dense = onnx.load(network.parent / "dense.onnx")
    return dense, batches(dense, images)


def batches(model: onnx.ModelProto, images: Tensor) -> list[dict[str, Any]]:
    """Calibration images as onnxsim takes them."""
    name = model.graph.input[0].name
    return [{name: part.contiguous().numpy()} for part in images.split(50)]


def batchnorm_anew(network: nn.Module, images: Tensor) -> nn.Module:
    """BatchNorm statistics taken anew on the images, averaged over batches."""
    network = copy.deepcopy(network)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # a plain average
            layer.train()
    with torch.no_grad():
        for part in images.to(memory_format=torch.channels_last).split(100):
            network(part)
    return network.eval()


RECOVERIES: dict[str, Callable[[Any, Tensor], Network]] = {
    "none": lambda network, images: network,
    "batchnorm": batchnorm_anew,
    "onnxsim": onnxsim_refitted,
    "onnxsim-batchnorm": onnxsim_batchnorm,
}
_WITH_BATCHNORM = ("none", "batchnorm")
_ONNXSIM = ("none", "onnxsim", "onnxsim-batchnorm")


def _torch_pruning(**settings: Any) -> Rival:
    return Rival(prepare=functools.partial(torch_pruning, **settings), recoveries=_WITH_BATCHNORM)


RIVALS = {
    "low-rank": Rival(prepare=low_rank, recoveries=_WITH_BATCHNORM),
    "torch-pruning magnitude": _torch_pruning(),
    "torch-pruning magnitude, residual": _torch_pruning(residual=True),
    "torch-pruning magnitude, isomorphic": _torch_pruning(isomorphic=True),
    "torch-pruning magnitude, uniform": _torch_pruning(global_pruning=False),
    **{
        f"torch-pruning {name}": _torch_pruning(importance=name)
        for name in IMPORTANCES
        if name != "magnitude"
    },
    "onnxsim l2": Rival(prepare=onnxsim, recoveries=_ONNXSIM),
    "onnxsim wanda": Rival(
        prepare=functools.partial(onnxsim, calibrated=True), recoveries=_ONNXSIM
    ),
}
