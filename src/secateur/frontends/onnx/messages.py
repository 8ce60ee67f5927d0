"""Protobuf messages within each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto

_Kind = TypeVar("_Kind", bound=Message)


def within(message: Message, kind: type[_Kind]) -> Iterator[_Kind]:
    """All messages of a kind within one, itself included: those in bodies and functions too."""
    waiting: list[Message] = [message]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, kind):
            yield inner
        if isinstance(inner, TensorProto) and not issubclass(Message, kind):
            continue  # listing its fields would copy its numbers
        for field, value in inner.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                waiting.extend(value if hasattr(value, "extend") else [value])
