"""What each command takes: a class per command, whose fields are its arguments and options.

The docstring of a class is the command's help. Nothing here imports PyTorch, so that help and
mistakes in options come at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.parameters import Numbers, sides

_number = Numbers().parse
_whole = Numbers(kind=int).parse

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Network: an .onnx, .xml (OpenVINO) or .pt2 file, file.py:callable, "
        "package.mod:callable, timm:NAME or hf:PATH.",
    ),
]
Weights = Annotated[
    str | None, typer.Option(metavar="FILE", help="Weights to load: .safetensors, .pt or .pth.")
]
Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="Calibration images: a folder, .npz, file.py:callable or fractal:300. With "
        "--tokenizer texts: a file with one a line, JSON lines or text:300.",
    ),
]
Size = Annotated[
    Any,
    typer.Option(
        parser=sides, metavar="N|HxW", help="Centre crop, in pixels: a square, or height and width."
    ),
]
Channels = Annotated[
    int, typer.Option(parser=_whole, metavar="N", help="3 (RGB) or 1 (grayscale).")
]
Seed = Annotated[int, typer.Option(parser=_whole, metavar="N", help="Seed of every random choice.")]
File = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="File to write.")]
Folder = Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="Folder to write.")]
Packed = Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="File to write.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[
    bool | None,
    typer.Option(
        "--quiet/--verbose",
        help="No progress and one line / the whole report; the default depends on whether the "
        "output is a terminal.",
    ),
]
Silent = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Output = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|N",
        help="Output that the network is judged by: a name, or a number from 0 on; default: the "
        "first with a row for each sample.",
    ),
]
Mask = Annotated[
    str | None,
    typer.Option(
        metavar="INPUT",
        help="Input that is 0 where there is padding, or ~INPUT that is 1 there "
        "(default: attention_mask).",
    ),
]
Judge = Annotated[
    str | None,
    typer.Option(
        help="What that output is judged by: classes, tokens, embeddings or values; default: "
        "found out."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Texts:
    """How texts become inputs."""

    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The data are texts: tokenizer.json of the network, for them."
        ),
    ] = None
    max_length: Annotated[
        int | None,
        typer.Option(parser=_whole, metavar="N", help="Tokens of a text at most; default: 128."),
    ] = None
    columns: Annotated[
        str | None,
        typer.Option(metavar="A[,B]", help="Columns of JSON lines with the texts; two make pairs."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Pictures(Texts):
    """Preprocessing of images."""

    size: Size = None
    resize: Annotated[
        Any,
        typer.Option(
            parser=sides,
            metavar="N|HxW",
            help="Short side before the crop (or height and width to cover), in pixels; "
            "default: size.",
        ),
    ] = None
    mean: Annotated[
        Sequence[float] | None,
        typer.Option(
            parser=Numbers(several=True).parse,
            metavar="M,M,M",
            help="Mean per channel, pixels scaled to [0, 1].",
        ),
    ] = None
    std: Annotated[
        Sequence[float] | None,
        typer.Option(
            parser=Numbers(several=True).parse,
            metavar="S,S,S",
            help="Standard deviation per channel, pixels scaled to [0, 1].",
        ),
    ] = None
    channels: Channels = 3
    preprocess: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Preprocessing as JSON: preprocessor_config.json of Transformers, or what timm "
            "has for a network; the options above replace it one by one.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Given(Pictures):
    """A network and data, for what prunes it."""

    model: Model
    data: Data
    weights: Weights = None
    eval_data: Annotated[
        str | None,
        typer.Option("--eval", metavar="DATA", help="Images to evaluate on, labelled or not."),
    ] = None
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Names or globs of layers to prune, protected ones too; repeatable.",
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Names or globs of layers to leave dense; repeatable."),
    ] = None
    mask: Mask = None
    max_images: Annotated[
        int, typer.Option(parser=_whole, metavar="N", help="Use at most this many images.")
    ] = 1000
    seed: Seed = 0
    output: Output = None
    judge: Judge = None
    device: Annotated[str | None, typer.Option(help="Device to compute on, e.g. cpu or cuda.")] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class Fit(Given):
    """What `prune` and `sweep` share."""

    model: Model
    data: Data
    recipe: Annotated[
        str,
        typer.Option(metavar="NAME|FILE", help="Recipe: default, tuned, paper or a .toml file."),
    ] = "default"
    pattern: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|N:M|RxC",
            help="What becomes zero: unstructured (any weight); 2:4 or any n:m (at most n of each "
            "m neighbouring inputs stay); 1x4 or any block of outputs x inputs; or channels, "
            "which leave the network (overrides the recipe).",
        ),
    ] = None
    method: Annotated[
        str | None, typer.Option(help="Pruning method, e.g. admm (overrides the recipe).")
    ] = None
    allocation: Annotated[
        str | None,
        typer.Option(
            help="How to allocate zeros to layers: sensitivity, normalized-magnitude or uniform "
            "(overrides the recipe)."
        ),
    ] = None
    inputs: Annotated[
        str | None,
        typer.Option(
            help="Fit layers to their inputs in the pruned or the dense network "
            "(overrides the recipe)."
        ),
    ] = None
    max_columns: Annotated[
        int,
        typer.Option(
            parser=_whole, metavar="N", help="Fit layers with more inputs per output in blocks."
        ),
    ] = 8192
    force: Force = False
    quiet: Quiet = None


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
            parser=_number,
            metavar="S",
            help="Fraction of zeros, in [0, 1). Give exactly one target.",
        ),
    ] = None
    max_macs: Annotated[
        float | None,
        typer.Option(
            parser=_number,
            metavar="F",
            help="Multiply-accumulates left, as a fraction of the dense network's, in (0, 1].",
        ),
    ] = None
    max_bytes: Annotated[
        float | None,
        typer.Option(
            parser=_number,
            metavar="F",
            help="Size of a packed file, as a fraction of the dense network's, in (0, 1].",
        ),
    ] = None
    max_drop: Annotated[
        float | None,
        typer.Option(
            parser=_number,
            metavar="POINTS",
            help="Points of top-1 to lose at most (without labels, of agreement; of embeddings, "
            "hundredths of mean cosine).",
        ),
    ] = None
    max_latency: Annotated[
        float | None,
        typer.Option(
            parser=_number,
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
        int, typer.Option(parser=_whole, metavar="N", help="Threads of --runtime.")
    ] = 1
    then_sparsity: Annotated[
        float | None,
        typer.Option(
            parser=_number,
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
            parser=_number, metavar="S", help="Fraction of zeros, where any weight may be one."
        ),
    ] = 0.5
    blocks: Annotated[
        float, typer.Option(parser=_number, metavar="S", help="Fraction of zeros in blocks.")
    ] = 0.7
    max_macs: Annotated[
        float,
        typer.Option(
            parser=_number, metavar="F", help="Multiply-accumulates left where channels leave."
        ),
    ] = 0.7
    seconds: Annotated[
        float,
        typer.Option(
            parser=_number, metavar="S", help="Seconds of measuring on each runtime; 0 = none."
        ),
    ] = 10.0
    threads: Annotated[
        int, typer.Option(parser=_whole, metavar="N", help="Threads of each runtime.")
    ] = 1
    max_images: Annotated[
        int, typer.Option(parser=_whole, metavar="N", help="Use at most this many images.")
    ] = 256
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
            parser=_whole, metavar="N", help="Threads of each runtime; default: one per core."
        ),
    ] = None
    batch: Annotated[
        int,
        typer.Option(
            parser=_whole, metavar="N", help="Images per run, if the file does not fix it."
        ),
    ] = 1
    rounds: Annotated[
        int,
        typer.Option(parser=_whole, metavar="N", help="Measurements of each file, at least 10."),
    ] = 100
    sparse_rate: Annotated[
        float,
        typer.Option(
            parser=_number,
            metavar="S",
            help="Fraction of zeros from which OpenVINO uses its sparse path for a layer.",
        ),
    ] = 0.5
    seed: Annotated[
        int,
        typer.Option(parser=_whole, metavar="N", help="Seed of the order of measurements."),
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
    count: Annotated[int, typer.Option(parser=_whole, metavar="N", help="Number of images.")] = 300
    size: Annotated[
        int, typer.Option(parser=_whole, metavar="N", help="Side of the square images, in pixels.")
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
