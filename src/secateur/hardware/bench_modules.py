"""Latency of modules: floats, compiled, dense INT8 and pruned, side by side and in turns.

What INT8 brings and what zeros bring on top are told apart: the dense network in INT8 is a form of
its own.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from secateur.data.preprocess import Transform
from secateur.data.sources import Data, load_images
from secateur.errors import ModelError, OptionError
from secateur.frontends import asked_or_own
from secateur.frontends import open as open_model
from secateur.frontends.torch.frontend import TorchFrontend
from secateur.hardware.acceleration.run import KernelName, accelerate
from secateur.hardware.compare_latency import module_turns
from secateur.hardware.latency import median_interval
from secateur.hardware.machine import Machine
from secateur.network.samples import Samples
from secateur.support.settings import at_least, check_arguments
from secateur.support.tables import Block, Column, Document, Table
from secateur.support.threads import torch_threads
from secateur.support.wording import counted
from secateur.version import __version__

FLOAT, COMPILED, INT8 = "dense, float32", "dense, float32, compiled", "dense, INT8"
PRUNED, PRUNED_INT8 = "pruned, float32", "pruned, INT8"
_SAMPLES = 128  # that INT8 is calibrated with


@dataclass(frozen=True, kw_only=True)
class ModuleTiming:
    """A form of a network at one batch size and length.

    Attributes:
        form: such as "dense, INT8".
        batch: samples of a run.
        length: positions of a sample; None = those of the data.
        median, low, high: milliseconds, with a 95 % interval of the median.
        against_float: how many times as fast as the dense network in float32, from paired rounds.
        against_int8: how many times as fast as the dense network in INT8.
    """

    form: str
    batch: int
    length: int | None
    median: float
    low: float
    high: float
    against_float: float
    against_int8: float | None


@dataclass(frozen=True, kw_only=True)
class ModuleBench(Document):
    """The result of `bench_modules`.

    Attributes:
        timings: by batch size, length and form.
        rounds: of each.
        threads: of PyTorch.
        cpu: name of the processor.
        notes: what was not measured, and why.
    """

    timings: tuple[ModuleTiming, ...]
    rounds: int
    threads: int
    cpu: str
    notes: tuple[str, ...] = ()

    def data(self) -> dict[str, Any]:
        """All of it as plain data, for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """A row for each form, batch size and length."""
        rows = tuple(
            (
                of.batch,
                of.length,
                of.form,
                of.median,
                (of.low, of.high),
                of.against_float,
                of.against_int8,
            )
            for of in self.timings
        )
        return Table(name="modules", columns=_COLUMNS, rows=rows).without_empty_columns()

    def blocks(self) -> list[Block]:
        """The table, how it was measured, and notes."""
        how = (
            f"{counted(self.rounds, 'round')}, the forms taking turns in one process; 95 % "
            f"intervals of medians; {counted(self.threads, 'thread')}; {self.cpu}; secateur "
            f"{__version__}, torch {torch.__version__}"
        )
        return [self.table(), how, *self.notes]


_COLUMNS = (
    Column("batch", "{}"),
    Column("length", "{}"),
    Column("form"),
    Column("median", "{:.3g}", unit="ms"),
    Column("interval", "{:.3g} to {:.3g}", unit="ms"),
    Column("times as fast as dense float32", "{:.2f}"),
    Column("times as fast as dense INT8", "{:.2f}"),
)


def bench_modules(
    dense: nn.Module | str | Any,
    data: Data,
    *,
    pruned: nn.Module | str | Any = None,
    batches: Sequence[int] = (1,),
    lengths: Sequence[int] | None = None,
    compiled: bool = False,
    threads: int = 1,
    rounds: int = 30,
    preprocess: Transform | None = None,
) -> ModuleBench:
    """Measures a module in float32 and INT8, dense and pruned, in turns.

    Example:
        >>> import torch, secateur
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64))
        >>> found = secateur.bench_modules(net, torch.randn(64, 64), batches=[1, 16], rounds=10)
        >>> [of.batch for of in found.timings if of.form == "dense, INT8"]
        [1, 16]

    Args:
        dense: a module, or a reference to one.
        data: inputs, as for `prune`; the INT8 forms are calibrated with the first 128 of them.
        pruned: the same network pruned; None = it is not measured.
        batches: samples of a run.
        lengths: positions of a sample, for inputs with a mask: longer ones are cut, shorter ones
            padded. None = as the data are.
        compiled: whether `torch.compile` of the dense network is measured too.
        threads: of PyTorch.
        rounds: measurements of each form, at least 10.
        preprocess: as for `prune`.

    Raises:
        OptionError, DataError: a mistake in the call; the message says how to fix it.
        ModelError: a model is no module, or cannot be run.
    """
    check_arguments(
        bench_modules,
        locals(),
        batches=at_least(1),
        lengths=at_least(1),
        threads=at_least(1),
        rounds=at_least(10),
    )
    if not batches:
        raise OptionError("batches is empty, expected sizes such as [1, 8]")
    networks = {FLOAT: _module(dense)}
    if pruned is not None:
        networks[PRUNED] = _module(pruned)
    takes = networks[FLOAT].signature
    how = asked_or_own(preprocess, networks[FLOAT])
    samples = takes.bind(load_images(data, preprocess=how, takes=takes).samples)
    if lengths is not None and samples.mask is None:
        raise OptionError("got lengths, and the data have no mask, expected inputs with one")
    for name, network in networks.items():
        _check_runs(name, network, samples.select(slice(1)))
    found, notes = list[ModuleTiming](), list[str]()
    with torch_threads(threads):
        for batch in batches:
            for length in lengths or (None,):
                part = samples if length is None else samples.of_length(length)
                forms = _forms(networks, part, batch, compiled, notes)
                found += _timings(forms, _repeated(part, batch), length, rounds)
    return ModuleBench(
        timings=tuple(found),
        rounds=rounds,
        threads=threads,
        cpu=Machine.here().cpu,
        notes=tuple(dict.fromkeys(notes)),
    )


def _module(model: Any) -> TorchFrontend:
    network = open_model(model)
    if not isinstance(network, TorchFrontend):
        raise ModelError(
            f"got a network in a {network.suffix} file, expected a torch.nn.Module: secateur.bench "
            "measures files"
        )
    return network


def _check_runs(name: str, network: TorchFrontend, few: Samples) -> None:
    """Runs a network once.

    Raises:
        ModelError: it fails.
    """
    try:
        with network.running(few) as run, torch.inference_mode():
            run(few)
    except Exception as error:  # whatever the module's own code raises
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"the network does not run on the data ({name}: {said[:200]}), expected inputs that "
            "it takes: check the data, and that both are the same network"
        ) from error


def _repeated(samples: Samples, batch: int) -> Samples:
    return samples.select([number % len(samples) for number in range(batch)])


def _forms(
    networks: Mapping[str, TorchFrontend],
    samples: Samples,
    batch: int,
    compiled: bool,
    notes: list[str],
) -> dict[str, nn.Module]:
    """Every form of the networks; what cannot be made is noted with the reason."""
    dense, few = networks[FLOAT].model, samples[:_SAMPLES]
    forms: dict[str, nn.Module] = {FLOAT: dense}
    if compiled:
        compiled_dense: Any = torch.compile(dense)
        try:
            with open_model(dense).running(few[:batch]) as run, torch.inference_mode():
                run(few[:batch])
                compiled_dense(**few[:batch].tensors)
            forms[COMPILED] = compiled_dense
        except Exception as error:  # a compiler that is missing, or refuses the network
            said = next(iter(str(error).splitlines()), type(error).__name__)
            notes.append(f"torch.compile was not measured: {said[:200]}")
    for name, of, kernels in (
        (INT8, dense, _DENSE),
        (PRUNED_INT8, networks[PRUNED].model if PRUNED in networks else None, _EVERY),
    ):
        if of is None:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                forms[name] = accelerate(of, few.tensors, batch=batch, kernels=kernels).model
        except ModelError as error:
            notes.append(f"{name} was not measured: {error}")
    if PRUNED in networks:
        forms[PRUNED] = networks[PRUNED].model
    return forms


_DENSE: tuple[KernelName, ...] = ("dense", "float")
_EVERY: tuple[KernelName, ...] = ("sparse", "dense", "float")


def _timings(
    forms: Mapping[str, nn.Module], samples: Samples, length: int | None, rounds: int
) -> list[ModuleTiming]:
    times = dict(zip(forms, module_turns([*forms.values()], samples, rounds), strict=True))

    def ratio(name: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(times[other], times[name], strict=True))

    found = []
    for name in forms:
        low, middle, high = median_interval(times[name])
        found.append(
            ModuleTiming(
                form=name,
                batch=len(samples),
                length=length,
                median=middle,
                low=low,
                high=high,
                against_float=ratio(name, FLOAT),
                against_int8=ratio(name, INT8) if INT8 in forms else None,
            )
        )
    return found
