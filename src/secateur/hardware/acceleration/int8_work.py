"""`accelerate` for x86 processors: INT8 layers on PyTorch's FBGEMM kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from secateur.errors import ModelError
from secateur.evaluation.inference import in_batches
from secateur.frontends import open as open_model
from secateur.hardware.acceleration import calibration
from secateur.hardware.acceleration.calibration import Observed, Observer, readers
from secateur.hardware.acceleration.candidates import Candidate, Found
from secateur.hardware.acceleration.choice import fastest, seconds
from secateur.hardware.acceleration.kernels import BLOCK, quantized_weight, zero_blocks
from secateur.hardware.acceleration.layers import Int8Layer, Int8Linear, Integers, SharedInput
from secateur.hardware.acceleration.replacing import replaced
from secateur.hardware.acceleration.report import LayerAcceleration
from secateur.hardware.acceleration.work import Work


class Int8Work(Work):
    """Each layer by its fastest kernel, in INT8 or in floats."""

    nothing = "no layer can run an INT8 kernel ({why}), expected linear layers or 1x1 convolutions"

    def replace_layers(self, found: Found) -> Found:
        """See `Work`; layers that read the same value share its codes."""
        seen = self._observed(found.candidates)
        unseen = [of.name for of in found.candidates if not seen[of.name].inputs]
        found = found.without(dict.fromkeys(unseen, "no real position reaches it"))
        self.check_any(found)
        for group in readers(seen, found.candidates):
            self._replace(group, seen)
        return found

    def warnings(self) -> list[str]:
        """See `Work`."""
        chosen = [of for of in self.layers.values() if not of.reason]
        if "sparse" not in self.allowed or any(of.kernel == "sparse" for of in chosen):
            return []
        share = sum((of.zero_blocks or 0) * math.prod(of.shape) for of in chosen)
        share /= sum(math.prod(of.shape) for of in chosen)
        return [
            f"no layer runs the sparse kernel: {share:.0%} of the blocks of 1x{BLOCK} weights are "
            "zero, and from 60 % on it is usually faster; prune with pattern='1x4'"
        ]

    def _observed(self, candidates: Sequence[Candidate]) -> Mapping[str, Observed]:
        parts = in_batches(self.samples)
        observer = Observer(candidates, len(parts))
        with open_model(self.model).running(parts[0]) as run, torch.no_grad():
            run(parts[0])
            with observer.watching():
                for part in parts:
                    observer.begin(part)
                    run(part)
        return observer.seen

    def _replace(self, group: Sequence[Candidate], seen: Mapping[str, Observed]) -> None:
        """Layers that read the same value, each by its fastest form."""
        shared = calibration.best_input(group, seen)
        for of in group:
            mine = seen[of.name]
            layer, self.layers[of.name] = self._chosen(of, mine, shared)
            if layer is not None:
                replaced(self.model, of.module, layer)

    def _chosen(
        self, of: Candidate, seen: Observed, shared: SharedInput
    ) -> tuple[Int8Layer | None, LayerAcceleration]:
        integers = integers_of(of, shared, seen)
        exact = linear(seen.rows, of.matrix.float(), of.bias)
        forms = {
            name: Int8Linear(integers, name, SharedInput(shared.codes, shared.factor))
            for name in self.allowed
            if name != "float"
        }
        error = {name: check_layer(of.name, form, seen.rows, exact) for name, form in forms.items()}
        rows = max(1, round(seen.rows_per_sample * self.batch))
        matrix, bias = of.matrix.float().contiguous(), of.bias
        runs = {"float": lambda x: linear(x, matrix, bias), **forms}
        times = seconds(runs, seen.rows, rows)
        kernel = fastest(times, self.allowed)
        layer = None if kernel == "float" else of.made(integers, kernel, shared)
        return layer, LayerAcceleration(
            name=of.name,
            kind=of.kind,
            kernel=kernel,
            shape=tuple(matrix.shape),
            zeros=float((matrix == 0).double().mean()),
            zero_blocks=zero_blocks(matrix),
            rows=rows,
            milliseconds={name: 1e3 * value for name, value in times.items()},
            error=error.get(kernel),
        )


_WRONG = 1.5  # codes: outputs halfway between two may be rounded either way


def integers_of(of: Candidate, shared: SharedInput, seen: Observed) -> Integers:
    """A layer's matrix and bias in integers, for inputs as codes."""
    output, factor = calibration.best_output(of, seen)
    matrix, bias = of.matrix.float(), of.bias
    matrix = matrix if shared.factor is None else matrix / shared.factor
    if factor is not None:
        matrix = matrix / factor[:, None]
        bias = None if bias is None else bias / factor
    weight, scale = quantized_weight(matrix)
    return Integers(weight=weight, scale=scale, bias=bias, output=output, factor=factor)


def check_layer(name: str, layer: Int8Layer, rows: Tensor, exact: Tensor) -> float:
    """The error of a layer in integers, relative to the mean square of its outputs in floats.

    Raises:
        ModelError: the kernel does not give what its integers say.
    """
    with torch.inference_mode():
        found = layer(rows)
        factor, shared = layer.output_factor, layer.shared
        given = rows if shared.factor is None else rows * shared.factor
        taken = shared.codes.quantized(given).dequantize()
        said = layer.output.rounded(linear(taken, layer.matrix, layer.bias))
        codes = found if factor is None else found / factor
        codes = (codes - said).abs().max() / layer.output.scale
    if not float(codes) <= _WRONG:
        raise ModelError(
            f"PyTorch's {layer.kernel} INT8 kernel is {float(codes):.0f} codes off in the layer "
            f"{name}, expected rounding only: leave it out with exclude, and please report your "
            "processor"
        )
    return calibration.relative(exact, found)
