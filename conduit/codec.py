"""Objects with descriptors in them, as bytes and a list: the body of a `Channel`'s message.

In the bytes, a map with the single key ``$fd`` stands for a descriptor. Its value is an index into
the list, or for a descriptor with a name, a list of index and name. If the program's object has a
map with such a single key itself (``$fd``, ``$$fd`` and so on), the key gets one more dollar on the
way, and loses it on arrival.

`Codec` does this for any pair of functions, by a walk over the object. `JsonCodec` lets the encoder
and decoder of `json` find the places, which takes a fraction of the time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from conduit._conduit import Descriptor
from conduit.errors import from_handler

MARK = "$fd"

_SCALARS = frozenset([str, int, float, bool, type(None), bytes])

_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)

_NAME_OF_NO_STR = re.compile(r'"(?:-?[0-9][0-9.e+-]*|true|false|null)":')
"""A key in JSON that may have been a number, a bool or None."""


def fields_of(obj: object) -> dict[str, Any] | None:
    """Return the fields of an instance of a dataclass by name; None for any other object."""
    if not hasattr(type(obj), "__dataclass_fields__"):
        return None
    # Here, since it takes long to import; a program with a dataclass has imported it.
    import dataclasses

    return {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj)}  # type: ignore[arg-type]


def is_mark(key: object) -> bool:
    """Whether a key is the mark of a descriptor, or one that was escaped."""
    return isinstance(key, str) and key.endswith(MARK) and not key[: -len(MARK)].strip("$")


def mark_for(obj: object, items: list[Any]) -> dict[str, Any]:
    """Append what has a descriptor, and return the map that stands for it."""
    index = len(items)
    items.append(obj)
    name = obj.name if type(obj) is Descriptor else ""
    return {MARK: [index, name] if name else index}


def marked(obj: Any, items: list[Any]) -> Any:
    """Return a copy of an object with a mark for whatever has a descriptor, which is appended."""
    if type(obj) in _SCALARS:
        return obj
    if isinstance(obj, dict):
        copy = {key: marked(value, items) for key, value in obj.items()}
        if len(copy) == 1:
            [(key, value)] = copy.items()
            if is_mark(key):
                return {f"${key}": value}
        return copy
    if isinstance(obj, list | tuple):
        return [marked(value, items) for value in obj]
    # Subclasses of these are scalars for `json`, too, whatever methods they have.
    if hasattr(obj, "fileno") and not isinstance(obj, str | int | float):
        return mark_for(obj, items)
    fields = fields_of(obj)
    return obj if fields is None else marked(fields, items)


def take(fds: list[Descriptor], left: list[Descriptor | None], place: object) -> Descriptor:
    """Return the descriptor that a mark stands for, and leave None in its place.

    Args:
        fds: all of the message; one that has a name is replaced by one of that name.
        left: those that were not taken.
        place: the index, or a list of that and a name.

    Raises:
        ValueError: there is none, or it was taken.
    """
    index, name = place, ""
    # Most are ints: the quick way.
    if type(place) is not int and (
        isinstance(place, list | tuple) and len(place) == 2 and isinstance(place[1], str)
    ):
        index, name = place
    if type(index) is int and 0 <= index < len(left):
        fd, left[index] = left[index], None
        if fd is not None:
            if name:
                # One call, all in C: no signal handler can run while nothing owns the number.
                fds[index : index + 1] = map(Descriptor, map(Descriptor.detach, (fd,)), (name,))
            return fds[index]
    raise ValueError(
        f"{place!r:.60} is not the place of one of its {len(left)} descriptors, or is used twice"
    )


def check_all_taken(left: list[Descriptor | None]) -> None:
    """Raise `ValueError` if a descriptor was not taken, since it had no place in the object."""
    unused = len(left) - left.count(None)
    if unused:
        raise ValueError(f"{unused} of its {len(left)} descriptors have no place in it")


def unmarked(obj: Any, take: Callable[[object], Descriptor]) -> Any:
    """Return a decoded object with descriptors for marks; it may be changed for that."""
    if isinstance(obj, dict):
        if len(obj) == 1:
            [(key, value)] = obj.items()
            # Asked first, since it compares with nothing but a str.
            if is_mark(key):
                return take(value) if key == MARK else {key[1:]: unmarked(value, take)}
        for key, value in obj.items():
            if type(value) not in _SCALARS:
                obj[key] = unmarked(value, take)
    elif isinstance(obj, list):
        for index, value in enumerate(obj):
            if type(value) not in _SCALARS:
                obj[index] = unmarked(value, take)
    elif isinstance(obj, tuple):
        return tuple([unmarked(value, take) for value in obj])
    return obj


def encode(obj: Any, dumps: Callable[[Any], bytes]) -> tuple[bytes, list[Any]]:
    """Return an object as bytes, and what has a descriptor in it.

    Raises:
        ValueError: the object nests too deep, or holds itself.
        TypeError: what ``dumps`` returns is not bytes.
        Exception: what ``dumps`` raises.
    """
    items: list[Any] = []
    try:
        copy = marked(obj, items)
    except RecursionError as exc:
        raise _too_deep(exc) from None
    body = dumps(copy)
    if not isinstance(body, bytes | bytearray | memoryview):
        raise TypeError(f"dumps() must return bytes, not {type(body).__name__}")
    return bytes(body), items


class Codec:
    """The codec of two functions: an object to bytes, and back."""

    def __init__(self, dumps: Callable[[Any], bytes], loads: Callable[[bytes], Any]) -> None:
        self._dumps = dumps
        self._loads = loads

    def encode(self, obj: Any) -> tuple[bytes, list[Any]]:
        """Return an object as bytes, and what has a descriptor in it; see `encode`."""
        return encode(obj, self._dumps)

    def decode(self, body: bytes, fds: list[Descriptor]) -> Any:
        """Return the object that bytes stand for, with its descriptors in their places.

        A descriptor that gets a name is replaced in the list by a new object.

        Raises:
            Exception: what ``loads`` raises; `ValueError` if a descriptor has no place, or two, or
                a place has no descriptor. The caller still owns all descriptors.
        """
        left: list[Descriptor | None] = [*fds]
        obj = unmarked(self._loads(body), partial(take, fds, left))
        check_all_taken(left)
        return obj


class JsonCodec:
    """JSON: RFC 8259, in UTF-8, without NaN and infinities. See `Codec`."""

    def __init__(self) -> None:
        # Making one takes longer than using it. Each is used by one call at a time: list.pop() is
        # atomic, so another thread, or a signal handler, gets another object.
        self._encoders: list[_Encoder] = []
        self._decoders: list[_Decoder] = []

    def encode(self, obj: Any) -> tuple[bytes, list[Any]]:
        """Return an object as bytes, and what has a descriptor in it."""
        try:
            encoder = self._encoders.pop()
        except IndexError:
            encoder = _Encoder()
        items: list[Any] = []
        encoder.items = items
        try:
            text = encoder.encode(obj)
            body = text.encode()
            # A quick test whether a key may not have been a str; the search takes much longer.
            if (
                body.translate(_DIGITS).find(b'0":') >= 0
                or '"true":' in text
                or '"false":' in text
                or '"null":' in text
            ):
                check_names(text)
        except RecursionError as exc:
            raise _too_deep(exc) from None
        encoder.items = []
        self._encoders.append(encoder)
        # More such keys than marks: the object has some itself, which must be escaped.
        if text.count('$fd":') != len(items):
            return encode(obj, _Encoder().dumps)
        return body, items

    def decode(self, body: bytes, fds: list[Descriptor]) -> Any:
        """Return the object that bytes stand for, with its descriptors in their places."""
        text = str(body, "utf-8").strip(" \t\r\n")
        try:
            decoder = self._decoders.pop()
        except IndexError:
            decoder = _Decoder()
        left: list[Descriptor | None] = [*fds]
        decoder.fds = fds
        decoder.left = left
        obj, end = decoder.decode(text)
        decoder.fds = []
        decoder.left = []
        self._decoders.append(decoder)
        if end != len(text):
            raise ValueError(f"more than one object: another begins at character {end}")
        if left:
            check_all_taken(left)
        return obj


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; `ValueError` if a name is in it twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return result


def check_names(text: str) -> None:
    """Check that no two keys of a dict became one name, as 1 and "1" do.

    The receiver would refuse such a message, and close the descriptors that were moved with it.
    """
    if _NAME_OF_NO_STR.search(text):
        json.loads(text, object_pairs_hook=distinct)


class _Encoder:
    """An encoder of JSON that collects what has a descriptor."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.encode = json.JSONEncoder(
            separators=(",", ":"), allow_nan=False, default=self._default
        ).encode

    def dumps(self, obj: Any) -> bytes:
        """Return an object as bytes, in which no descriptor is left."""
        return self.encode(obj).encode()

    def _default(self, obj: Any) -> Any:
        if hasattr(obj, "fileno"):
            return mark_for(obj, self.items)
        fields = fields_of(obj)
        if fields is None:
            raise TypeError(f"Object of type {type(obj).__name__} is not JSON serializable")
        return fields


class _Decoder:
    """A decoder of JSON that puts descriptors in their places."""

    def __init__(self) -> None:
        self.fds: list[Descriptor] = []
        self.left: list[Descriptor | None] = []
        self.decode = json.JSONDecoder(
            object_pairs_hook=self._map, parse_constant=_refuse_constant
        ).raw_decode

    def _map(self, pairs: list[tuple[str, Any]]) -> Any:
        if len(pairs) == 1:
            key, value = pairs[0]
            if key == MARK:
                return take(self.fds, self.left, value)
            if is_mark(key):
                return {key[1:]: value}
        # A duplicate name would drop the first value, and a descriptor that may be in it.
        return distinct(pairs)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _too_deep(exc: RecursionError) -> Exception:
    if from_handler(exc):
        return exc
    return ValueError("the object nests too deep, or holds itself")
