"""What acceleration did to each layer, and what it brought: data that give tables."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.evaluation.results import Evaluation
from secateur.support.serialization import Saved
from secateur.support.tables import Block, Column, Document, Table, shape_text, warnings_first
from secateur.support.wording import counted


@dataclass(frozen=True, kw_only=True)
class LayerAcceleration:
    """A layer of an accelerated module.

    Attributes:
        name: in the module.
        kind: "linear", "1x1 convolution" or "Conv1D"; empty of a layer that is left alone.
        kernel: "sparse", "dense" or "float" (on GPUs "dense").
        shape: of its matrix, (outputs, inputs).
        zeros: share of weights that are zero.
        zero_blocks: share of blocks of 1 x 4 that are zero throughout.
        rows: that it was measured with.
        milliseconds: of each kernel that was measured.
        error: mean squared error of its outputs by that kernel, relative to their mean square.
        reason: why it was left alone; empty where it was not.
    """

    name: str
    kind: str = ""
    kernel: str = "float"
    shape: tuple[int, ...] = ()
    zeros: float | None = None
    zero_blocks: float | None = None
    rows: int | None = None
    milliseconds: dict[str, float] | None = None
    error: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class AccelerationReport(Saved, Document):
    """What `accelerate` did.

    Attributes:
        runtime: that the module was made for.
        layers: all linear layers and convolutions.
        batch: samples of a run, by which the layers' rows were chosen.
        threads: of PyTorch while kernels were measured.
        milliseconds: of a run of the module as "float" (float32), "accelerated" and, on a GPU,
            "half" (dense in float16), medians of `rounds` in turns.
        rounds: how many.
        relative_error: of the output that the module is judged by, relative to its variance.
        compared: the accelerated module against the one in floats.
        cpu: name of the processor.
        versions: of PyTorch and secateur.
        warnings: what may be wrong.
        notes: what else there is to know.
    """

    schema = "secateur.acceleration"
    schema_version = 1

    runtime: str
    layers: tuple[LayerAcceleration, ...]
    batch: int
    threads: int
    milliseconds: dict[str, float]
    rounds: int
    relative_error: float
    compared: Evaluation
    cpu: str
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def count(self, kernel: str) -> int:
        """How many layers have a kernel, without those that are left alone."""
        return sum(of.kernel == kernel and not of.reason for of in self.layers)

    @property
    def result(self) -> str:
        """In one sentence."""
        before, after = self.milliseconds["float"], self.milliseconds["accelerated"]
        if "half" in self.milliseconds:
            return f"{self._on_gpu}; {self.kernels}"
        if not self.count("sparse") + self.count("dense"):
            return f"no layer was replaced, so that the module computes as before; {self.kernels}"
        return (
            f"{before / after:.2f} times as fast as in floats ({after:.3g} instead of "
            f"{before:.3g} ms for {counted(self.batch, 'sample')} on "
            f"{counted(self.threads, 'thread')}, medians of {counted(self.rounds, 'round')} in "
            "turns); "
            f"{self.kernels}"
        )

    @property
    def _on_gpu(self) -> str:
        before, half, after = (self.milliseconds[of] for of in ("float", "half", "accelerated"))
        return (
            f"{half / after:.2f} times as fast as dense in float16 ({after:.3g} instead of "
            f"{half:.3g} ms for {counted(self.batch, 'sample')}), {before / after:.2f} times as "
            f"fast as in float32 ({before:.3g} ms), medians of {counted(self.rounds, 'round')} in "
            "turns"
        )

    @property
    def kernels(self) -> str:
        """How many layers run which kernel."""
        left = sum(bool(of.reason) for of in self.layers)
        sparse, dense = self.count("sparse"), self.count("dense")
        if "half" in self.milliseconds:
            parts = [f"{sparse} in 2:4", f"{dense} dense because that is faster"]
        else:
            plain = f"{self.count('float')} float because that is faster"
            parts = [f"{sparse} sparse INT8", f"{dense} dense INT8", plain]
        return f"layers: {', '.join(parts)}" + f", {left} left alone" * bool(left)

    def table(self) -> Table:
        """A row for each layer."""
        rows = tuple(_row(of) for of in self.layers)
        how = "float16" if "half" in self.milliseconds else "INT8"
        table = Table(name="layers", columns=_COLUMNS, rows=rows, note=_NOTE.format(how=how))
        return table.without_empty_columns()

    def blocks(self) -> list[Block]:
        """Warnings, the outcome, the layers and notes."""
        told = f"against floats: {self.compared}; relative error {self.relative_error:.2g}"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return [
            *warnings_first(self.warnings),
            self.result,
            told,
            self.table(),
            f"{self.cpu}; {versions}",
            *self.notes,
        ]


_NOTE = (
    "milliseconds of each kernel on as many rows as the layer has; error: mean squared error of "
    "the layer's outputs in {how}, relative to their mean square"
)
_COLUMNS = (
    Column("layer"),
    Column("kernel"),
    Column("matrix"),
    Column("zeros", "{:.1f}", unit="%"),
    Column("zero 1x4 blocks", "{:.1f}", unit="%"),
    Column("rows", "{:,}"),
    Column("float", "{:.3g}", unit="ms"),
    Column("dense", "{:.3g}", unit="ms"),
    Column("sparse", "{:.3g}", unit="ms"),
    Column("error", "{:.2g}"),
    Column("left alone because"),
)


def _row(of: LayerAcceleration) -> tuple[str | float | None, ...]:
    times = of.milliseconds or {}
    return (
        of.name,
        of.kernel,
        shape_text(of.shape),
        None if of.zeros is None else 100 * of.zeros,
        None if of.zero_blocks is None else 100 * of.zero_blocks,
        of.rows,
        *(times.get(name) for name in ("float", "dense", "sparse")),
        of.error,
        of.reason or None,
    )
