"""Laws of samples, and of the store of their values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import trace
from torch import nn

from secateur.network.samples import Samples
from secateur.network.store import ValueStore
from secateur.network.stream import Stream


def text(count: int = 11) -> Samples:
    """Tokens, a mask and a vector, of three types."""
    generator = torch.Generator().manual_seed(0)
    return Samples(
        {
            "tokens": torch.randint(99, (count, 5), generator=generator),
            "mask": torch.rand(count, 5, generator=generator) < 0.5,
            "weight": torch.randn(count, generator=generator),
        }
    )


def assert_same(one: Samples, other: Samples) -> None:
    assert list(one.tensors) == list(other.tensors)
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name])
        assert tensor.dtype == other.tensors[name].dtype


@given(size=st.integers(1, 20))
@settings(deadline=None, max_examples=20)
def test_parts_are_the_whole(size: int) -> None:
    parts = text().split(size)
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert_same(Samples.joined(parts), text())


@given(size=st.integers(1, 20))
@settings(deadline=None, max_examples=20)
def test_parts_that_lie_behind_each_other_are_joined_without_a_copy(size: int) -> None:
    whole = text()
    joined = Samples.joined(whole[2:].split(size))
    assert_same(joined, whole[2:])
    for name, tensor in joined.tensors.items():
        assert tensor.data_ptr() == whole.tensors[name][2:].data_ptr()


@pytest.mark.parametrize(
    "parts",
    [
        lambda of: [of[4:8], of[:4]],
        lambda of: [of[:4], of[5:9]],
        lambda of: [of[:4], of[:4]],
        lambda of: [of[:4], of[4:8].select([0, 1, 2, 3])],
        lambda of: [of[:4].map(lambda tensor: tensor[:1].expand_as(tensor)), of[4:8]],
    ],
    ids=["swapped", "with a gap", "the same twice", "copied", "expanded"],
)
def test_parts_that_do_not_are_copied(parts) -> None:
    whole = text()
    parts = parts(whole)
    joined = Samples.joined(parts)
    for name, tensor in joined.tensors.items():
        assert torch.equal(tensor, torch.cat([part.tensors[name] for part in parts]))
        assert tensor.untyped_storage().data_ptr() != whole.tensors[name].data_ptr()


@given(count=st.integers(1, 20), size=st.integers(1, 15))
@settings(deadline=None, max_examples=20)
def test_some_samples_are_spread_over_all(count: int, size: int) -> None:
    whole = Samples({"number": torch.arange(size)})
    chosen = whole.spread(count).tensors["number"]
    assert len(chosen) == min(count, size)
    gaps = torch.cat([chosen, torch.tensor([size])]).diff()
    assert int(chosen[0]) == 0
    assert size // len(chosen) <= int(gaps.min())
    assert int(gaps.max()) <= -(-size // len(chosen))


def test_samples_are_selected_in_all_tensors_alike() -> None:
    samples, mask = text(), torch.arange(11) % 3 == 0
    assert_same(samples.select(mask), samples.select(mask.nonzero().flatten()))
    assert_same(samples.select(slice(2, 4)), samples.select([2, 3]))
    assert samples.select([4, 4]).same(0, 1)
    assert not samples.same(0, 1)
    assert samples.values_per_sample == 11


def test_blank_samples_have_the_shapes_and_types_and_no_memory() -> None:
    blank = text().blank(1000)
    assert len(blank) == 1000
    for name, tensor in text().tensors.items():
        assert blank.tensors[name].dtype == tensor.dtype
        assert blank.tensors[name].shape[1:] == tensor.shape[1:]
        assert blank.tensors[name].untyped_storage().nbytes() <= 8


def test_tensors_of_different_lengths_or_none_are_no_samples() -> None:
    for tensors in (
        {},
        {"scalar": torch.zeros(())},
        {"a": torch.zeros(2), "b": torch.zeros(3)},
        {"a": torch.zeros(2), "b": torch.zeros(())},
    ):
        with pytest.raises(ValueError, match="expected as many rows in each"):
            Samples(tensors)
    with pytest.raises(ValueError, match="tokens, mask, weight, expected one"):
        text().only()


@given(
    steps=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 4)), max_size=30
    )
)
@settings(deadline=None, max_examples=60)
def test_a_store_counts_the_bytes_that_its_values_take(steps: list[tuple[str, int, int]]) -> None:
    """Each memory once, whoever holds it; against a walk over all values."""
    shared = [torch.zeros(3), torch.zeros(5, dtype=torch.int64)]
    values = [shared[0], shared[0].view(3, 1), (shared[1], [shared[0], 7]), 3, torch.zeros(7)]
    store = ValueStore()
    scopes, peak = [store.scope("stream", number) for number in range(3)], 0
    for name, number, value in steps:
        if value == 3 and name in scopes[number]:
            del scopes[number][name]
        else:
            scopes[number][name] = values[value]
        held = [of for of in store.values() if not isinstance(of, int)]
        tensors = [[of[0], of[1][0]] if isinstance(of, tuple) else [of] for of in held]
        storages = [tensor.untyped_storage() for pair in tensors for tensor in pair]
        unique = {storage.data_ptr(): storage.nbytes() for storage in storages}
        peak = max(peak, sum(unique.values()))
        assert store.bytes == sum(unique.values())
        assert store.peak >= peak
        assert len(store) == sum(map(len, scopes))


def test_a_stream_drops_its_values_and_the_store_knows() -> None:
    network = nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Linear(50, 3)).eval()
    graph, x = trace(network, torch.zeros(2, 4)), torch.randn(6, 4)
    store = ValueStore()
    values = store.scope(0, values={graph.inputs[0]: x})
    stream = Stream(graph, graph.parameters, values)
    stream.advance(1, keep=[graph.inputs[0]])
    assert set(values) == {graph.inputs[0], graph.ops[0].name}
    assert store.bytes == 4 * (x.numel() + 6 * 50)
    stream.advance(1)  # it is there: nothing is dropped
    assert len(values) == 2
    twin = stream.fork(graph.parameters)
    stream.advance(2)
    assert set(values) == {graph.ops[1].name}
    assert set(twin.values) == {graph.ops[0].name}  # what is kept for one is not read by another
    stream.advance(len(graph.ops))
    assert set(values) == set(graph.outputs)
    assert store.bytes == 4 * 6 * 3
    assert store.peak >= 4 * 6 * 50


def test_samples_are_cut_to_a_length_or_padded_up_to_it():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    samples = Samples({"ids": torch.arange(6).reshape(2, 3), "attention_mask": mask})
    assert samples.of_length(2).tensors["ids"].tolist() == [[0, 1], [3, 4]]
    longer = samples.of_length(5)
    assert longer.tensors["ids"].shape == (2, 5)
    assert longer.mask.sum(1).tolist() == [2, 3]
    left = Samples({"ids": torch.arange(6).reshape(2, 3), "attention_mask": mask.flip(1)})
    assert left.of_length(2).tensors["ids"].tolist() == [[1, 2], [4, 5]]
    assert left.of_length(4).mask.tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]
    assert Samples({"x": torch.ones(2, 3)}).of_length(9).tensors["x"].shape == (2, 3)
