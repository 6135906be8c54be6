"""
What goes into jsonb and what comes out of it.

A queue must survive any row: jsonb takes 1e400, 10,000 levels and integers of any size, and it refuses NUL, which
would fail every other run of the same batch. So decoding is done run by run, after the claim, and what a handler
returns is encoded and checked before it joins a batch.
"""

import dataclasses
import json
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import orjson

_LONG_NUMBER = re.compile(r"\d{19}")  # may not fit into 64 bits: orjson would read it as a float
_MAX_DEPTH = 200
_MAX_PATH = 200  # characters told; uncut, one long key before a long array would be copied once an element
_CUT = " … [cut]"


class Unencodable(ValueError):
    """A value that can't be stored as JSON. The text says where in it, and why."""


class Mismatch(ValueError):
    """A payload that does not fit the handler's annotation. The text names the field."""


def decode(text: str) -> Any:
    """Parse what jsonb prints. Integers of any size are exact. Raises ValueError for what Python can't hold."""
    try:
        return json.loads(text, parse_float=_finite) if _LONG_NUMBER.search(text) else orjson.loads(text)
    except RecursionError as error:
        message = "nested too deeply"
        raise ValueError(message) from error


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        message = "a number is out of range"
        raise ValueError(message)
    return value


def parse(text: str | bytes) -> Any:
    """Parse JSON from outside, strictly: no NaN, no infinity (1e400), no NUL, no lone surrogate, bounded depth."""
    try:
        as_text = text.decode() if isinstance(text, bytes) else text
        value = decode_strictly(as_text)
    except UnicodeError as error:
        message = "not UTF-8"
        raise ValueError(message) from error
    if fault := find_fault(value):
        raise ValueError(fault)
    return value


def decode_strictly(text: str) -> Any:
    """As `decode`, refusing what JSON does not have. Raises ValueError."""

    def refuse(name: str) -> None:
        message = f"{name} is not JSON"
        raise ValueError(message)

    try:
        value = orjson.loads(text)  # refuses NaN, 1e400, lone surrogates, more than 1,024 levels
        return json.loads(text, parse_constant=refuse) if _LONG_NUMBER.search(text) else value
    except orjson.JSONDecodeError as error:
        message = f"not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
        raise ValueError(message) from None
    except RecursionError:
        message = "nested too deeply"
        raise ValueError(message) from None


def encode(value: Any) -> str:
    """Encode for jsonb. Raises Unencodable: NaN, infinity, NUL, a lone surrogate, an object that is no JSON."""
    try:
        return _encode(value)
    except Unencodable:
        raise
    except Exception as error:  # the value's own code: a serializer, a property, __iter__
        message = f"{type(error).__name__}: {_text_of(error, str)}"
        raise Unencodable(message) from error


def _encode(value: Any) -> str:
    try:
        raw = orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError as error:
        if fault := find_fault(value):
            raise Unencodable(fault) from None
        try:  # integers over 64 bits
            return json.dumps(value, allow_nan=False, default=_plain_for_stdlib)
        except (TypeError, ValueError, RecursionError):
            raise Unencodable(str(error)) from None
    # orjson writes NaN as null without a word, and PostgreSQL has no \u0000: only then look closer.
    if (b"null" in raw or b"\\u0000" in raw) and (fault := find_fault(value)):
        raise Unencodable(fault)
    return raw.decode()


def encode_leniently(value: Any) -> str:
    """Encode a note for people: what can't be stored is replaced and never raises."""
    try:
        return encode(value)
    except Unencodable:
        return json.dumps(_printable(value, 0))


def _text_of(item: Any, of: Callable[[Any], str]) -> str:
    try:
        return of(item)
    except Exception as error:  # noqa: BLE001 - an object whose own __repr__ or __str__ raises
        return f"<{type(item).__name__}, whose text can't be had: {type(error).__name__}>"


def clean_text(text: str, limit_bytes: int) -> str:
    """Text that PostgreSQL can store: NUL and lone surrogates replaced, cut at `limit_bytes`, the cut told."""
    text = text.replace("\0", "�")
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit_bytes:
        return raw.decode()
    return raw[: limit_bytes - len(_CUT.encode())].decode("utf-8", "ignore") + _CUT


def find_fault(value: Any) -> str | None:
    """Say what in `value` can't be stored as JSON, and where; None if nothing is found."""
    pending: list[tuple[str, Any, int]] = [("$", value, 0)]
    while pending:
        path, item, depth = pending.pop()
        if depth > _MAX_DEPTH:
            return f"{path[:100]}… is nested deeper than {_MAX_DEPTH} levels"
        if isinstance(item, float) and not math.isfinite(item):
            return f"{path} is {item}, which JSON does not have"
        if isinstance(item, str) and (why := _unstorable(item)):
            return f"{path} contains {why}"
        for step, key, child in _children(item):
            if isinstance(key, str) and (why := _unstorable(key)):
                return f"a key of {path} contains {why}"
            pending.append(((path + step)[:_MAX_PATH], child, depth + 1))
    return None


def converter(annotation: Any) -> Callable[[Any], Any] | None:
    """
    How a decoded payload becomes what the handler's annotation asks for; None where it stays as it is.

    Takes pydantic models, dataclasses, TypedDicts, msgspec structs, dict, and whatever msgspec converts. The
    converter raises Mismatch. Raises TypeError for an annotation that neither library understands.
    """
    if annotation is Any or annotation is None:
        return None
    if _is_pydantic(annotation):
        return _pydantic_converter(annotation)
    msgspec.json.schema(annotation) if annotation is not object else None  # raises TypeError now and not at a run

    def convert(value: Any) -> Any:
        try:
            return msgspec.convert(value, annotation)
        except msgspec.ValidationError as error:
            raise Mismatch(_dollar_to_payload(str(error))) from None

    return convert


def _pydantic_converter(annotation: Any) -> Callable[[Any], Any]:
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[Any] = TypeAdapter(annotation)

    def convert(value: Any) -> Any:
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False)
            shown = [".".join(["payload", *map(str, f["loc"])]) + ": " + f["msg"] for f in faults[:10]]
            raise Mismatch("; ".join(shown)) from None

    return convert


def _is_pydantic(annotation: Any) -> bool:
    return hasattr(annotation, "__pydantic_validator__") or any(map(_is_pydantic, typing.get_args(annotation)))


def _dollar_to_payload(message: str) -> str:
    """Msgspec says "... - at `$.to`"; a user knows it as the payload's field."""
    what, found, where = message.rpartition(" - at `$")
    return f"payload{where.rstrip('`')}: {what}" if found else f"payload: {message}"


def _unstorable(text: str) -> str | None:
    if "\0" in text:
        return "NUL (\\u0000), which PostgreSQL can't store"
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        return "a lone surrogate, which is not Unicode text"
    return None


def _children(item: Any) -> Iterator[tuple[str, Any, Any]]:  # noqa: C901 - one case a sort of container
    if isinstance(item, Mapping):
        for key, child in item.items():
            yield f".{key}", key, child
    elif isinstance(item, list | tuple | set | frozenset):
        for index, child in enumerate(item):
            yield f"[{index}]", None, child
    elif dataclasses.is_dataclass(item) and not isinstance(item, type):
        for field in dataclasses.fields(item):
            yield f".{field.name}", None, getattr(item, field.name)
    elif isinstance(item, msgspec.Struct):
        for name in item.__struct_fields__:
            yield f".{name}", None, getattr(item, name)
    elif hasattr(item, "__pydantic_validator__"):
        for name, child in item.model_dump().items():
            yield f".{name}", None, child


def _plain(item: Any) -> Any:
    """For orjson: objects that it does not know."""
    if hasattr(item, "__pydantic_validator__"):
        return item.model_dump(mode="json")
    if isinstance(item, msgspec.Struct):
        return msgspec.to_builtins(item)
    if isinstance(item, set | frozenset):
        return list(item)
    if isinstance(item, bytes):
        message = "bytes are not JSON: decode them, or encode them as base64"
        raise TypeError(message)
    if isinstance(item, int) and not isinstance(item, bool):
        message = "integer over 64 bits"  # goes the stdlib's way
        raise TypeError(message)
    message = f"{type(item).__name__} is not JSON"
    raise TypeError(message)


def _plain_for_stdlib(item: Any) -> Any:
    return orjson.loads(orjson.dumps(item, default=_plain))


def _printable(item: Any, depth: int) -> Any:
    if item is None or isinstance(item, bool):
        return item
    if isinstance(item, int):  # beyond 4,300 digits Python itself refuses to print it
        return item if item.bit_length() < 10_000 else f"an integer of {item.bit_length()} bits"  # noqa: PLR2004 - as told
    if isinstance(item, float):
        return item if math.isfinite(item) else str(item)
    if isinstance(item, str):
        return clean_text(item, 8192)
    if depth < 10 and isinstance(item, Mapping):  # noqa: PLR2004 - a note for people need not go deeper
        return {clean_text(_text_of(k, str), 200): _printable(v, depth + 1) for k, v in item.items()}
    if depth < 10 and isinstance(item, list | tuple | set | frozenset):  # noqa: PLR2004 - as above
        return [_printable(v, depth + 1) for v in item]
    return clean_text(_text_of(item, repr), 8192)
