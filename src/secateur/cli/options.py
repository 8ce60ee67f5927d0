"""What each command takes: a class per command, whose fields are its arguments and options.

The docstring of a class is the command's help. Nothing here imports PyTorch, so that help and
mistakes in options come at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.parameters import Numbers
from secateur.cli.shared_options import (
    Channels,
    Data,
    File,
    Fit,
    Folder,
    Force,
    Given,
    Json,
    Judge,
    Mask,
    Model,
    Output,
    Packed,
    Pictures,
    Seed,
    Silent,
    Size,
    Texts,
    Weights,
    number,
    whole,
)


@dataclass(frozen=True, kw_only=True)
class Prune(Fit):
    """Prune MODEL and write the result, report.json and report.html to OUT.

    Give exactly one target: --sparsity, --max-macs, --max-bytes, --max-drop or --max-latency (with
    --runtime); a --pattern such as 2:4 needs none. With --pattern channels the network itself
    becomes smaller. A PyTorch network is written as model.safetensors and, with --onnx, as
    model.onnx; a .pt2 file also as model.pt2; an .onnx file as model.onnx and an OpenVINO .xml file
    as model.xml and model.bin, which are that file with other weights. INT8 files are calibrated on
    the same images. Every zero stays a zero in each file.
    """

    model: Model
    data: Data
    sparsity: Annotated[
        float | None,
        typer.Option(
            parser=number,
            metavar="S",
            help="Fraction of zeros, in [0, 1). Give exactly one target.",
        ),
    ] = None
    max_macs: Annotated[
        float | None,
        typer.Option(
            parser=number,
            metavar="F",
            help="Multiply-accumulates left, as a fraction of the dense network's, in (0, 1].",
        ),
    ] = None
    max_bytes: Annotated[
        float | None,
        typer.Option(
            parser=number,
            metavar="F",
            help="Size of a packed file, as a fraction of the dense network's, in (0, 1].",
        ),
    ] = None
    max_drop: Annotated[
        float | None,
        typer.Option(
            parser=number,
            metavar="POINTS",
            help="Points of top-1 to lose at most (without labels, of agreement; of embeddings, "
            "hundredths of mean cosine).",
        ),
    ] = None
    max_latency: Annotated[
        float | None,
        typer.Option(
            parser=number,
            metavar="F",
            help="Time for one input on --runtime, as a fraction of the dense network's, in "
            "(0, 1]; removes channels.",
        ),
    ] = None
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where the network will run (secateur runtimes lists the names): chooses the "
            "pattern that pays there.",
        ),
    ] = None
    threads: Annotated[
        int, typer.Option(parser=whole, metavar="N", help="Threads of --runtime.")
    ] = 1
    then_sparsity: Annotated[
        float | None,
        typer.Option(
            parser=number,
            metavar="F",
            help="After --pattern channels: fraction of zeros to make in what is left, in [0, 1).",
        ),
    ] = None
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="OUT", help="Folder to write.")
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the zeros planned for each layer; write nothing."),
    ] = False
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also write model.onnx (always for an .onnx file).")
    ] = False
    openvino: Annotated[
        bool, typer.Option("--openvino", help="Also write openvino/model.xml and .bin.")
    ] = False
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Also write model-int8.onnx (with --openvino, the INT8 IR too)."
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class Sweep(Fit):
    """Prune MODEL to several sparsities and write the accuracy of each to OUT.

    Writes sweep.json, sweep.html with the curve, and for each sparsity the report that prune
    would write, but no networks. The sensitivity of the layers is measured once.
    """

    model: Model
    data: Data
    sparsities: Annotated[
        Sequence[float],
        typer.Option(
            parser=Numbers(several=True).parse,
            metavar="S,S,...",
            help="Fractions of zeros, in [0, 1), e.g. 0.5,0.6,0.7.",
        ),
    ]
    out: Folder


@dataclass(frozen=True, kw_only=True)
class Advise(Given):
    """Show what MODEL would gain on each runtime, with which pattern, and at what price.

    Each pattern gets a quick fit, is judged on --eval (or on a quarter of --data), and measured on
    the runtimes that are installed. Keep the machine otherwise idle.
    """

    model: Model
    data: Data
    sparsity: Annotated[
        float,
        typer.Option(
            parser=number, metavar="S", help="Fraction of zeros, where any weight may be one."
        ),
    ] = 0.5
    blocks: Annotated[
        float, typer.Option(parser=number, metavar="S", help="Fraction of zeros in blocks.")
    ] = 0.7
    max_macs: Annotated[
        float,
        typer.Option(
            parser=number, metavar="F", help="Multiply-accumulates left where channels leave."
        ),
    ] = 0.7
    seconds: Annotated[
        float,
        typer.Option(
            parser=number, metavar="S", help="Seconds of measuring on each runtime; 0 = none."
        ),
    ] = 5.0
    threads: Annotated[
        int, typer.Option(parser=whole, metavar="N", help="Threads of each runtime.")
    ] = 1
    max_images: Annotated[
        int, typer.Option(parser=whole, metavar="N", help="Use at most this many images.")
    ] = 192
    json: Json = False
    quiet: Silent = False


@dataclass(frozen=True, kw_only=True)
class Report:
    """Show a report, or write it to FILE as an HTML page."""

    file: Annotated[Path, typer.Argument(metavar="REPORT", help="A report.json.")]
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The .html file to write.")
    ] = None
    bench: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Latencies to show, from bench --json.")
    ] = None
    force: Force = False


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Show the differences between two reports: settings, accuracy, bytes, layers."""

    first: Annotated[Path, typer.Argument(metavar="FIRST", help="A report.json.")]
    second: Annotated[
        Path, typer.Argument(metavar="SECOND", help="Another one, of the same network.")
    ]


@dataclass(frozen=True, kw_only=True)
class Bench(Pictures):
    """Measure the latency of model files in ONNX Runtime and OpenVINO, on random inputs.

    The other files are compared with the first, the dense one. Keep the machine otherwise idle.

    With --data DENSE and PRUNED are PyTorch modules (file.py:callable, hf:PATH, ...), and PyTorch
    runs them in float32 and INT8, the dense one in both.
    """

    files: Annotated[
        list[Path],
        typer.Argument(metavar="DENSE PRUNED...", help=".onnx files (or .xml), or modules."),
    ]
    threads: Annotated[
        int | None,
        typer.Option(
            parser=whole, metavar="N", help="Threads of each runtime; default: one per core."
        ),
    ] = None
    batch: Annotated[
        int,
        typer.Option(
            parser=whole, metavar="N", help="Images per run, if the file does not fix it."
        ),
    ] = 1
    rounds: Annotated[
        int,
        typer.Option(parser=whole, metavar="N", help="Measurements of each file, at least 10."),
    ] = 100
    sparse_rate: Annotated[
        float,
        typer.Option(
            parser=number,
            metavar="S",
            help="Fraction of zeros from which OpenVINO uses its sparse path for a layer.",
        ),
    ] = 0.5
    seed: Annotated[
        int,
        typer.Option(parser=whole, metavar="N", help="Seed of the order of measurements."),
    ] = 0
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Inputs of modules, as for prune: measures modules."),
    ] = None
    batches: Annotated[
        Sequence[int] | None,
        typer.Option(
            parser=Numbers(kind=int, several=True).parse,
            metavar="N,N,...",
            help="Of modules: several batch sizes.",
        ),
    ] = None
    lengths: Annotated[
        Sequence[int] | None,
        typer.Option(
            parser=Numbers(kind=int, several=True).parse,
            metavar="N,N,...",
            help="Of modules with a mask: several numbers of positions.",
        ),
    ] = None
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Of modules: torch.compile of the dense one, too.")
    ] = False
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the result to FILE.")
    ] = None
    force: Force = False
    quiet: Silent = False


@dataclass(frozen=True, kw_only=True)
class Inspect(Texts):
    """List MODEL's layers, those that stay dense, and the runtimes that could be faster."""

    model: Model
    weights: Weights = None
    shape: Annotated[
        Sequence[int] | None,
        typer.Option(
            parser=Numbers(kind=int, several=True).parse,
            metavar="C,H,W",
            help="Shape of one input; default: the file's, or 3,224,224.",
        ),
    ] = None
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Inputs in place of a shape, as for prune."),
    ] = None
    pattern: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|N:M|RxC", help="Also tell which layers a pattern such as 2:4 fits."
        ),
    ] = None
    size: Size = None
    channels: Channels = 3
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also show what each layer lacks for each runtime.")
    ] = False
    json: Json = False
    quiet: Silent = False


@dataclass(frozen=True, kw_only=True)
class Evaluate(Pictures):
    """Measure FILE's top-1 on labelled images, and compare it with OTHER.

    Without labels it shows only the agreement with OTHER, the mean cosine of embeddings, or the
    error of an output of another kind. OTHER may be anything that FILE may be; --model serves both.
    """

    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="An .onnx, .xml (OpenVINO) or .safetensors file, or as for prune."
        ),
    ]
    eval_data: Annotated[
        str,
        typer.Option(
            "--eval", metavar="DATA", help="Images, labelled or not, as for prune; all are used."
        ),
    ]
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Network that the weights belong to, e.g. file.py:callable."
        ),
    ] = None
    against: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="Network to compare with, on the same images."),
    ] = None
    mask: Mask = None
    output: Output = None
    judge: Judge = None
    json: Json = False
    quiet: Silent = False


@dataclass(frozen=True, kw_only=True)
class Runtimes:
    """List the runtimes that prune --runtime knows, with what this machine can do."""

    json: Json = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Show a recipe as TOML, to be edited and passed to --recipe."""

    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="default, tuned, paper or a file.")
    ]
    out: File = None
    force: Force = False


@dataclass(frozen=True, kw_only=True)
class Fractals:
    """Write synthetic calibration images (PNG), for use without real ones."""

    out: Folder
    count: Annotated[int, typer.Option(parser=whole, metavar="N", help="Number of images.")] = 300
    size: Annotated[
        int, typer.Option(parser=whole, metavar="N", help="Side of the square images, in pixels.")
    ] = 224
    channels: Channels = 3
    seed: Seed = 0
    force: Force = False
    quiet: Silent = False


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Compress FILE: zeros take almost no bytes, and unpack restores every bit."""

    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors or .onnx file.")]
    out: Packed
    force: Force = False


@dataclass(frozen=True, kw_only=True)
class Unpack:
    """Restore the file that was packed as FILE, bit for bit."""

    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file made by pack.")]
    out: Packed
    force: Force = False
    max_bytes: Annotated[
        int | None,
        typer.Option(
            parser=Numbers(kind=int, least=0).parse,
            metavar="N",
            help="Largest output in bytes; default: 1 GiB, or 256 times FILE if that is more.",
        ),
    ] = None
