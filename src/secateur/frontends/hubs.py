"""Networks by their names in timm and in Hugging Face Transformers: `timm:resnet18`, `hf:PATH`.

Neither package is needed for anything else. Their networks are used as they are, with the names of
their weights, so what is written goes back into them.
"""

from __future__ import annotations

import ast
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.data.preprocess import ModelPreprocess
from secateur.data.text import TOKENIZER_FILE, TOKENS, ModelText
from secateur.errors import (
    MissingExtraError,
    ModelError,
    OptionError,
    SecateurError,
    SecateurWarning,
)
from secateur.support.choices import did_you_mean
from secateur.support.extras import require
from secateur.support.loggers import quiet

_PREPROCESS = "secateur_preprocess"  # where a module from a hub holds its own


def is_hub_name(reference: str) -> bool:
    """Whether a network is given as `timm:NAME` or `hf:PATH`."""
    return reference.startswith(tuple(f"{hub}:" for hub in _HUBS))


def load_from_hub(reference: str, *, pretrained: bool = True) -> nn.Module:
    """A network by its name, with its own weights.

    Args:
        reference: `timm:NAME` with arguments of `timm.create_model` behind commas, such as
            `timm:resnet18,num_classes=10`; or `hf:PATH`, a folder or a name on the Hugging Face
            hub. With `,pretrained=False` weights are random, the same ones each time.
        pretrained: False where other weights are put into it next, so that none are fetched.

    Raises:
        MissingExtraError: the package is not installed.
        ModelError: it cannot be imported or knows no such network, the weights cannot be fetched
            or do not fit, or the network takes tokens.
    """
    hub, _, text = reference.partition(":")
    name, options = _arguments(text, reference)
    options = {"pretrained": pretrained} | options
    if not name:
        raise ModelError(f"got {reference!r}, expected a name behind it, such as timm:resnet18")
    model = _loaded(hub, name, options, reference)
    own = vars(model).get(_PREPROCESS)
    if isinstance(own, OptionError):
        setattr(model, _PREPROCESS, None)
        warnings.warn(
            f"what {reference} says of its images is not followed: {own}",
            SecateurWarning,
            stacklevel=2,
        )
    return model


def own_preprocess(model: Any) -> ModelPreprocess | ModelText | None:
    """How a network from a hub wants images or texts, if it tells; None of any other one."""
    return vars(model).get(_PREPROCESS) if isinstance(model, nn.Module) else None


def own_input_shape(model: Any) -> tuple[int, ...] | None:
    """Of one image, as a network from a hub wants it; None of any other one."""
    own = own_preprocess(model)
    if not isinstance(own, ModelPreprocess) or own.shape is None:
        return None
    return own.channels, *own.shape


def _loaded(hub: str, name: str, options: Mapping[str, Any], reference: str) -> nn.Module:
    """A network by its name, whose own preprocessing may be an error that tells why it has none."""
    with _quiet(), _weights_only(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the weights that are not pretrained
        try:
            return _HUBS[hub](name, options).eval()
        except SecateurError:
            raise
        except OSError as error:  # what the hubs' clients raise is one, wherever it comes from
            raise ModelError(
                f"{reference} could not be fetched ({_first(error)}), expected a name on the hub "
                f"and a way to it: check both, or pass {_ELSEWHERE[hub].format(name=name)}"
            ) from error
        except Exception as error:  # theirs are of many kinds
            raise ModelError(
                f"{reference} cannot be made ({type(error).__name__}: {_first(error)}), expected a "
                "network that its package makes: try it in Python first"
            ) from error


def _arguments(text: str, reference: str) -> tuple[str, dict[str, Any]]:
    """The name, and the arguments behind it."""
    name, *parts = text.split(",")
    options = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise OptionError(
                f"{reference} has {part!r} behind its name, expected an argument such as "
                "num_classes=10 or pretrained=False"
            )
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value  # a text without quotation marks
    return name, options


def _timm(name: str, options: Mapping[str, Any]) -> nn.Module:
    timm = _imported("timm", f"timm:{name}")
    known = name.partition(".")[0]
    if ":" not in name and not timm.is_model(known):
        raise ModelError(
            f"timm knows no network {name!r}, expected one of timm.list_models()"
            f"{did_you_mean(known, timm.list_models())}"
        )
    model = timm.create_model(name, **options)
    config = timm.data.resolve_model_data_config(model)
    setattr(model, _PREPROCESS, _prescribed(ModelPreprocess.from_timm, config))
    return model


def _hugging_face(name: str, options: Mapping[str, Any]) -> nn.Module:
    transformers = _imported("transformers", f"hf:{name}")
    if unknown := set(options) - {"pretrained"}:
        raise OptionError(
            f"hf:{name} has the argument {min(unknown)}, expected no other than pretrained"
        )
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    wanted = next(iter(config.architectures or []), None)
    kind = getattr(transformers, wanted, None) if wanted else None
    if kind is None:
        raise ModelError(
            f"hf:{name} is a {wanted or 'model of no architecture'}, expected a class of "
            "transformers, for code that comes with a model is never run: pass file.py:function "
            "that loads it, if you trust it"
        )
    bars = transformers.utils.logging
    model = _with_weights(kind, name, bars) if options["pretrained"] else kind(config)
    own = _hugging_face_preprocess(transformers, name)
    if own is None and kind.main_input_name == TOKENS:
        own = _hugging_face_tokenizer(transformers, name)
    setattr(model, _PREPROCESS, own)
    return _tensors_only(model)


def _with_weights(kind: Any, name: str, bars: Any) -> nn.Module:
    """A network with the weights of a folder or a hub, all of which have to be there."""
    with _no_bars(bars):
        model, loading_info = kind.from_pretrained(name, output_loading_info=True)
    lacking = sorted(map(str, (*loading_info["missing_keys"], *loading_info["mismatched_keys"])))
    if lacking:
        raise ModelError(
            f"hf:{name} has no weights that fit for {', '.join(lacking[:3])} of {kind.__name__}, "
            f"{len(lacking)} in all, expected all of them: they would be random; check the model"
        )
    return model


def _tensors_only(model: nn.Module) -> nn.Module:
    """Makes a network of Transformers return logits, or tensors, and take its main input by place.

    Its class is replaced by one derived from it, so that the names of its weights stay.
    """
    kind: Any = type(model)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            args, kwargs = (), {kind.main_input_name: args[0]}
        output = kind.forward(self, *args, **kwargs)
        held = [of for of in output.values() if isinstance(of, Tensor)]
        return held[0] if len(held) == 1 else tuple(held)

    forward.__signature__ = inspect.signature(kind.forward)  # type: ignore[attr-defined]
    derived = {"forward": forward, "__module__": kind.__module__}
    model.__class__ = type(kind.__name__, (kind,), derived)
    return model


def _hugging_face_preprocess(transformers: Any, name: str) -> ModelPreprocess | OptionError | None:
    mixin = transformers.image_processing_base.ImageProcessingMixin
    try:
        table, _ = mixin.get_image_processor_dict(name)
    except OSError:  # it has none
        return None
    return _prescribed(ModelPreprocess.from_hugging_face, table)


def _hugging_face_tokenizer(transformers: Any, name: str) -> ModelText | None:
    try:
        path = transformers.utils.cached_file(name, TOKENIZER_FILE)
    except OSError:  # it has none, or one that only code of Transformers reads
        return None
    return None if path is None else ModelText(tokenizer=str(path))


def _prescribed(
    read: Callable[[Any], ModelPreprocess], table: Any
) -> ModelPreprocess | OptionError:
    """The preprocessing that a table prescribes, or why it cannot be followed."""
    try:
        return read(table)
    except OptionError as error:
        return error


_ELSEWHERE = {  # weights that are at hand
    "timm": "timm:{name},pretrained=False,checkpoint_path=FILE with weights that you have",
    "hf": "hf:FOLDER with a copy that you have",
}
_HUBS: dict[str, Callable[[str, Mapping[str, Any]], nn.Module]] = {
    "timm": _timm,
    "hf": _hugging_face,
}


def _imported(package: str, purpose: str) -> Any:
    extra = "hf" if package == "transformers" else package
    try:
        (module,) = require(extra, purpose, package)
        if package == "transformers":
            __import__("transformers.image_processing_base")
    except MissingExtraError as error:
        lacking = getattr(error.__cause__, "name", None) or package
        raise MissingExtraError(lacking, extra, purpose, _same_torch()) from error
    except Exception as error:  # a torchvision for another PyTorch, for one
        raise ModelError(
            f"importing {package} failed ({type(error).__name__}: {_first(error)}), expected "
            "packages made for the PyTorch that is installed: run pip install "
            f"--force-reinstall --no-deps torchvision{_same_torch()}"
        ) from error
    return module


def _same_torch() -> str:
    """What keeps pip from taking another build of PyTorch than the one that is installed."""
    version, _, build = torch.__version__.partition("+")
    index = f" --extra-index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f" torch=={version}{'+' if build else ''}{build}{index}"


def _quiet() -> AbstractContextManager[None]:
    """Hides what the hubs' packages write while they load: warnings, retries, their own bars."""
    return quiet("huggingface_hub", "timm", "transformers")


@contextmanager
def _weights_only() -> Iterator[None]:
    """Keeps PyTorch from running code of a checkpoint, whatever a hub's package asks it for.

    Older versions of timm unpickle all that a file holds.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    held = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if held is None:
            del os.environ[name]
        else:
            os.environ[name] = held


@contextmanager
def _no_bars(logging: Any) -> Iterator[None]:
    """Hides the bars of Transformers, through its own `logging`."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _first(error: BaseException) -> str:
    """The first line of what an error says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason")
