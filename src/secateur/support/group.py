"""Processes that carry out a call together, and what they tell each other.

`torchrun` starts them, or whoever has called `torch.distributed.init_process_group`. All of them
make the same call. Work comes in numbered parts; part n is done by process n modulo their number,
and what comes of the parts is put together in the order of their numbers, so that the bytes of a
result do not depend on how many processes there are.

A call has channels of its own. Where a process fails it closes these, which wakes all that wait for
it: none is left hanging, and whatever else the processes have to do with each other goes on.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from secateur.errors import OptionError, ProcessError, one_line
from secateur.support.interruptions import interruption

Value = TypeVar("Value")

_APART = -1  # in place of a length: the tensors come one by one
_ARRIVAL = timedelta(minutes=5)  # that processes wait for each other at the beginning of a call
_SOON = timedelta(seconds=10)  # that it takes one of them to say a sentence
_LONGEST = timedelta(days=7)  # that one waits for another: who fails wakes the others before


class Group:
    """Processes that carry out a call together; a group of one does nothing.

    Values that are told hold plain data and tensors, which arrive with the same bytes in the same
    order in memory, for libraries choose a kernel by that and round as it does.

    Attributes:
        rank: number of this process, from 0 on.
        size: how many there are.
        speaks: whether this process tells why all of them have failed.
    """

    rank, size = 0, 1
    speaks = True

    def hear_out(self) -> None:
        """Says that the reason why all fail has been told, or waits until it is."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files, shows progress and prints."""
        return self.rank == 0

    def owner(self, part: int) -> int:
        """The process that does a numbered part of the work."""
        return part % self.size

    def share(self, parts: int) -> range:
        """The numbers of the parts that this process does."""
        return range(self.rank, parts, self.size)

    def in_order(self, own: Mapping[int, Value], parts: int) -> list[Value]:
        """What came of all parts, on all processes.

        Args:
            own: what came of those of this process, by number.
            parts: how many there are.
        """
        every = {number: of for some in self.gather(dict(own)) for number, of in some.items()}
        return [every[part] for part in range(parts)]

    def gather(self, value: Value) -> list[Value]:
        """The value of each process, on all of them."""
        return [self.broadcast(value, source) for source in range(self.size)]

    def broadcast(self, value: Value, source: int = 0) -> Value:
        """The value of one process, on all of them; what the others give is not looked at."""
        return value

    def send(self, value: Any, to: int) -> None:
        """Sends a value to one other process, which has to receive it."""
        raise ValueError(f"got process {to}, expected another one")

    def receive(self, source: int) -> Any:
        """The value that one other process sends."""
        raise ValueError(f"got process {source}, expected another one")

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Compares what a call is of on all processes.

        Raises:
            OptionError: it is not the same; says what differs.
        """
        for number, others in enumerate(self.gather(dict(facts))):
            names = [of for of in {**facts, **others} if facts.get(of) != others.get(of)]
            if names and number != self.rank:
                one, other = sorted((number, self.rank))
                raise OptionError(
                    f"processes {one} and {other} of {self.size} make different calls "
                    f"({', '.join(names[:4])}), expected the same: give all the same network, "
                    "data in the same order, options and number of threads"
                )


class _Together(Group):
    """Processes that `torch.distributed` connects."""

    def __init__(self, store: dist.Store, name: str) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._store, self._failed = store, f"{name}/failed"
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        self._channel: Any = dist.new_group(backend=backend, timeout=_LONGEST)
        self._under_way: list[tuple[Any, Tensor]] = []  # what is being sent, which has to be held

    def broadcast(self, value: Value, source: int = 0) -> Value:
        """See `Group.broadcast`."""

        def tell(tensor: Tensor) -> None:
            dist.broadcast(tensor, source, group=self._channel)

        if self.rank == source:
            self._tell(value, tell)
            return value
        return self._told(tell)

    def send(self, value: Any, to: int) -> None:
        """See `Group.send`; on CPUs all of it in one piece, which is under way until the next."""

        def tell(tensor: Tensor) -> None:
            dist.send(tensor, to, group=self._channel)

        self._finish_sending()
        content, tensors = _packed(value)
        if any(of.device.type != "cpu" for of in tensors):
            with self._losing():
                tell(torch.tensor([_APART]))
            self._tell(value, tell)
            return
        flat = [_Layout(of).flat(of) for of in tensors if of.numel()]
        whole = torch.cat([torch.frombuffer(bytearray(content), dtype=torch.uint8), *flat])
        header = torch.tensor([len(content)]), torch.tensor([len(whole)])
        with self._losing():
            for part in (*header, whole):
                work = dist.isend(part, to, group=self._channel)
                self._under_way.append((work, part))

    def receive(self, source: int) -> Any:
        """See `Group.receive`."""

        def tell(tensor: Tensor) -> None:
            dist.recv(tensor, source, group=self._channel)

        length, size = torch.zeros(2, 1, dtype=torch.int64)
        with self._losing():
            tell(length)
            if int(length) == _APART:
                return self._told(tell)
            tell(size)
            whole = torch.empty(int(size), dtype=torch.uint8)
            tell(whole)
        at = int(length)

        def tensor(layout: _Layout) -> Tensor:
            nonlocal at
            values = layout.empty()
            bytes_of = values.view(torch.uint8)
            bytes_of.copy_(whole[at : at + len(bytes_of)])
            at += len(bytes_of)
            return layout.tensor(values)

        return _unpacked(whole[:at].numpy().tobytes(), tensor)

    def _finish_sending(self) -> None:
        """Waits until what was sent has arrived."""
        with self._losing():
            for work, _ in self._under_way:
                work.wait()
        self._under_way.clear()

    @contextmanager
    def _losing(self) -> Generator[None]:
        """Raises ProcessError where another process is not there any more."""
        try:
            yield
        except RuntimeError as error:
            raise self._lost() from error

    def fail(self, error: BaseException) -> None:
        """Says why this process ends, and wakes the others; one of them `speaks`."""
        if isinstance(error, KeyboardInterrupt):
            self.close()
            if not self.is_first:  # which knows what was written
                with suppress(RuntimeError):
                    self._store.wait([self._failed], _SOON)
            self._claim(interruption())
        elif not isinstance(error, ProcessError):
            self._claim(one_line(str(error)) or type(error).__name__)
        self.close()

    def hear_out(self) -> None:
        """See `Group.hear_out`."""
        with suppress(RuntimeError):
            if self.speaks:
                self._store.set(f"{self._failed}/told", "")
            else:
                self._store.wait([f"{self._failed}/told"], _SOON)

    def _claim(self, sentence: str) -> None:
        """Says why all fail, unless another one has said so."""
        mine = f"{self.rank} {sentence}"
        self.speaks = self.is_first
        with suppress(RuntimeError):
            held = self._store.compare_set(self._failed, "", mine)
            self.speaks = held.decode() == mine

    def close(self) -> None:
        """Closes the channels, which wakes all that wait for this process."""
        channel, self._channel = self._channel, None
        if channel is not None:  # which would stand for all groups of the program
            with suppress(RuntimeError, ValueError):
                dist.destroy_process_group(channel)

    def _tell(self, value: Any, tell: Callable[[Tensor], Any]) -> None:
        content, tensors = _packed(value)
        with self._losing():
            tell(torch.tensor([len(content)]))
            tell(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            for tensor in tensors:
                if tensor.numel():
                    tell(_Layout(tensor).flat(tensor))

    def _told(self, tell: Callable[[Tensor], Any]) -> Any:
        def tensor(layout: _Layout) -> Tensor:
            values = layout.empty()
            if values.numel():
                tell(values.view(torch.uint8))
            return layout.tensor(values)

        with self._losing():
            length = torch.zeros(1, dtype=torch.int64)
            tell(length)
            content = torch.empty(int(length), dtype=torch.uint8)
            tell(content)
            return _unpacked(content.numpy().tobytes(), tensor)

    def _lost(self) -> ProcessError:
        """Why another process is not there any more."""
        lost = (
            f"one of {self.size} processes ended without a word, expected all to go on: it was "
            "killed, or the machine has no memory left; with a work folder the same call goes on"
        )
        self._claim(lost)
        said = ""
        with suppress(RuntimeError):
            said = self._store.get(self._failed).decode()
        rank, _, sentence = said.partition(" ")
        if self.speaks or not said:
            return ProcessError(lost)
        return ProcessError(f"process {rank} of {self.size} failed: {sentence}")


_present: ContextVar[Group | None] = ContextVar("group", default=None)
_calls = itertools.count()


@contextmanager
def together() -> Generator[Group, None, None]:
    """The processes that make the same call as this one; a block within another one shares them.

    Raises:
        OptionError: others do not make it.
        ProcessError: another one has failed.
    """
    outer = _present.get()
    if outer is not None or not _is_connected():
        yield outer or Group()
        return
    group = _arrived()
    token = _present.set(group)
    try:
        yield group
        group.gather(None)  # nobody leaves while others may still need it
    except BaseException as error:
        group.fail(error)
        raise
    else:
        group.close()
    finally:
        _present.reset(token)


def _is_connected() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _arrived() -> _Together:
    """The group, once all processes are there."""
    store = dist.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]
    name, size = f"secateur/{next(_calls)}", dist.get_world_size()
    store.set(f"{name}/{dist.get_rank()}", "")
    try:
        store.wait([f"{name}/{rank}" for rank in range(size)], _ARRIVAL)
    except RuntimeError as error:
        raise OptionError(
            f"process {dist.get_rank()} of {size} waits for others that do not make this call, "
            "expected all to make it: call it on all of them, or before init_process_group"
        ) from error
    return _Together(store, name)


class _Layout:
    """How a tensor lies in memory: as it is, or, where there are gaps, as a copy without them."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype, self.shape, self.device = tensor.dtype, tuple(tensor.shape), tensor.device.type
        self.strides = tensor.stride()
        if not _is_dense(tensor):
            self.strides = torch.empty(self.shape, device="meta").stride()

    def flat(self, tensor: Tensor) -> Tensor:
        """The bytes of a tensor that lies so."""
        dense = tensor.detach() if _is_dense(tensor) else tensor.detach().contiguous()
        return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)

    def empty(self) -> Tensor:
        """Room for them."""
        return torch.empty(math.prod(self.shape), dtype=self.dtype, device=self.device)

    def tensor(self, values: Tensor) -> Tensor:
        """The tensor with values in the order in which they lie in memory."""
        return values.as_strided(self.shape, self.strides)


def _is_dense(tensor: Tensor) -> bool:
    """Whether each place between its first value and its last is that of one value."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


class _Packer(pickle.Pickler):
    """Plain data as bytes, in which tensors are told by their layout."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj: Any) -> Any:
        """The layout of a tensor, which goes beside."""
        if not isinstance(obj, Tensor):
            return None
        self.tensors.append(obj)
        return len(self.tensors) - 1, _Layout(obj)


class _Unpacker(pickle.Unpickler):
    """The way back."""

    def __init__(self, file: io.BytesIO, tensor: Callable[[_Layout], Tensor]) -> None:
        super().__init__(file)
        self._tensor = tensor

    def persistent_load(self, pid: Any) -> Tensor:
        """The next tensor."""
        return self._tensor(pid[1])


def _packed(value: Any) -> tuple[bytes, Sequence[Tensor]]:
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(value)
    return file.getvalue(), packer.tensors


def _unpacked(content: bytes, tensor: Callable[[_Layout], Tensor]) -> Any:
    return _Unpacker(io.BytesIO(content), tensor).load()
