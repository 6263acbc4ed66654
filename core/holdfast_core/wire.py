"""JSON encoding of frozen dataclasses, for every message and manifest.

Peers are not trusted: `decode` checks the type of each field and raises `WireError` that names the field. Unknown fields
are ignored, so that a newer sender can talk to an older receiver.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


class WireError(ValueError):
    """A message that does not fit its type; the text names the field."""


def dumps(message: Any) -> bytes:
    """One line of compact JSON, without the newline."""
    return json.dumps(encode(message), separators=(",", ":"), allow_nan=False).encode()


def loads(kind: type[T], data: bytes | str) -> T:
    """Parse one JSON document into `kind`; raises WireError."""
    try:
        return decode(kind, json.loads(data))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WireError(f"{kind.__name__}: not JSON: {error}") from error


def encode(value: Any) -> Any:
    """Plain JSON values of a dataclass tree."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    return value


def decode(kind: type[T], value: Any, where: str = "") -> T:
    """Build `kind` from plain JSON values; raises WireError with the path of what does not fit."""
    return typing.cast(T, _decode(kind, value, where or getattr(kind, "__name__", str(kind))))


def _decode(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), value, where)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _decode_optional(args, value, where)
    if origin is tuple:
        return _decode_tuple(args, value, where)
    if origin in (dict, Mapping) or origin is typing.get_origin(Mapping[str, int]):
        return _decode_mapping(args, value, where)
    return _decode_scalar(kind, value, where)


def _decode_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise WireError(f"{where}: expected an object, got {type(value).__name__}")
    hints = _hints(kind)
    known = {
        f.name: _decode(hints[f.name], value[f.name], f"{where}.{f.name}") for f in dataclasses.fields(kind) if f.name in value
    }
    try:
        return kind(**known)
    except TypeError as error:
        raise WireError(f"{where}: {error}") from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode_optional(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    inner = [a for a in args if a is not type(None)]
    errors = []
    for option in inner:
        try:
            return _decode(option, value, where)
        except WireError as error:
            errors.append(str(error))
    raise WireError("; ".join(errors))


def _decode_tuple(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, list | tuple):
        raise WireError(f"{where}: expected a list, got {type(value).__name__}")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_decode(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if len(args) != len(value):
        raise WireError(f"{where}: expected {len(args)} items, got {len(value)}")
    return tuple(_decode(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))


def _decode_mapping(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise WireError(f"{where}: expected an object, got {type(value).__name__}")
    key, item = args
    try:
        return {key(k): _decode(item, v, f"{where}.{k}") for k, v in value.items()}
    except (TypeError, ValueError) as error:
        raise WireError(f"{where}: {error}") from error


def _decode_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise WireError(f"{where}: expected {kind.__name__}, got {type(value).__name__} ({value!r:.60})")
    return value
