"""Arguments and options that several commands take; nothing here imports PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.parameters import Numbers, sides

number = Numbers().parse
whole = Numbers(kind=int).parse

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
Channels = Annotated[int, typer.Option(parser=whole, metavar="N", help="3 (RGB) or 1 (grayscale).")]
Seed = Annotated[int, typer.Option(parser=whole, metavar="N", help="Seed of every random choice.")]
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
        typer.Option(parser=whole, metavar="N", help="Tokens of a text at most; default: 128."),
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
        int, typer.Option(parser=whole, metavar="N", help="Use at most this many images.")
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
            parser=whole, metavar="N", help="Fit layers with more inputs per output in blocks."
        ),
    ] = 8192
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for values between layers, such as 4GB; what is beyond it is kept in "
            "files in TMPDIR meanwhile.",
        ),
    ] = None
    work_dir: Annotated[
        Path | None,
        typer.Option(
            "--work-dir",
            metavar="DIR",
            help="Folder to keep what is finished in: after an interruption the same command goes "
            "on from there.",
        ),
    ] = None
    force: Force = False
    quiet: Quiet = None
