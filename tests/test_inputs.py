"""Networks of several inputs, tokens and masks: the same weights however the inputs are given."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from inputs import trace
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import secateur
from secateur.data.sources import load_images
from secateur.errors import DataError
from secateur.evaluation.inference import first_output
from secateur.frontends import open as open_model
from secateur.frontends.loading import load_model
from secateur.frontends.openvino.frontend import OpenVinoFrontend
from secateur.frontends.openvino.runtime import as_ir
from secateur.network.samples import Samples, Signature, as_samples
from secateur.render.sentences import data_sentence

COUNT, LENGTH, WORDS = 48, 9, 40


class Two(nn.Module):
    """Takes an image and some numbers beside it, and may take a third input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.beside = nn.Linear(5, 8)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor, numbers: Tensor, scale: Tensor | None = None) -> Tensor:
        seen = self.body(self.stem(image).relu()).relu().mean((2, 3))
        seen = seen if scale is None else seen * scale
        return self.head(torch.cat([seen, self.beside(numbers).relu()], 1))


class Encoder(nn.Module):
    """A small encoder of tokens: attention and a mean that leave padding out."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 32), nn.Linear(32, width)
        self.head = nn.Linear(width, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids)
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        scores = scores.masked_fill(attention_mask[:, None] == 0, -1e9)
        x = self.norm(x + self.out(scores.softmax(-1) @ v))
        x = x + self.down(self.up(x).relu())
        real = attention_mask[..., None].to(x.dtype)
        return self.head((x * real).sum(1) / real.sum(1))


def made(kind: type[nn.Module]) -> Any:
    torch.manual_seed(0)
    return kind().eval().requires_grad_(False)


def tokens(seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, LENGTH + 1, (COUNT,), generator=generator)
    lengths[0] = LENGTH
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    ids = torch.randint(1, WORDS, (COUNT, LENGTH), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask}


IMAGE = torch.randn(COUNT, 3, 6, 6, generator=torch.Generator().manual_seed(2))
NUMBERS = torch.randn(COUNT, 5, generator=torch.Generator().manual_seed(3))
BOTH = {"image": IMAGE, "numbers": NUMBERS}
TOKENS = tokens()


class Rows(Dataset):
    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        if row >= COUNT:
            raise IndexError(row)
        return {name: column[row] for name, column in self.columns.items()}


def weights(model: nn.Module, data: Any, **options: Any) -> dict[str, Tensor]:
    options = {"sparsity": 0.5, "method": "least-squares", "allocation": "uniform", **options}
    return dict(secateur.prune(model, data, **options).model.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "source",
    [
        lambda folder: (IMAGE, NUMBERS),
        lambda folder: {"numbers": NUMBERS.numpy(), "image": IMAGE.double(), "id": [1] * COUNT},
        lambda folder: DataLoader(TensorDataset(IMAGE, NUMBERS), batch_size=10),
        lambda folder: DataLoader(Rows(BOTH), batch_size=7),
        lambda folder: Rows(BOTH),
        lambda folder: DataLoader(Rows(BOTH), batch_size=7, collate_fn=list),
        lambda folder: ({**BOTH, "label": torch.zeros(COUNT)} for _ in range(1)),
        lambda folder: (
            np.savez(folder / "d.npz", **{n: of.numpy() for n, of in BOTH.items()})
            or str(folder / "d.npz")
        ),
        lambda folder: load_images(BOTH),
    ],
    ids=["tuple", "mapping", "tuples", "mappings", "dataset", "list", "generator", "npz", "loaded"],
)
def test_inputs_are_the_same_from_every_source(source, tmp_path) -> None:
    expected = weights(made(Two), BOTH)
    assert same(weights(made(Two), source(tmp_path)), expected)


def test_labels_are_found_beside_the_inputs() -> None:
    labels = torch.arange(COUNT) % 4
    for data in ({**BOTH, "labels": labels}, (IMAGE, NUMBERS, labels)):
        found = secateur.evaluate(made(Two), data)
        assert found.images == COUNT
        assert found == secateur.evaluate(made(Two), BOTH, labels)


def test_one_image_tensor_may_come_by_its_name_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4))
    net = net.eval().requires_grad_(False)
    expected = weights(net, IMAGE)
    labels = torch.arange(COUNT) % 4
    for data in ({"input": IMAGE}, {"pixel_values": IMAGE.numpy(), "label": labels}):
        assert same(weights(net, data), expected)
        assert load_images(data, max_images=7).tensor.shape == (7, 3, 6, 6)
    found = secateur.evaluate(net, {"pixel_values": IMAGE, "label": labels})
    assert found == secateur.evaluate(net, IMAGE, labels)


def test_an_input_that_has_a_default_may_be_left_out_or_given() -> None:
    net = made(Two)
    scaled = {**BOTH, "scale": torch.full((COUNT, 1), 2.0)}
    assert len(trace(net, IMAGE[:2], NUMBERS[:2]).inputs) == 2
    torch.testing.assert_close(first_output(net, scaled), net(**scaled))
    assert not same(weights(made(Two), scaled), weights(made(Two), BOTH))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (IMAGE, r"the data give 1 input, the network takes 2 inputs \(image, numbers\)"),
        ({"image": IMAGE}, r"give 1 input"),
        ({"picture": IMAGE, "vector": NUMBERS}, "hold picture, vector, the network takes image"),
        ({"image": IMAGE, "numbers": NUMBERS[:5]}, "48 of image, 5 of numbers.*as many samples"),
        ({"image": IMAGE, "numbers": NUMBERS * float("nan")}, "NaN or Inf"),
    ],
)
def test_inputs_that_do_not_fit_are_told(data, says) -> None:
    with pytest.raises(DataError, match=says):
        secateur.prune(made(Two), data, sparsity=0.5)


def test_a_sentence_is_the_same_whatever_the_padding_behind_it() -> None:
    """Statistics are taken from its real positions alone."""
    longer = {name: nn.functional.pad(of, (0, 6)) for name, of in TOKENS.items()}
    one, other = (weights(made(Encoder), data) for data in (TOKENS, longer))
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-2, atol=1e-3)
    unmasked = {**longer, "attention_mask": torch.ones_like(longer["attention_mask"])}
    third = weights(made(Encoder), unmasked)
    assert not torch.allclose(third["up.weight"], one["up.weight"], rtol=1e-2, atol=1e-3)


def test_batches_of_several_lengths_are_padded_to_the_longest() -> None:
    def batches() -> list[dict[str, Tensor]]:
        parts = Samples(TOKENS).split(6)
        lengths = [int(part.tensors["attention_mask"].sum(1).max()) for part in parts]
        assert len(set(lengths)) > 1
        assert lengths[0] == LENGTH
        return [
            {name: of[:, :length] for name, of in part.tensors.items()}
            for part, length in zip(parts, lengths, strict=True)
        ]

    assert same(weights(made(Encoder), batches()), weights(made(Encoder), TOKENS))
    ragged = {
        name: [row[: int(mask.sum())].tolist() for row, mask in zip(of, masks, strict=True)]
        for masks in [TOKENS["attention_mask"]]
        for name, of in TOKENS.items()
    }
    assert same(weights(made(Encoder), ragged), weights(made(Encoder), TOKENS))
    with pytest.raises(DataError, match="expected one length, or an input attention_mask"):
        load_images([{"input_ids": of["input_ids"]} for of in batches()], takes=_SIGNATURE)


_SIGNATURE = Signature(names=("input_ids",), required=("input_ids",))


def test_no_layer_behind_embeddings_is_the_first() -> None:
    """In no kind of file: the same network is to get the same zeros."""
    net = made(Encoder)
    file = open_model(net).to_onnx(TOKENS)
    for model in (net, file, OpenVinoFrontend(as_ir(file))):
        graph = open_model(model).trace(Samples(TOKENS)[:2])
        assert {of.protected for of in graph.layers} == {None}
    images = {of.name: of.protected for of in trace(made(Two), IMAGE[:2], NUMBERS[:2]).layers}
    assert images["stem"] == "first layer"


def test_a_network_of_tokens_is_pruned_saved_and_written_as_onnx(tmp_path) -> None:
    net = made(Encoder)
    result = secateur.prune(net, TOKENS, sparsity=0.5, evaluation=tokens(5))
    written = result.save(tmp_path / "out", onnx=True)
    assert {str(path) for path in written} >= {"model.onnx", "model.safetensors"}
    assert result.report.evaluation["pruned"].images == COUNT
    assert result.report.data.inputs == {"input_ids": (LENGTH,), "attention_mask": (LENGTH,)}
    assert not [of for of in result.report.warnings if "differs" in of]


def test_neurons_and_heads_leave_a_network_of_tokens() -> None:
    net = made(Encoder)
    result = secateur.prune(net, TOKENS, max_macs=0.7, pattern=secateur.Channels(multiple=1))
    assert result.report.macs_fraction <= 0.7
    shorter = {name: of[:, :4] for name, of in TOKENS.items()}  # of any length
    assert result.model(**shorter).shape == (COUNT, 5)


def test_a_signature_binds_by_name_else_by_place() -> None:
    takes = Signature(names=("a", "b", "c"), required=("a", "b"))
    x, y = torch.zeros(2, 1), torch.ones(2, 1)
    bound = takes.bind(Samples({"b": y, "a": x}))
    assert list(bound.tensors) == ["a", "b"]
    assert bound.tensors["b"] is y
    assert list(takes.bind(Samples({"0": x, "1": y})).tensors) == ["a", "b"]
    one = Signature(names=("a",), required=("a",))
    assert list(one.bind(as_samples(x)).tensors) == ["a"]
    assert list(one.bind(Samples({"other": x})).tensors) == ["a"]
    for wrong in ({"a": x}, {"a": x, "b": y, "d": x}, {"0": x, "1": x, "2": x, "3": x}):
        with pytest.raises(DataError, match=re.escape("the network takes 2 inputs (a, b)")):
            takes.bind(Samples(wrong))
    rest = Signature(any_number=True)
    assert list(rest.bind(Samples({"0": x, "1": y})).tensors) == ["0", "1"]


def test_inputs_are_bound_for_a_module_alone_too() -> None:
    net = made(Two)
    frontend = open_model(net)
    assert frontend.signature.required == ("image", "numbers")
    with frontend.running(Samples({"0": IMAGE[:2], "1": NUMBERS[:2]})) as run:
        found = run(Samples({"0": IMAGE, "1": NUMBERS}))
    torch.testing.assert_close(found, net(IMAGE, NUMBERS))


def test_a_network_of_several_inputs_is_inspected_with_some_of_each() -> None:
    found = secateur.inspect(made(Two), data=BOTH)
    assert [layer.name for layer in found.layers] == ["stem", "body", "beside", "head"]
    with pytest.raises(DataError, match=r"takes the inputs image, numbers.*pass data"):
        secateur.inspect(made(Two))
    with pytest.raises(secateur.OptionError, match="got a shape and data"):
        secateur.inspect(made(Two), (3, 6, 6), data=BOTH)


def test_a_program_of_several_inputs_is_read_pruned_and_written(tmp_path) -> None:
    """They are named as they were exported: by place or by name."""
    net, path = made(Encoder), tmp_path / "encoder.pt2"
    batch = {0: torch.export.Dim.DYNAMIC}
    given = {name: of[:2] for name, of in TOKENS.items()}
    for args, kwargs in ((tuple(given.values()), {}), ((), given)):
        shapes = dict.fromkeys(TOKENS, batch)
        program = torch.export.export(net, args, kwargs, dynamic_shapes=shapes)
        torch.export.save(program, path)
        result = secateur.prune(str(path), TOKENS, sparsity=0.5, allocation="uniform")
        written = result.save(tmp_path / f"out{len(args)}")
        assert "model.pt2" in {str(of) for of in written}
        again = open_model(str(tmp_path / f"out{len(args)}" / "model.pt2"))
        torch.testing.assert_close(first_output(again, TOKENS), first_output(result.model, TOKENS))


class Renamed(nn.Module):
    """An encoder whose mask has another name, and perhaps the other sense."""

    def __init__(self, marks_padding: bool) -> None:
        super().__init__()
        self.encoder, self.marks_padding = made(Encoder), marks_padding

    def forward(self, ids: Tensor, hidden: Tensor) -> Tensor:
        real = (hidden == 0) if self.marks_padding else (hidden != 0)
        return self.encoder(ids, real.long())


@pytest.mark.parametrize("marks_padding", [True, False])
def test_a_mask_may_have_any_name_and_either_sense(marks_padding) -> None:
    real = TOKENS["attention_mask"]
    hidden = (1 - real).bool() if marks_padding else real.bool()
    data = {"ids": TOKENS["input_ids"], "hidden": hidden}
    mask = "~hidden" if marks_padding else "hidden"
    expected = weights(made(Encoder), TOKENS)
    found = weights(Renamed(marks_padding).eval(), data, mask=mask)
    for name, weight in expected.items():
        torch.testing.assert_close(found[f"encoder.{name}"], weight)
    ignored = weights(Renamed(marks_padding).eval(), data)
    assert not torch.allclose(ignored["encoder.up.weight"], expected["up.weight"])
    parts = [
        {name: of[at : at + 8, :length] for name, of in data.items()}
        for at, length in ((0, 9), (8, 8))
    ]
    joined = Samples.joined([Samples(part, mask) for part in parts])
    assert joined.mask is not None
    assert not joined.mask[8:, 8].any()


def test_the_report_says_how_much_is_padding() -> None:
    report = secateur.prune(made(Encoder), TOKENS, sparsity=0.5, allocation="uniform").report
    share = 1 - float(TOKENS["attention_mask"].float().mean())
    assert f"{share:.0%} of the samples' 9 positions are padding" in " ".join(report.notes)
    assert "48 samples from tensors" in str(report)
    assert "48 samples of shape 9 input_ids and 9 attention_mask" in data_sentence(report)
    with pytest.raises(secateur.OptionError, match="mask is 'nothing', expected an input of"):
        secateur.prune(made(Encoder), TOKENS, sparsity=0.5, mask="nothing")


class Fused(nn.Module):
    """PyTorch's own encoder, whose heads can leave only the traced program."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.encoder(self.words(input_ids), src_key_padding_mask=attention_mask == 0)
        return x[:, 0]


def test_a_smaller_program_takes_sentences_of_any_length(tmp_path) -> None:
    pattern = secateur.Channels(multiple=1)
    result = secateur.prune(made(Fused), TOKENS, max_macs=0.6, pattern=pattern)
    assert any("traced program" in note for note in result.report.notes)
    assert not any("this length only" in note for note in result.report.notes)
    for folder in ("other", "out"):
        result.save(tmp_path / folder)
    told = [note for note in result.report.notes if "does not load into the class" in note]
    assert len(told) == 1
    again = load_model(str(tmp_path / "out" / "model.pt2"))
    shorter = {name: of[:3, :5] for name, of in TOKENS.items()}
    torch.testing.assert_close(again(**shorter), result.model(**shorter))


class Tagger(Encoder):
    """An encoder with scores for each token."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids)
        return self.head(self.norm(x + self.down(self.up(x).relu())))


def test_padding_does_not_count_where_networks_are_judged() -> None:
    net, other = made(Tagger), made(Tagger)
    with torch.no_grad():
        other.head.weight[0] *= 1.5
    expected = secateur.evaluate(net, TOKENS, reference=other).output_error
    assert expected is not None
    longer = {name: nn.functional.pad(of, (0, 6)) for name, of in TOKENS.items()}
    lengths = TOKENS["attention_mask"].sum(1).tolist()
    rows = [
        {name: of[row : row + 1, :length] for name, of in TOKENS.items()}
        for row, length in enumerate(lengths)
    ]
    for data in (longer, rows):
        found = secateur.evaluate(net, data, reference=other, batch_size=5)
        assert found.output_error == pytest.approx(expected, rel=1e-4)
    blind = {**longer, "attention_mask": torch.ones_like(longer["attention_mask"])}
    blinded = secateur.evaluate(net, blind, reference=other).output_error
    assert blinded != pytest.approx(expected, rel=0.01)
    with pytest.warns(
        secateur.SecateurWarning, match="48 of 48 evaluation samples are calibration"
    ):
        result = secateur.prune(net, TOKENS, sparsity=0.5, evaluation=longer, allocation="uniform")
    judged = result.report.evaluation["pruned"].output_error
    assert judged == pytest.approx(result.report.calibration.output_error, rel=1e-3)


class Branches(nn.Module):
    """Tokens with a mask, and patches beside them that happen to be as many."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.seen, self.more = made(Encoder), nn.Linear(7, 16), nn.Linear(16, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, patches: Tensor) -> Tensor:
        seen = self.more(self.seen(patches).relu().mean(1))
        return self.encoder(input_ids, attention_mask) + seen


def test_a_mask_is_about_its_own_input_alone() -> None:
    patches = torch.randn(COUNT, LENGTH, 7, generator=torch.Generator().manual_seed(5))
    data = {**TOKENS, "patches": patches}
    how = {"sparsity": 0.5, "allocation": "uniform", "include": "*"}
    report = secateur.prune(made(Branches), data, **how).report
    samples = {layer.name: layer.samples for layer in report.layers}
    assert samples["seen"] == COUNT * LENGTH
    assert samples["encoder.up"] == int(TOKENS["attention_mask"].sum())


def test_batches_are_padded_on_the_side_where_they_are_padded() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    parts = [
        {"ids": torch.tensor([[0, 5, 6], [7, 8, 9]]), "attention_mask": mask},
        {"ids": torch.tensor([[3, 4]]), "attention_mask": torch.ones(1, 2).long()},
    ]
    joined = Samples.joined([Samples(part) for part in parts])
    assert joined.tensors["ids"].tolist() == [[0, 5, 6], [7, 8, 9], [0, 3, 4]]
    flipped = [Samples({name: of.flip(1) for name, of in part.items()}) for part in parts]
    assert Samples.joined(flipped).tensors["ids"].tolist() == [[6, 5, 0], [9, 8, 7], [4, 3, 0]]
    added = Samples({"attention_mask": torch.tensor([[0.0, -1e4]])})  # to be added to scores
    assert added.mask is not None
    assert added.mask.tolist() == [[True, False]]


LABELS = torch.arange(COUNT) % 4


@pytest.mark.parametrize(
    "data",
    [
        (BOTH, LABELS),
        ((IMAGE, NUMBERS), LABELS),
        DataLoader(TensorDataset(IMAGE, NUMBERS, LABELS), batch_size=9),
        [({"image": IMAGE, "numbers": NUMBERS}, LABELS)],
    ],
    ids=["mapping and labels", "tuple and labels", "loader", "batches of pairs"],
)
def test_labels_stand_behind_the_inputs(data) -> None:
    expected = secateur.evaluate(made(Two), BOTH, LABELS)
    assert secateur.evaluate(made(Two), data).top1 == expected.top1
    assert same(weights(made(Two), data), weights(made(Two), BOTH))


class Masked(Encoder):
    """A network whose mask has a default, as those of Transformers."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return super().forward(input_ids, mask)


def test_tokens_come_from_loaders_and_with_a_mask_that_has_a_default() -> None:
    ids, mask = TOKENS.values()
    expected, without = weights(made(Masked), TOKENS), weights(made(Masked), ids)
    assert not same(expected, without)
    for data in ((ids, mask), DataLoader(TensorDataset(ids, mask), batch_size=48)):
        assert same(weights(made(Masked), data), expected)
    for data in ([ids[:20], ids[20:]], DataLoader(TensorDataset(ids), batch_size=20)):
        assert same(weights(made(Masked), data), without)
    rows = [
        {name: of[row, : int(mask[row].sum())].tolist() for name, of in TOKENS.items()}
        for row in range(COUNT)
    ]
    loader = DataLoader(rows, batch_size=7, collate_fn=list)  # type: ignore[arg-type]
    for data in (rows, loader):
        assert same(weights(made(Masked), data), expected)


def test_what_cannot_be_meant_is_told() -> None:
    ids, mask = TOKENS.values()
    ragged = [[1, 2], [1, 2, 3]] * 24
    with pytest.raises(DataError, match=r"input_ids of 2 to 3 positions.*attention_mask"):
        load_images({"input_ids": ragged}, takes=_SIGNATURE)
    with pytest.raises(DataError, match="numbers holds complex numbers"):
        secateur.prune(made(Two), {**BOTH, "numbers": NUMBERS + 1j}, sparsity=0.5)
    with pytest.raises(DataError, match=r"looks it up in words.weight, which has 40 rows"):
        secateur.prune(
            made(Encoder), {"input_ids": ids + 100, "attention_mask": mask}, sparsity=0.5
        )
    found = load_images({**BOTH, "labels": LABELS[:5]}, labelled=True)
    assert any("expected one class number per sample" in text for text in found.warnings)
    marked = {"ids": [[1, 2, 3], [1]], "pad": [[0, 0, 0], [0]]}
    takes = Signature(names=("ids", "pad"), required=("ids", "pad"), masked_by="~pad")
    mask = load_images(marked, takes=takes).samples.mask
    assert mask is not None
    assert mask.tolist() == [[True] * 3, [True, False, False]]


class Changing(nn.Module):
    """Changes its inputs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return self.b(self.a(x).relu())


def test_data_stay_as_they_are_where_a_network_changes_its_inputs() -> None:
    net, data = made(Changing), NUMBERS.clone()
    found = secateur.evaluate(net, data, reference=net)
    assert (found.agreement, found.kl) == (100.0, 0.0)
    secateur.prune(net, data, sparsity=0.5, include="*")
    assert torch.equal(data, NUMBERS)
