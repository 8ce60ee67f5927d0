"""Small transformers from their configurations, each pruned, saved, loaded again and run.

    pip install --target FOLDER transformers timm
    PYTHONPATH=FOLDER python benchmarks/transformer_calls.py [--only "NAME;NAME"]

Weights are random (`transformer_networks.py`). Each is inspected, pruned to 50 % zeros, and brought
to 70 % of its multiply-accumulates by channels, in one walk without block reconstruction: what is
measured is whether the parts fit together, not what is lost. A network of fewer channels is
compared with the one that ignores them by `Frontend.shrunk`, which raises where they differ.
Rewrites the rows of benchmarks/results/transformer_calls.csv that it measures.
"""

import argparse
import collections
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from options import add_files
from results_table import MACHINE, append_row, machine, read_rows, write_rows
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves
from transformer_networks import NAMES, inputs_of, transformer

import secateur
from secateur import frontends
from secateur.errors import SecateurError, SecateurWarning

SPARSITY, MACS = 0.5, 0.7
ZEROS = secateur.Recipe(allocation=secateur.Uniform(), reconstruction=None, schedule=(0.0,))
CHANNELS = secateur.Recipe(pattern=secateur.Channels(multiple=1), reconstruction=None)
COLUMNS = (
    "network",
    "weights",  # of its linear and convolution layers
    "prunable",  # share of them
    "reasons",  # why the others are not
    "zeros",  # share of the pruned layers' weights, counted in the module
    "zeros_result",
    "macs_left",
    "kind",
    "channels_result",
    "cpu_seconds",
    *MACHINE,
)


def measure(name: str) -> dict[str, Any]:
    """What came of one network."""
    start = time.process_time()
    model, samples = transformer(name), inputs_of(name)
    weights = sum(layer_weights(model).values())
    row: dict[str, Any] = {"weights": weights}
    try:
        layers = frontends.open(model).trace(samples[:2]).layers
        free = sum(layer.weights for layer in layers if layer.obstacle is None)
        stuck = [layer for layer in layers if layer.obstacle and layer.weights]
        row |= {"prunable": f"{free / weights:.3f}", "reasons": reasons(stuck)}
    except SecateurError as error:
        row |= {"prunable": "0.000", "reasons": said(error)}
    for part in (zeros, channels):
        try:
            row |= part(model, dict(samples.tensors))
        except SecateurError as error:
            row[f"{part.__name__}_result"] = said(error)
    return row | {"cpu_seconds": f"{time.process_time() - start:.0f}"}


def layer_weights(model: nn.Module) -> dict[int, int]:
    """Weights of linear and convolution layers and fused in-projections, by their memory."""
    return {of.data_ptr(): of.numel() for part in model.modules() for of in _weights(part)}


def _weights(part: nn.Module) -> Iterator[Tensor]:
    if isinstance(part, nn.Linear | _ConvNd) or type(part).__name__ == "Conv1D":
        yield part.weight
    elif isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None:
        yield part.in_proj_weight


def reasons(layers: list[Any]) -> str:
    """Why layers stay dense, and how many for each reason."""
    counts = collections.Counter(str(layer.obstacle) for layer in layers)
    return "; ".join(f"{count}x {why}" for why, count in counts.most_common())


def said(error: Exception) -> str:
    """What went wrong, on one line."""
    return " ".join(str(error).split())[:300]


def zeros(model: nn.Module, data: Mapping[str, Tensor]) -> dict[str, Any]:
    """Half of the weights; they have to be zero in the module where the report says so."""
    result = secateur.prune(model, data, sparsity=SPARSITY, recipe=ZEROS, progress=False)
    held = dict(result.model.named_parameters(remove_duplicate=False))
    found = total = 0
    for layer in result.report.layers:
        weight = held.get(f"{layer.name}.weight", held.get(layer.name))
        assert weight is not None
        count = int((weight == 0).sum())
        if count != layer.zeros:
            return {"zeros_result": f"{layer.name} has {count} zeros, the report {layer.zeros}"}
        found, total = found + count, total + weight.numel()
    return {"zeros": f"{found / total:.3f}", "zeros_result": reloaded(model, result, data)}


def channels(model: nn.Module, data: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fewer channels, or as many as can leave."""
    result = secateur.prune(model, data, max_macs=MACS, recipe=CHANNELS, progress=False)
    return {
        "macs_left": f"{result.report.macs_fraction:.3f}",
        "kind": "traced program" if isinstance(result.model, torch.fx.GraphModule) else "",
        "channels_result": reloaded(model, result, data),
    }


def reloaded(model: nn.Module, result: Any, data: Mapping[str, Tensor]) -> str:
    """Whether the saved network gives what the pruned one gives, bit by bit."""
    few = {name: tensor[:2] for name, tensor in data.items()}
    with tempfile.TemporaryDirectory() as folder:
        result.save(folder)
        program = Path(folder) / "model.pt2"
        if program.exists():
            again = frontends.open(program).model
        else:
            again = secateur.load(model, Path(folder) / "model.safetensors")
    wanted, found = outputs(result.model, few), outputs(again, few)
    if not all(bool(of.isfinite().all()) for of in wanted):
        return "outputs that are not finite"
    same = len(wanted) == len(found) and all(map(torch.equal, found, wanted))
    return "same" if same else "other outputs once loaded"


def outputs(model: nn.Module, data: Mapping[str, Tensor]) -> list[Tensor]:
    """Tensors of floats that a network returns."""
    with torch.no_grad():
        returned = tree_leaves(model(**data))
    return [of for of in returned if isinstance(of, Tensor) and of.is_floating_point()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Transformers pruned, saved and loaded again.")
    add_files(parser, "transformer_calls.csv")
    parser.add_argument("--only", help="networks, separated by semicolons")
    options = parser.parse_args()
    warnings.simplefilter("ignore", SecateurWarning)  # few samples, on purpose
    names = options.only.split(";") if options.only else NAMES
    held = [row for row in read_rows(options.out) if row["network"] not in names]
    write_rows(options.out, COLUMNS, held)
    for name in names:
        row = {"network": name, **measure(name), **machine()}
        append_row(options.out, COLUMNS, row)
        print(*(of for key, of in row.items() if key not in MACHINE), sep=" | ", flush=True)


if __name__ == "__main__":
    main()
