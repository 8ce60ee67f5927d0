"""Texts as inputs of a network, with a stand-in of a tokenizer and with real ones."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from texts import WORDS, Words
from torch import Tensor, nn
from typer.testing import CliRunner

import secateur
from secateur import DataError, MissingExtraError, OptionError, Text
from secateur.cli.app import app
from secateur.data.sources import load_images
from secateur.data.synthetic_text import Vocabulary, synthetic_texts
from secateur.network.samples import Signature

HOW = Text(tokenizer=Words(), max_length=8)
FAST = {"method": "magnitude", "allocation": "uniform", "progress": False}
BERT = Signature(names=("input_ids", "attention_mask", "token_type_ids"), required=("input_ids",))


def load(data, how=HOW, **options):
    return load_images(data, preprocess=how, takes=BERT, **options)


def numbers(text: str) -> list[int]:
    return [Words().get_vocab().get(word, 1) for word in text.split()]


def test_texts_are_numbered_cut_and_padded() -> None:
    found = load(["ba be", "bi bo bu ca ce ci co cu", "ba"])
    tensors = found.samples.tensors
    assert {name: (of.dtype, tuple(of.shape)) for name, of in tensors.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (torch.int64, (3, 8))
    )
    assert tensors["input_ids"][0].tolist() == [2, *numbers("ba be"), 3, 0, 0, 0, 0]
    assert tensors["attention_mask"].sum(1).tolist() == [4, 8, 3]
    assert not tensors["token_type_ids"].any()
    assert found.notes == ["1 of 3 texts cut at 8 tokens"]
    assert found.synthetic is None


def test_padding_goes_no_further_than_the_longest_text() -> None:
    found = load(["ba be", "ba"])
    assert found.samples.tensors["input_ids"].shape == (2, 4)
    assert found.notes == []


def test_pairs_have_two_kinds_of_tokens() -> None:
    kinds = load([("ba be", "bi"), ["bo", "bu ca"]]).samples.tensors["token_type_ids"]
    assert kinds.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]


def test_a_network_gets_the_inputs_that_it_takes() -> None:
    takes = Signature(names=("input_ids", "attention_mask", "position_ids"))
    found = load_images(["ba"], preprocess=HOW, takes=takes)
    assert list(found.samples.tensors) == ["input_ids", "attention_mask"]


def test_the_user_s_own_tokenizer_stays_as_it_is() -> None:
    own = Words()
    load(["ba be bi bo bu ca ce"], Text(tokenizer=own, max_length=4))
    assert (own.most, own.padding) == (None, None)


# where texts come from

LINES = ["ba be", "bi", "bo bu"]


def write(path: Path, *lines: object) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_a_text_is_the_same_from_wherever_it_is(tmp_path) -> None:
    expected = load(LINES).samples.tensors["input_ids"]
    rows = [{"text": line, "label": 1} for line in LINES]
    write(tmp_path / "code.py", "def texts():", f"    return {LINES!r}")
    wide = [{"id": "x", **row} for row in rows]
    for data, columns in (
        (write(tmp_path / "a.txt", *LINES), ()),
        (write(tmp_path / "b.jsonl", *rows), ()),
        (str(write(tmp_path / "c.json", *wide)), ("text",)),
        (f"{tmp_path / 'code.py'}:texts", ()),
        (rows, ()),
        (tuple(LINES), ()),
        (iter(LINES), ()),
        ([(line,) for line in LINES], ()),
    ):
        found = load(data, Text(tokenizer=Words(), max_length=8, columns=columns))
        assert torch.equal(found.samples.tensors["input_ids"], expected), data


def test_blank_lines_are_left_out_and_told(tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffba be\r\n\r\n  bi  \r\nbo bu".encode())
    found = load(tmp_path / "a.txt")
    assert torch.equal(found.samples.tensors["input_ids"], load(LINES).samples.tensors["input_ids"])
    assert found.notes == ["1 blank line left out"]


def test_two_columns_make_pairs(tmp_path) -> None:
    how = Text(tokenizer=Words(), columns=("b", "a"))
    file = write(tmp_path / "a.jsonl", {"a": "ba", "b": "be", "score": 0.5}, {"a": "bi", "b": "bo"})
    found = load(file, how).samples.tensors["input_ids"]
    assert torch.equal(
        found,
        load([("be", "ba"), ("bo", "bi")], how=Text(tokenizer=Words())).samples.tensors[
            "input_ids"
        ],
    )


def test_labels_are_whole_numbers_in_every_row() -> None:
    rows = [{"text": line, "label": number} for number, line in enumerate(LINES)]
    assert load(rows, labelled=True).labels.tolist() == [0, 1, 2]
    assert load(rows).labels is None
    assert load([*rows, {"text": "ba"}], labelled=True).labels is None
    assert load([{"text": "ba", "label": 0.5}], labelled=True).labels is None


def test_a_choice_of_texts_is_that_of_images() -> None:
    texts = [f"{a} {b}" for a in WORDS[:10] for b in WORDS[:10]]
    found = load(texts, max_images=7, seed=3)
    chosen = torch.randperm(100, generator=torch.Generator().manual_seed(3))[:7].sort().values
    expected = load([texts[row] for row in chosen.tolist()]).samples
    assert torch.equal(found.samples.tensors["input_ids"], expected.tensors["input_ids"])
    assert found.notes == ["7 of 100 images, chosen with seed 3"]


# texts of a vocabulary


def test_made_texts_depend_on_the_seed_and_the_number_only() -> None:
    few, more = (synthetic_texts(Words(), count, longest=9, seed=1) for count in (3, 9))
    assert more[:3] == few
    assert synthetic_texts(Words(), 3, longest=9, seed=2) != few
    assert len(set(more)) == 9


def test_made_texts_have_words_of_the_vocabulary_and_no_special_ones() -> None:
    vocabulary = Vocabulary.of(Words())
    assert (vocabulary.words[:3], vocabulary.endings[:2]) == (["ba", "be", "bi"], ["aa", "bb"])
    assert vocabulary.stop == "."
    texts = [text for (text,) in synthetic_texts(Words(), 200, longest=9)]
    for text in texts:
        assert re.fullmatch(r"[a-z]+( [a-z]+)*\.", text)
        beginnings = {word[:2] for word in text[:-1].split()}
        assert beginnings <= set(WORDS)
    assert max(len(text.split()) for text in texts) == 9


def test_words_are_drawn_by_rank() -> None:
    """The word of rank r in proportion to 1 / (r + 2.7)."""
    texts = synthetic_texts(Words(), 4000, longest=30, seed=0)
    beginnings = [word.strip(".")[:2] for (text,) in texts for word in text.split()]
    words = Vocabulary.of(Words()).words
    chances = np.array([1 / (rank + 2.7) for rank in range(1, len(words) + 1)])
    expected = chances / chances.sum() * len(beginnings)
    for rank in (0, 1, 5, 30):
        count = beginnings.count(words[rank])
        assert abs(count - expected[rank]) < 5 * expected[rank] ** 0.5


def test_made_texts_are_told_and_fit(tmp_path) -> None:
    found = load("text:40", seed=5)
    assert found.synthetic == "40 texts of words of the tokenizer in random order, seed 5"
    assert len(found.samples) == 40
    assert not (found.samples.tensors["input_ids"] == 1).all(1).any()
    pairs = load("text:40", Text(tokenizer=Words(), max_length=16, columns=("a", "b")))
    assert pairs.samples.tensors["token_type_ids"].any(1).all()
    assert load("text:40", max_images=10).notes[0] == "10 of 40 images, chosen with seed 0"


def test_a_vocabulary_of_single_letters_is_one_of_words() -> None:
    signs = [chr(0x4E00 + number) for number in range(200)]
    assert Vocabulary.of(Words([*signs, *WORDS[:40]])).words[:3] == signs[:3]


# what is refused

REFUSED = {
    "nothing": ([], r"the data holds? no text, expected texts"),
    "a tensor": (torch.ones(2, 3), "row 0 of the data is a Tensor, expected a text or a pair"),
    "a mapping": ({"input_ids": torch.ones(2, 3)}, "the data are a dict, expected texts"),
    "a number": (5, "the data are a int, expected texts"),
    "three texts": ([("a", "b", "c")], "row 0 of the data is a tuple, expected a text or a pair"),
    "a mixture": (["ba", 5], "row 1 of the data is a int"),
    "no file": ("nowhere.txt", "no such file: nowhere.txt, expected texts"),
    "no number": ("text:many", "got text:many, expected how many to make"),
    "none made": ("text:0", "got text:0, expected how many to make"),
    "two columns": (
        [{"a": "ba", "b": "be"}],
        r"2 columns of text \(a, b\), expected one, or to be",
    ),
    "no column": ([{"a": 1}], r"0 columns of text \(none\), expected one"),
    "a row without": ([{"a": "ba"}, {"b": "be"}], r"row 1 of the data has no text in the column a"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_text_is_one_sentence(name) -> None:
    data, says = REFUSED[name]
    with pytest.raises(DataError, match=says):
        load(data)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b"\n \n", "holds no text"),
        ("a.txt", b"\xff\xfe\x00", r"cannot be read as text .UnicodeDecodeError"),
        ("a.jsonl", b'{"a": "b"}\nba', "line 2 of .*a.jsonl is no JSON object"),
        ("a.jsonl", b"[1]", "line 1 of .*a.jsonl is no JSON object"),
        ("a.jsonl", b"[" * 100_000, "line 1 of .*a.jsonl is no JSON object"),
        (
            "a.jsonl",
            b'\n{"a": "b"}\n\n{"c": "b"}',
            "line 4 of .*a.jsonl has no text in the column a",
        ),
        ("a.csv", b"a,b", "has no columns that can be read"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, name, content, says) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        load(tmp_path / name)


def test_columns_of_lines_without_columns_are_refused(tmp_path) -> None:
    file = write(tmp_path / "a.txt", "ba")
    with pytest.raises(DataError, match="has no columns that can be read"):
        load(file, Text(tokenizer=Words(), columns=("a",)))
    with pytest.raises(DataError, match="row 0 of the data is a text, expected a mapping with its"):
        load(["ba"], Text(tokenizer=Words(), columns=("a", "b")))


def test_settings_are_checked() -> None:
    for wrong in (0, 2.5, "8", None):
        with pytest.raises(
            OptionError, match=r"max_length is .*, expected a whole number at least"
        ):
            Text(tokenizer=Words(), max_length=wrong)
    with pytest.raises(OptionError, match="columns is a, b, c, expected one, or two for pairs"):
        Text(tokenizer=Words(), columns=("a", "b", "c"))
    with pytest.raises(OptionError, match="columns is 5"):
        Text(tokenizer=Words(), columns=5)
    with pytest.raises(OptionError, match="max_length is 2, expected more than the 2 special"):
        load(["ba"], Text(tokenizer=Words(), max_length=2))
    with pytest.raises(OptionError, match="max_length is 4, expected more than the 3 special"):
        load([("ba", "be")], Text(tokenizer=Words(), max_length=4))
    for wrong in (5, None, object()):
        with pytest.raises(
            OptionError, match=r"tokenizer is a .*, expected the path of a tokenizer"
        ):
            load(["ba"], Text(tokenizer=wrong))


def test_a_file_of_text_asks_for_a_tokenizer(tmp_path) -> None:
    with pytest.raises(DataError, match=r"for text a tokenizer .preprocess=secateur\.Text"):
        load_images(write(tmp_path / "a.txt", "ba"))
    with pytest.raises(DataError, match="text:300 has no tokenizer to make texts with"):
        load_images("text:300")


def test_a_vocabulary_without_words_makes_no_texts() -> None:
    with pytest.raises(DataError, match="the tokenizer has 40 words, expected at least 100"):
        load("text:5", Text(tokenizer=Words(WORDS[:40])))


def test_without_the_package_there_is_the_install_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(MissingExtraError, match=r"needs the package tokenizers.*\.\[text\]"):
        load(["ba"], Text(tokenizer=tmp_path))


# networks


class Encoder(nn.Module):
    """A mean of embeddings, padding left out, with two layers behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(400, 16)
        self.body = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(-1).float()
        hidden = self.table(input_ids) + self.body(self.table(input_ids))
        return (hidden * mask).sum(1) / mask.sum(1)


def test_a_network_is_pruned_on_texts_as_on_their_numbers() -> None:
    texts = [text for (text,) in synthetic_texts(Words(), 40, longest=6)]
    samples = HOW([(text,) for text in texts]).tensors
    given = {name: samples[name] for name in ("input_ids", "attention_mask")}
    direct = secateur.prune(Encoder().eval(), given, sparsity=0.5, **FAST)
    found = secateur.prune(Encoder().eval(), texts, preprocess=HOW, sparsity=0.5, **FAST)
    for name, tensor in direct.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)
    held = found.report.requested["preprocess"]
    assert (held["name"], held["max_length"]) == ("Text", 8)
    assert held["tokenizer"] == "Words"  # not its whole vocabulary


def test_made_texts_are_told_by_the_report() -> None:
    found = secateur.prune(Encoder().eval(), "text:40", preprocess=HOW, sparsity=0.5, **FAST)
    assert found.report.synthetic == "40 texts of words of the tokenizer in random order, seed 0"


# real tokenizers

CORPUS = [
    "the cat sat on the mat and the dog sat on the log",
    "a quick brown fox jumps over the lazy dog near the river bank",
    "how many words does a small vocabulary need to be of any use",
    *(f"{a} {b} {a}{b}" for a in WORDS for b in WORDS[:9]),
]


@pytest.fixture(scope="module")
def tokenizers():
    return pytest.importorskip("tokenizers")


def trained(tokenizers, kind: str):
    """A tokenizer of one of the kinds that there are, trained on a few lines."""
    models, trainers = tokenizers.models, tokenizers.trainers
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    options = {"special_tokens": special, "vocab_size": 400, "show_progress": False}
    before, decoders = tokenizers.pre_tokenizers, tokenizers.decoders
    model, trainer, pre, decoder = {
        "WordPiece": (
            models.WordPiece(unk_token="[UNK]"),
            trainers.WordPieceTrainer(**options),
            before.Whitespace(),
            decoders.WordPiece(),
        ),
        "bytes": (
            models.BPE(),
            trainers.BpeTrainer(**options),
            before.ByteLevel(add_prefix_space=True),
            decoders.ByteLevel(),
        ),
        "Unigram": (
            models.Unigram(),
            trainers.UnigramTrainer(unk_token="[UNK]", **options),
            before.Metaspace(),
            decoders.Metaspace(),
        ),
    }[kind]
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer, made.decoder = pre, decoder
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return made


@pytest.mark.parametrize("kind", ["WordPiece", "bytes", "Unigram"])
def test_with_a_real_tokenizer(tokenizers, kind, tmp_path) -> None:
    made = trained(tokenizers, kind)
    made.save(str(tmp_path / "tokenizer.json"))
    texts = ["the cat sat", "how many words does a small vocabulary need to be"]
    expected = [made.encode(text).ids for text in texts]
    for given in (made, tmp_path, str(tmp_path / "tokenizer.json")):
        tensors = load(texts, Text(tokenizer=given, max_length=12)).samples.tensors
        real = [
            row[mask != 0].tolist()
            for row, mask in zip(tensors["input_ids"], tensors["attention_mask"], strict=True)
        ]
        assert real[0] == expected[0][:12]
        assert len(real[1]) == min(12, len(expected[1]))
        assert (tensors["input_ids"][tensors["attention_mask"] == 0] == 0).all()
    assert (made.truncation, made.padding) == (None, None)


@pytest.mark.parametrize("kind", ["WordPiece", "bytes", "Unigram"])
def test_words_of_a_real_vocabulary(tokenizers, kind) -> None:
    made = trained(tokenizers, kind)
    vocabulary = Vocabulary.of(made)
    assert all(word.isalnum() and word.isascii() for word in vocabulary.words)
    assert {"ba", "be"} <= set(vocabulary.words)
    texts = synthetic_texts(made, 50, longest=10)
    tensors = Text(tokenizer=made, max_length=64)(texts).tensors
    assert (tensors["input_ids"] != 1).all()  # nothing is unknown


@pytest.mark.parametrize("content", [b"{}", b"", b"[]", b"\xff", b'{"model": {"type": "BPE"}}'])
def test_a_file_that_is_no_tokenizer_is_one_sentence(tokenizers, tmp_path, content) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json is not a readable tokenizer"):
        load(["ba"], Text(tokenizer=tmp_path))


def test_on_the_command_line(tokenizers, tmp_path) -> None:
    trained(tokenizers, "WordPiece").save(str(tmp_path / "tokenizer.json"))
    network = tmp_path / "net.py"
    network.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_text import Encoder\n"
        "def net():\n    return Encoder().eval()\n"
    )
    rows = [{"a": f"{a} the", "b": "cat"} for a in WORDS[:40]]
    for name, data, more in (
        ("lines", write(tmp_path / "a.txt", *(row["a"] for row in rows)), ()),
        ("columns", write(tmp_path / "a.jsonl", *rows), ("--columns", "a,b")),
        ("made", "text:40", ("--max-length", 9)),
    ):
        result = prune(
            network, data, tmp_path / name, "--tokenizer", tmp_path / "tokenizer.json", *more
        )
        assert result.exit_code == 0, result.output
        report = secateur.Report.load(tmp_path / name / "report.json")
        assert report.requested["preprocess"]["tokenizer"] == str(tmp_path / "tokenizer.json")
        assert (report.synthetic is None) == (name != "made")
    more = ("--data", "text:3", "--tokenizer", tmp_path / "tokenizer.json", "--json")
    shown = CliRunner().invoke(app, ["inspect", f"{network}:net", *map(str, more)])
    assert len(json.loads(shown.stdout)["layers"]) == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--max-length", 0), "got --max-length or --columns without --tokenizer"),
        (("--tokenizer", "t.json", "--size", 9), "which is for texts, and --size, for images"),
        (("--tokenizer", "t.json"), "t.json cannot be read (No such file or directory)"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, more, says) -> None:
    result = prune(
        "secateur.example:trained", write(tmp_path / "a.txt", "ba"), tmp_path / "o", *more
    )
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())


def prune(network, data, out, *more):
    network = f"{network}:net" if isinstance(network, Path) else network
    arguments = ["prune", network, "--data", data, "-o", out, "--sparsity", 0.5, *more]
    arguments += ["--method", "magnitude", "--allocation", "uniform"]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
