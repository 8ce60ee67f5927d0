"""Networks by their names in timm and in Transformers; stand-ins of both, as neither is needed."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from texts import WORDS, Words
from torch import Tensor, nn
from typer.testing import CliRunner

import secateur
from secateur.cli.app import app
from secateur.data.preprocess import ModelPreprocess, Preprocess, completed
from secateur.errors import MissingExtraError, ModelError, OptionError, SecateurWarning
from secateur.frontends.hubs import own_preprocess
from secateur.frontends.loading import load_model

CONFIG = {
    "input_size": (3, 12, 12),
    "interpolation": "bicubic",
    "mean": (0.4, 0.5, 0.6),
    "std": (0.2, 0.3, 0.4),
    "crop_pct": 0.8,
}
OWN = ModelPreprocess(
    size=12, resize=15, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), interpolation="bicubic"
)


def network(num_classes: int = 5) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


def create_model(name: str, *, pretrained: bool, num_classes: int = 5) -> nn.Module:
    if name == "offline" and pretrained:
        raise FileNotFoundError("no way to the hub\nand more lines")
    model = network(num_classes)
    if pretrained:
        nn.init.constant_(model[5].bias, 7.0)
    return model


@pytest.fixture
def timm(monkeypatch):
    """A stand-in of the package."""
    fake = types.ModuleType("timm")
    names = ["resnet18", "offline"]
    data = types.SimpleNamespace(resolve_model_data_config=lambda _: CONFIG)
    vars(fake).update(
        is_model=names.__contains__,
        list_models=lambda: names,
        create_model=create_model,
        data=data,
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


class Vision(nn.Module):
    """In the manner of Transformers: input and outputs by name, a class with a loader."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    missing: tuple[str, ...] = ()

    def __init__(self, config: object) -> None:
        super().__init__()
        self.config = config
        self.body = network()

    def forward(self, labels: object = None, pixel_values: object = None) -> dict:
        assert labels is None
        return {"loss": None, "logits": self.body(pixel_values), "hidden_states": None}

    @classmethod
    def from_pretrained(cls, name: str, *, output_loading_info: bool) -> tuple:
        model = cls(None)
        nn.init.constant_(model.body[5].bias, 7.0)
        return model, {"missing_keys": set(cls.missing), "mismatched_keys": set()}


class Detector(Vision):
    def forward(self, pixel_values: object = None) -> dict:
        logits = self.body(pixel_values)
        return {"logits": logits, "boxes": 2 * logits, "hidden_states": (logits,)}


class Lacking(Vision):
    missing = ("body.5.weight", "body.5.bias")


class Text(nn.Module):
    """Takes tokens, and has other inputs before its main one."""

    main_input_name = "input_ids"

    def __init__(self, config: object) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(300, 8), nn.Linear(8, 70)

    @classmethod
    def from_pretrained(cls, name: str, *, output_loading_info: bool) -> tuple:
        torch.manual_seed(0)
        return cls(None), {"missing_keys": set(), "mismatched_keys": set()}

    def forward(
        self, pixels: Tensor | None = None, input_ids: Tensor | None = None, **more: Tensor
    ) -> dict[str, Tensor]:
        return {"logits": self.head(self.words(input_ids).mean(1)), **more}


@pytest.fixture
def transformers(monkeypatch, tmp_path):
    """A stand-in of the package; `hf:NAME` is of the class NAME."""

    class AutoConfig:
        @staticmethod
        def from_pretrained(name: str, *, trust_remote_code: bool) -> object:
            if name == "offline":
                raise OSError("We couldn't connect to the hub\nand more lines")
            return types.SimpleNamespace(architectures=[name] if name != "none" else None)

    class ImageProcessingMixin:
        @staticmethod
        def get_image_processor_dict(name: str) -> tuple[dict, dict]:
            if name != "Vision":
                raise OSError("there is none")
            held = {"size": {"height": 12, "width": 12}, "image_mean": [0.5], "image_std": [0.25]}
            return held | {"resample": 3}, {}

    fake = types.ModuleType("transformers")
    base = types.ModuleType("transformers.image_processing_base")
    vars(base)["ImageProcessingMixin"] = ImageProcessingMixin
    bars = {
        "is_progress_bar_enabled": lambda: True,
        "disable_progress_bar": lambda: None,
        "enable_progress_bar": lambda: None,
    }

    def cached_file(name: str, file: str) -> str:
        if name != "Text":
            raise OSError(f"{name} has no {file}")
        return str(tmp_path / file)

    vars(fake).update(
        AutoConfig=AutoConfig,
        image_processing_base=base,
        utils=types.SimpleNamespace(logging=types.SimpleNamespace(**bars), cached_file=cached_file),
        **{kind.__name__: kind for kind in (Vision, Detector, Lacking, Text)},
    )
    monkeypatch.setitem(sys.modules, "transformers", fake)
    monkeypatch.setitem(sys.modules, "transformers.image_processing_base", base)


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(33):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def prune(model: str, data: Path, out: Path, *more: object):
    how = ["--method", "magnitude", "--allocation", "uniform", "--sparsity", 0.5]
    return invoke("prune", model, "--data", data, "-o", out, *how, *more)


@pytest.mark.parametrize("model", ["timm:resnet18", "hf:Vision", "hf:Detector"])
def test_a_network_by_its_name_comes_with_its_weights(model, timm, transformers) -> None:
    state = load_model(model).state_dict()
    assert [bool((state[key] == 7).all()) for key in state if key.endswith("5.bias")] == [True]
    again = load_model(f"{model},pretrained=False").state_dict()
    assert not any((again[key] == 7).any() for key in again)
    other = load_model(f"{model},pretrained=False").state_dict()
    assert all(torch.equal(again[key], other[key]) for key in again)  # the same each time


def test_a_network_of_transformers_takes_a_tensor_and_gives_tensors(transformers) -> None:
    image = torch.randn(2, 3, 12, 12)
    model = load_model("hf:Vision")
    assert isinstance(model, Vision)
    assert torch.equal(model(image), model.body(image))
    found = load_model("hf:Detector")(image)
    assert [of.shape for of in found] == [(2, 5), (2, 5)]
    assert set(model.state_dict()) == set(Vision(None).state_dict())  # what is written fits it


def test_a_network_of_tokens_from_a_hub_takes_them_by_name_or_alone(transformers, tmp_path) -> None:
    ids = torch.randint(20, (40, 6), generator=torch.Generator().manual_seed(0))
    model = load_model("hf:Text")
    assert torch.equal(model(ids), model(input_ids=ids))
    for data in (ids, {"input_ids": ids}):
        result = secateur.prune(model, data, sparsity=0.5, allocation="uniform")
        assert result.report.sparsity == pytest.approx(0.5, abs=0.01)
    assert [layer.name for layer in secateur.inspect(model, data=ids).layers] == ["head"]


def test_a_network_of_tokens_from_a_hub_brings_its_tokenizer(
    transformers, tmp_path, monkeypatch
) -> None:
    """Texts are taken with it, all other data without."""
    tokenizers = types.ModuleType("tokenizers")
    vars(tokenizers)["Tokenizer"] = Words
    monkeypatch.setitem(sys.modules, "tokenizers", tokenizers)
    (tmp_path / "tokenizer.json").write_text(Words().to_str())
    lines = [f"{one} {other}" for one in WORDS[:6] for other in WORDS[:6]]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    (tmp_path / "code.py").write_text(f"def texts():\n    return {lines!r}\n")
    own = own_preprocess(load_model("hf:Text"))
    assert own.tokenizer == str(tmp_path / "tokenizer.json")
    rows = [{"text": line} for line in lines]
    for data in (lines, str(tmp_path / "lines.txt"), f"{tmp_path / 'code.py'}:texts", rows):
        found = secateur.load_images(data, preprocess=own)
        assert len(found.samples) == len(lines)
        assert set(found.samples.tensors) > {"input_ids", "attention_mask"}
    assert secateur.load_images("text:40", preprocess=own).synthetic.startswith("40 texts")
    ids = torch.randint(20, (40, 6), generator=torch.Generator().manual_seed(0))
    torch.save(ids, tmp_path / "ids.pt")
    code = f"import torch\ndef ids():\n    return torch.load({str(tmp_path / 'ids.pt')!r})\n"
    (tmp_path / "ids.py").write_text(code)
    for data in (ids, {"input_ids": ids}, f"{tmp_path / 'ids.py'}:ids"):
        (found,) = secateur.load_images(data, preprocess=own).samples.tensors.values()
        assert torch.equal(found, ids)
    result = prune("hf:Text", tmp_path / "lines.txt", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "texts are tokenized as the network says" in result.stderr


def test_arguments_of_timm_stand_behind_the_name(timm) -> None:
    assert load_model("timm:resnet18,num_classes=9")[5].out_features == 9
    for wrong in ("timm:resnet18,9", "timm:resnet18,=9", "timm:resnet18,"):
        with pytest.raises(OptionError, match="expected an argument such as num_classes=10"):
            load_model(wrong)
    with pytest.raises(ModelError, match=r"cannot be made .TypeError: .*frobnicate"):
        load_model("timm:resnet18,frobnicate=1")


def test_weights_of_ones_own_are_loaded_and_none_fetched(timm, tmp_path) -> None:
    path = tmp_path / "weights.pt"
    state = {key: torch.ones_like(of) for key, of in network().state_dict().items()}
    torch.save(state, path)
    model = load_model("timm:offline", path)
    assert all(bool((of == 1).all()) for of in model.state_dict().values())


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_of_a_checkpoint_is_run_whatever_the_package_asks(
    timm, tmp_path, monkeypatch
) -> None:
    ran, path = tmp_path / "ran", tmp_path / "weights.pt"
    torch.save({"state_dict": {"x": Trap(ran)}}, path)

    def create(name, checkpoint_path, **_):  # as timm did before it trusted nobody
        torch.load(checkpoint_path, weights_only=False)

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(ModelError, match="cannot be made"):
        load_model(f"timm:resnet18,checkpoint_path={path}")
    assert not ran.exists()
    torch.load(path, weights_only=False)  # elsewhere it may be asked for as before
    assert ran.exists()


@pytest.mark.parametrize("model", ["timm:resnet18", "hf:Vision"])
def test_pruned_and_evaluated_by_name(model, timm, transformers, pictures, tmp_path) -> None:
    out = tmp_path / "out"
    result = prune(model, pictures, out)
    assert result.exit_code == 0, result.output
    names = set(load_model(model).state_dict())
    assert set(load_file(out / "model.safetensors")) == names
    weights = out / "model.safetensors"
    again = invoke(
        "evaluate", weights, "--model", model, "--eval", pictures, "--against", model, "--json"
    )
    assert again.exit_code == 0, again.output
    assert "agreement" in again.stdout


def test_pictures_are_prepared_as_the_network_says(timm, pictures, tmp_path) -> None:
    result = prune("timm:resnet18", pictures, tmp_path / "out")
    assert "note: pictures are prepared as the network says (short side 15, crop 12" in (
        result.stderr
    )
    report = secateur.Report.load(tmp_path / "out" / "report.json")
    own = report.requested["preprocess"]
    assert (own["size"], own["resize"], own["interpolation"]) == (12, 15, "bicubic")
    options = {"sparsity": 0.5, "method": "magnitude", "allocation": "uniform"}
    found = secateur.prune("timm:resnet18", pictures, **options)
    held = found.report.requested["preprocess"]
    assert {key: list(of) if isinstance(of, tuple) else of for key, of in held.items()} == own
    expected = secateur.load_images(pictures, preprocess=OWN).tensor
    assert tuple(expected.shape) == (33, 3, 12, 12)
    direct = secateur.prune("timm:resnet18", expected, **options)
    tensors = found.model.state_dict()
    assert all(torch.equal(tensors[key], of) for key, of in direct.model.state_dict().items())


def test_options_replace_what_the_network_says_one_by_one() -> None:
    assert completed(None, None) is None
    assert completed(None, OWN) is OWN
    asked = Preprocess(mean=(0.1, 0.1, 0.1))
    assert completed(asked, None) is asked
    assert completed(asked, OWN) == Preprocess(
        size=12, resize=15, mean=(0.1, 0.1, 0.1), std=OWN.std, interpolation="bicubic"
    )
    found = completed(Preprocess(size=32), OWN)
    assert (found.size, found.resize, found.mean) == (32, None, OWN.mean)
    assert completed(Preprocess(channels=1), OWN).mean is None


def test_inputs_that_are_prepared_go_without(timm) -> None:
    images = torch.randn(40, 3, 12, 12)
    secateur.prune("timm:resnet18", images, sparsity=0.5, method="magnitude", allocation="uniform")


def test_inspect_takes_the_size_that_the_network_says(timm, transformers) -> None:
    for model in ("timm:resnet18", "hf:Vision"):
        assert secateur.inspect(model).layers[0].output[-1] == 10


def test_a_preprocess_that_cannot_be_followed_is_told(timm, monkeypatch) -> None:
    monkeypatch.setitem(CONFIG, "crop_mode", "border")
    with pytest.warns(SecateurWarning, match=r"what timm:resnet18 says of its images is not foll"):
        model = load_model("timm:resnet18")
    assert own_preprocess(model) is None


def test_a_network_without_a_preprocess_has_none(transformers) -> None:
    assert own_preprocess(load_model("hf:Detector")) is None
    assert own_preprocess(network()) is None


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pictures_are_resized_as_asked(interpolation) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    found = Preprocess(resize=10, mean=(0.0,), std=(1.0,), interpolation=interpolation)(image)
    resized = image.resize((12, 10), Image.Resampling[interpolation.upper()])
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    torch.testing.assert_close(found, expected)
    with pytest.raises(OptionError, match="interpolation is 'cubic', expected 'nearest', 'box'"):
        Preprocess(interpolation="cubic")


REFUSED = {
    "timm:resnet19": r"timm knows no network 'resnet19'.*did you mean resnet18",
    "timm:": "expected a name behind it, such as timm:resnet18",
    "timm:offline": r"could not be fetched \(no way to the hub\).*checkpoint_path=FILE",
    "hf:offline": r"could not be fetched \(We couldn't connect to the hub\).*hf:FOLDER",
    "hf:none": "is a model of no architecture, expected a class of transformers",
    "hf:TheirOwn": "is a TheirOwn, expected a class of transformers, for code that comes with",
    "hf:Lacking": r"no weights that fit for body\.5\.bias, body\.5\.weight of Lacking, 2 in all",
    "hf:Vision,size=3": "has the argument size, expected no other than pretrained",
}


@pytest.mark.parametrize("model", REFUSED)
def test_what_cannot_be_loaded_is_one_sentence(model, timm, transformers) -> None:
    result = invoke("inspect", model)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    with pytest.raises((ModelError, OptionError), match=REFUSED[model]):
        load_model(model)


@pytest.mark.parametrize(("model", "package"), [("timm:a", "timm"), ("hf:a", "transformers")])
def test_without_the_package_there_is_the_install_line(model, package, monkeypatch) -> None:
    """It keeps pip from taking another build of PyTorch than the one that is installed."""
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    extra = model.partition(":")[0]
    line = (
        rf"needs the package {package}, which is not installed: run pip install '\.\[{extra}\]' "
        r"torch==2\.13\.0\+cpu --extra-index-url https://download\.pytorch\.org/whl/cpu in your"
    )
    with pytest.raises(MissingExtraError, match=line):
        load_model(model)
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    with pytest.raises(MissingExtraError, match=r"\]' torch==2\.13\.0 in your clone"):
        load_model(model)


def test_a_package_that_cannot_be_imported_is_one_sentence(tmp_path, monkeypatch) -> None:
    """As where torchvision was built for another PyTorch."""
    text = "raise RuntimeError('operator torchvision::nms does not exist')\n"
    (tmp_path / "timm.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(ModelError, match=r"importing timm failed .RuntimeError: operator torchvis"):
        load_model("timm:resnet18")


def test_the_warning_of_unscaled_pictures_is_for_networks_that_say_nothing(timm, pictures) -> None:
    options = {"sparsity": 0.5, "method": "magnitude", "allocation": "uniform"}
    with pytest.warns(SecateurWarning, match="mean"):
        secateur.prune(network(), pictures, **options)
