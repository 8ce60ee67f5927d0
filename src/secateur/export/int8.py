"""INT8: post-training quantisation with NNCF in which every zero stays a zero.

Weights are symmetric: w = scale * q with integers q and a scale per output, so that 0 is q = 0.
Zeros are looked for in what comes out, layer by layer; one that is lost is an error.

q has 7 bits, but for depthwise convolutions. Processors without VNNI (AVX2 alone) add two products
of bytes in 16 bits, which saturate where both have 8 bits. NNCF guards the first layer alone
against it, if it is not told otherwise; on such a processor EfficientNet-Lite0's outputs then were
four times as far from those in float32 (docs/experiments.md).
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from secateur.data.preprocess import Transform
from secateur.data.sources import MAX_IMAGES, Data, load_images
from secateur.errors import ModelError, OptionError, SecateurWarning
from secateur.frontends import Frontend, asked_or_own
from secateur.frontends import open as open_model
from secateur.frontends.openvino.runtime import batch_of, ir_weights
from secateur.network.samples import Samples
from secateur.support.extras import require, require_onnx
from secateur.support.loggers import quiet
from secateur.support.settings import SEEDS, at_least, check_arguments
from secateur.support.signal_stack import kept_signal_stack
from secateur.support.wording import counted

Precision = Literal["int8"]  # what networks can be quantised to
Weights = Mapping[str, np.ndarray]

INT8_FILE = "model-int8.xml"  # of a network that came in an OpenVINO file
RECURRENT_IR = tuple(  # OpenVINO's types
    f"{kind}{form}" for kind in ("LSTM", "GRU", "RNN") for form in ("Sequence", "Cell")
)


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A network in INT8.

    Attributes:
        model: an `onnx.ModelProto` that ONNX Runtime has run, or an `openvino.Model`.
        notes: what departs from NNCF's scheme.
    """

    model: Any
    notes: tuple[str, ...] = ()


def quantize(
    model: Any,
    data: Data,
    *,
    preprocess: Transform | None = None,
    max_images: int | None = MAX_IMAGES,
    seed: int = 0,
) -> Any:
    """Quantises a network to INT8, keeps every zero of its weights, and runs it once.

    Normalisations are folded into the convolutions before them first: integer convolutions need
    the next quantisation directly behind them, and NNCF corrects only existing biases. A
    SecateurWarning says where the model departs from NNCF's scheme because ONNX Runtime cannot
    run it.

    Example:
        >>> import secateur
        >>> from secateur import example
        >>> int8 = secateur.quantize("model.onnx", example.calibration()[:64])
        >>> secateur.evaluate(int8, example.test()[0], reference="model.onnx").images
        2500

    Args:
        model: an `onnx.ModelProto`, the path of an .onnx file, or any other network that `prune`
            takes, which is exported to ONNX first; or an `openvino.Model` or the path of an .xml
            file, which becomes another `openvino.Model`; not changed.
        data: calibration images, from any source as for `prune` (`secateur.Data`).
        preprocess: from images to inputs, see `Preprocess`; for folders and uint8 data. None =
            what a network from a hub prescribes; no preprocessing for any other network.
        max_images: use at most this many images; None = all.
        seed: seed of that choice.

    Returns:
        An `onnx.ModelProto` with integer weights, and QuantizeLinear and DequantizeLinear around
        its layers.

    Raises:
        ModelError: NNCF refuses the model, ONNX Runtime cannot run the result, or a zero was
            lost.
        MissingExtraError: nncf, onnx or onnxruntime is not installed.

    Cost: two forward passes, one image at a time.
    """
    check_arguments(quantize, locals(), max_images=at_least(1), seed=SEEDS)
    network = open_model(model)
    how = asked_or_own(preprocess, network)
    images = load_images(
        data, preprocess=how, max_images=max_images, seed=seed, takes=network.signature
    )
    found = in_int8(network, images.samples)
    for note in (*images.warnings, *found.notes):
        warnings.warn(note, SecateurWarning, stacklevel=2)
    return found.model


def in_int8(model: Any, samples: Samples) -> Quantized:
    """`quantize` with notes in the place of warnings."""
    network = open_model(model)
    if network.suffix == ".xml":
        return _ir_in_int8(network, samples)
    require_onnx("quantising to INT8", "onnx_ir", extra="int8")
    from secateur.export import onnx_surgery, onnx_weights
    from secateur.frontends import onnx as frontend

    model = open_model(model).to_onnx(samples)
    if frontend.is_large(model):
        raise ModelError(
            "the network is over 2 GB, expected less for INT8: leave out INT8; the other outputs "
            "do not need it"
        )
    plain = onnx_surgery.unshared(onnx_surgery.folded(onnx_surgery.upgraded(model)))
    bound = open_model(plain).signature.bind(samples)
    made = quantized(plain, parts(bound, frontend.declared_batch(plain)))
    found, layers = _that_runs(made, bound[:2])
    before, after = onnx_weights.layer_weights(model), onnx_weights.layer_weights(found)
    check_zeros(before, after, "model-int8.onnx")
    weights = {node.output[0]: node.input[1] for node in plain.graph.node if len(node.input) > 1}
    names = ", ".join(weights[layer].removesuffix(".weight") for layer in layers)
    note = (
        f"INT8: one scale for the whole input of {names}, where NNCF has one per channel: ONNX "
        "Runtime takes no others in its integer convolutions"
    )
    return Quantized(model=found, notes=(note,) if layers else ())


def _ir_in_int8(network: Frontend, samples: Samples) -> Quantized:
    """An `openvino.Model` in INT8, another one."""
    bound = network.signature.bind(samples)
    made = quantized(network.model, feed_of(network.model, bound))
    with open_model(made).running(bound[:2]) as run:
        run(bound[:2])
    check_zeros(ir_weights(network.model), ir_weights(made), INT8_FILE)
    note = recurrent_note(made, INT8_FILE)
    return Quantized(model=made, notes=() if note is None else (note,))


def feed_of(model: Any, samples: Samples) -> list[Any]:
    """What an `openvino.Model` is quantised on: by the names of its inputs, or its only one."""
    feed = parts(samples, batch_of(model))
    if len(samples.tensors) == 1:
        return [next(iter(part.values())) for part in feed]
    return feed


def _that_runs(made: Any, few: Samples) -> tuple[Any, list[str]]:
    """What NNCF made with single scales where they are needed, and the layers that have them.

    Run with ONNX Runtime's default optimisations, which may fail where none of them do.
    """
    from secateur.export.onnx_surgery import one_scale

    reason: ModelError | None = None
    for everywhere in (False, True):
        found, layers = one_scale(made, everywhere=everywhere)
        try:
            with open_model(found).running(few) as run:
                run(few)
            return found, layers
        except ModelError as error:
            reason = error
    raise ModelError(
        f"the network in INT8 does not run ({reason}), expected what NNCF makes to run in ONNX "
        "Runtime: leave out INT8; the other outputs do not need it"
    ) from reason


def quantized(model: Any, feed: list[Any]) -> Any:
    """What NNCF makes of an `onnx.ModelProto` or an `openvino.Model`, which is not changed.

    Args:
        model: the network.
        feed: its inputs, one run after the other; all are used.
    """
    nncf = require_nncf()
    # Recurrent layers of an IR lose their outputs in INT8; NNCF leaves those of ONNX in floats.
    floats = nncf.IgnoredScope(types=list(RECURRENT_IR), validate=False)
    with _quiet(), _quiet_runtime(), kept_signal_stack():
        try:
            data = nncf.Dataset(feed)
            return nncf.quantize(
                model,
                data,
                subset_size=len(feed),
                ignored_scope=floats,
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=nncf.OverflowFix.ENABLE
                ),
            )
        except Exception as error:  # nncf's own kinds, and those of the runtimes
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise ModelError(
                f"NNCF cannot quantise the network ({first[:300]}), expected one that it can: "
                "leave out INT8; the other outputs do not need it"
            ) from error


def recurrent_note(model: Any, file: str) -> str | None:
    """What to tell of an `openvino.Model` of which some layers stay in floats; None of others."""
    kept = [op.get_friendly_name() for op in model.get_ops() if op.get_type_name() in RECURRENT_IR]
    if not kept:
        return None
    names = ", ".join(kept[:3]) + (", ..." if len(kept) > 3 else "")
    return (
        f"{file}: recurrent layers stay in float32 ({names}), for in INT8 they lose their outputs"
    )


def parts(samples: Samples, batch: int) -> list[dict[str, np.ndarray]]:
    """Inputs of one sample at a time, or as many as the network takes, the last ones repeated."""
    size = batch or 1
    return [part.arrays() for part in samples.filled(size).split(size)]


def check_zeros(before: Weights, after: Weights, file: str) -> int:
    """Zeros of all layers; each of them has to be one afterwards too.

    Args:
        before: the weights of each layer.
        after: the same of another file; where its layers have other names, any that has them.
        file: its name, for the message.

    Raises:
        ModelError: a zero was lost.
    """
    for name, weights in before.items():
        lost = _lost(weights, [after[name]] if name in after else list(after.values()))
        if lost:
            zeros = counted(int((weights == 0).sum()), "zero")
            raise ModelError(
                f"{file} has lost {lost} of {zeros} of the layer {name}, "
                "expected all of them: please report this network's layer types"
            )
    return sum(int((weights == 0).sum()) for weights in before.values())


def _lost(weights: np.ndarray, candidates: list[np.ndarray]) -> int:
    """Zeros that the nearest candidate does not have; matrices may be transposed."""
    zeros = weights == 0
    ways = [zeros.ravel(), *([zeros.T.ravel()] if zeros.ndim == 2 else [])]
    same = [held.ravel() for held in candidates if held.size == zeros.size]
    missing = (int(np.count_nonzero(held[way])) for held in same for way in ways)
    return min(missing, default=int(zeros.sum()))


def check_kind(kind: Precision | None, network: Frontend) -> None:
    """Tells before long work what would keep a network from being quantised.

    Args:
        kind: None = no quantisation.
        network: a module has to be exported first.

    Raises:
        OptionError: any other kind.
        MissingExtraError: nncf or one of the packages for ONNX is not installed.
    """
    if kind not in (None, *get_args(Precision)):
        names = ", ".join(map(repr, get_args(Precision)))
        raise OptionError(f"quantize is {kind!r}, expected {names} or None")
    if kind is not None:
        if network.suffix != ".xml":
            require_onnx("quantising to INT8", "onnx_ir", *network.exporters, extra="int8")
        require_nncf()


def require_nncf(purpose: str = "quantising to INT8", *, extra: str = "int8") -> Any:
    """The module nncf, which is kept from sending usage data anywhere.

    It does so without asking where the package openvino_telemetry is found when it is imported.

    Raises:
        MissingExtraError: nncf is not installed.
    """
    loggers, level = logging.getLoggerClass(), logging.root.manager.disable
    with _hidden("openvino_telemetry"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            (nncf,) = require(extra, purpose, "nncf")
        finally:
            logging.disable(level)
            logging.setLoggerClass(loggers)  # it gives everybody's new loggers a class of its own
    return nncf


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Makes importing a module an ImportError."""
    held = sys.modules.pop(name, None)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if held is not None:
            sys.modules[name] = held


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides NNCF's progress bars, its log and its warnings about itself."""
    sink = io.StringIO()
    with (
        quiet("nncf", level=logging.CRITICAL + 1),
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
    ):
        yield


@contextmanager
def _quiet_runtime() -> Iterator[None]:
    """Hides what ONNX Runtime says of NNCF's own models, which it writes past Python."""
    onnxruntime = require_onnx("quantising to INT8", extra="int8")[1]
    onnxruntime.set_default_logger_severity(4)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # its default; it does not tell what was set
