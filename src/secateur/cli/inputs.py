"""What commands make of their options: preprocessing, images, the arguments of `prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.cli.shared_options import Fit, Pictures, Texts
from secateur.cli.started import say
from secateur.core.outputs import JUDGES, Judge
from secateur.data.preprocess import ModelPreprocess, Preprocess, completed
from secateur.data.sources import Images, load_images, open_images
from secateur.data.streams import ImageStream
from secateur.data.text import MAX_LENGTH, ModelText, Text
from secateur.errors import OptionError
from secateur.frontends.hubs import own_preprocess
from secateur.network.samples import Signature
from secateur.pruning.recipe import Recipe, choose_recipe
from secateur.support.choices import did_you_mean
from secateur.support.progress import Teller


def asked_preprocess(options: Pictures) -> Preprocess | Text | None:
    """The preprocessing that the options ask for; None where they say nothing.

    Raises:
        OptionError: some are for texts and others for images.
    """
    text = asked_text(options)
    settings = {
        "size": options.size,
        "resize": options.resize,
        "mean": options.mean,
        "std": options.std,
    }
    given = {**settings, "preprocess": options.preprocess}
    given = [f"--{name}" for name, value in given.items() if value is not None]
    if text is not None and given:
        raise OptionError(
            f"got --tokenizer, which is for texts, and {', '.join(given)}, for images: pass those "
            "of one kind"
        )
    if text is not None:
        return text
    if all(value is None for value in settings.values()) and options.channels == 3:
        return None
    return Preprocess(**settings, channels=options.channels)


def asked_text(options: Texts) -> Text | None:
    """How the options say that texts become inputs; None where they say nothing.

    Raises:
        OptionError: there are some, but no tokenizer.
    """
    if options.tokenizer is None:
        if options.max_length is not None or options.columns is not None:
            raise OptionError(
                "got --max-length or --columns without --tokenizer, expected all for texts: pass "
                "--tokenizer tokenizer.json"
            )
        return None
    columns = [name.strip() for name in (options.columns or "").split(",") if name.strip()]
    length = MAX_LENGTH if options.max_length is None else options.max_length
    return Text(tokenizer=str(options.tokenizer), max_length=length, columns=columns)


def asked_judge(name: str | None) -> Judge | None:
    """What a network is to be judged by.

    Raises:
        OptionError: there is no such way.
    """
    known: dict[str, Judge] = {of: of for of in JUDGES}
    if name is not None and name not in known:
        raise OptionError(
            f"judge is {name!r}, expected one of {', '.join(JUDGES)}{did_you_mean(name, JUDGES)}"
        )
    return None if name is None else known[name]


def with_own(
    asked: Preprocess | Text | None, file: Path | None, *networks: Any
) -> Preprocess | Text | None:
    """What was asked for, with what a file or a network from a hub says where nothing was.

    Args:
        asked: by the options.
        file: of `--preprocess`.
        networks: the first that says how to prepare its images is followed, if there is no file.
    """
    if isinstance(asked, Text):
        return asked
    if file is not None:
        own, who = ModelPreprocess.load(file), str(file)
    else:
        own, who = next(filter(None, map(own_preprocess, networks)), None), "the network"
    if isinstance(own, ModelText):
        say(f"note: texts are tokenized as {who} says ({own})")
        return own if asked is None else asked
    if own is not None:
        say(
            f"note: pictures are prepared as {who} says ({own}), but for what --size, --resize, "
            "--mean and --std say"
        )
    return completed(asked, own)


def calibration_images(
    options: Fit, preprocess: Preprocess | Text | None, takes: Signature
) -> Images:
    """The images of --data, read."""
    return load_images(
        options.data,
        preprocess=preprocess,
        max_images=options.max_images,
        seed=options.seed,
        takes=takes,
    )


def evaluation_images(
    source: str | None, preprocess: Preprocess | Text | None, takes: Signature
) -> ImageStream | None:
    """All images of --eval, with labels where they have any; read when they are needed."""
    return None if source is None else open_images(source, preprocess=preprocess, takes=takes)


def asked_recipe(options: Fit) -> Recipe:
    """The recipe, with the settings that options replace."""
    return choose_recipe(
        options.recipe,
        pattern=options.pattern,
        method=options.method,
        allocation=options.allocation,
        inputs=options.inputs,
    )


def check_apart(out: Path, work_dir: Path | None) -> None:
    """Raises OptionError where the work folder would lie in the folder of the results."""
    if work_dir is not None and work_dir.resolve().is_relative_to(out.resolve()):
        raise OptionError(
            f"--work-dir {work_dir} lies in the output folder {out}, expected one beside it: "
            "choose another"
        )


def common_arguments(
    options: Fit,
    recipe: Recipe,
    preprocess: Preprocess | Text | None,
    takes: Signature,
    teller: Teller,
) -> dict[str, Any]:
    """The arguments that `secateur.prune`, `plan` and `sweep` share."""
    return {
        "evaluation": evaluation_images(options.eval_data, preprocess, takes),
        "recipe": recipe,
        "preprocess": preprocess,  # for the report: the images are read already
        "include": options.include or None,
        "exclude": options.exclude or None,
        "max_images": options.max_images,
        "max_columns": options.max_columns,
        "memory": options.memory,
        "seed": options.seed,
        "mask": options.mask,
        "output": options.output,
        "judge": options.judge,
        "device": options.device,
        "work_dir": options.work_dir,
        "progress": teller,
    }
