"""Plain data between the tests and the program, typed and bounded: what may cross, and what it becomes.

Text is JSON, whose parser is C and was written for hostile input. Scalars stand for themselves, everything else is an
object with one key, its tag. A subclass is reduced to its base, read by the base's own methods. What has no plain form
crosses as a handle: a number that only its owner can look up. Containers that can change are numbered in the order in
which they are met, so that aliases, cycles and changes made in place arrive as what they are. Never pickle.

Leaves out who owns a handle and what can be done with it (program.py, remote.py), and the bytes of a frame (wire.py).
"""

from __future__ import annotations

import builtins
import datetime
import importlib
import json
import re
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import chain
from typing import Any

DATACLASS_FUNCTIONS = ("asdict", "astuple", "fields", "is_dataclass", "replace")  # they look into objects
MAX_MESSAGE = 500  # characters of an exception's text
MAX_CAUSES = 3  # exceptions along __cause__
MAX_DEPTH = 100
MAX_NODES = 5_000_000
BIG = 1 << 4096  # beyond this an int goes as hexadecimal: decimal takes quadratic time
PLAIN = frozenset({type(None), bool, str})  # and int within BIG, and float

Handle = Callable[[object], Any]  # what an encoder makes of an object without a plain form: something JSON can hold

_compact = json.JSONEncoder(separators=(",", ":")).encode
_parse = json.JSONDecoder().decode


class CodecError(ValueError):
    """Too deep, too large, or not what this encoding produces."""


# Types that may be named rather than copied: they are the same on both sides.
TYPES: dict[str, type] = {
    name: value for name, value in vars(builtins).items() if isinstance(value, type) and not name.startswith("_")
}
EXCEPTIONS: dict[str, type[BaseException]] = {
    name: value for name, value in TYPES.items() if issubclass(value, BaseException)
}
# Built-in functions may be named to the program; what the program names would be run by the tests, so not by it.
FUNCTIONS = {
    name: value for name, value in vars(builtins).items() if callable(value) and name not in TYPES and name[0] != "_"
}
_TYPE_NAMES: dict[Any, str] = {value: name for name, value in TYPES.items()}

# Each exact type that has a tag: the tag, and how its content becomes what JSON can hold.
_Content = Callable[[Any], Any]
_SCALARS: dict[type, tuple[str, _Content]] = {
    bytes: ("b", bytes.hex),
    complex: ("c", lambda v: [v.real, v.imag]),
    range: ("r", lambda v: [hex(v.start), hex(v.stop), hex(v.step)]),
    Decimal: ("D", str),
    Fraction: ("F", lambda v: [hex(v.numerator), hex(v.denominator)]),
    datetime.date: ("dd", datetime.date.isoformat),
    datetime.time: ("dt", datetime.time.isoformat),
    datetime.datetime: ("dm", datetime.datetime.isoformat),
    datetime.timedelta: ("dl", lambda v: [v.days, v.seconds, v.microseconds]),
    type(Ellipsis): ("o", lambda _: "Ellipsis"),
    type(NotImplemented): ("o", lambda _: "NotImplemented"),
}
_SINGLETONS = {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}


_ARRAYS = "biufc"  # kinds of NumPy arrays that are numbers


def _array(content: Any) -> Any:
    dtype, shape, data = content
    if not re.fullmatch(rf"[<>|=][{_ARRAYS}]\d{{1,2}}", dtype):
        raise ValueError("no array of numbers")
    numpy = importlib.import_module("numpy")
    return numpy.frombuffer(bytes.fromhex(data), dtype).reshape(shape).copy()


def _range(content: list[str]) -> range:
    return range(*(int(text, 16) for text in content))


_FROM: dict[str, Callable[[Any], Any]] = {
    "b": bytes.fromhex,
    "c": lambda v: complex(*v),
    "r": _range,
    "D": Decimal,
    "F": lambda v: Fraction(int(v[0], 16), int(v[1], 16)),
    "dd": datetime.date.fromisoformat,
    "dt": datetime.time.fromisoformat,
    "dm": datetime.datetime.fromisoformat,
    "dl": lambda v: datetime.timedelta(*v),
    "o": _SINGLETONS.__getitem__,
    "i": lambda v: int(v, 16),
    "N": _array,
    "T": TYPES.__getitem__,
    "y": lambda v: bytearray.fromhex(v),
}

# Bases that a subclass is reduced to, the most special first, and how the base itself reads one.
BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, int.__int__),
    (float, float.__float__),
    (complex, complex.__complex__),
    (str, str.__str__),
    (bytes, lambda v: bytes.__getitem__(v, slice(None))),
    (tuple, lambda v: tuple.__getitem__(v, slice(None))),
    (list, list.copy),
    (dict, lambda v: dict(dict.items(v))),
    (set, lambda v: set().union(v)),
    (frozenset, lambda v: frozenset().union(v)),
    (datetime.datetime, lambda v: datetime.datetime.combine(datetime.datetime.date(v), datetime.datetime.timetz(v))),
    (datetime.date, lambda v: datetime.date(*datetime.date.timetuple(v)[:3])),
    (Fraction, lambda v: Fraction(v.numerator, v.denominator)),
    (Decimal, lambda v: Decimal(Decimal.__str__(v))),
)


class Encoder:
    """Turns values into JSON text. `handle` says what stands for an object that has no plain form; `subclass`, if
    given, what is kept of an instance of a subclass beside its reduced value.

    `met` has the containers that can change, by the order in which they were met; a container met twice is a reference.
    """

    def __init__(
        self, handle: Handle, met: Iterable[object] = (), subclass: Callable[[object], Any] | None = None
    ) -> None:
        self.handle, self.subclass = handle, subclass
        self.met: list[object] = list(met)
        self.numbers = {id(value): number for number, value in enumerate(self.met)}
        self.nodes = 0

    def text(self, value: object) -> str:
        return _compact(self.node(value, 0))

    def node(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in PLAIN or kind is float:
            return value
        if kind is int:
            return value if -BIG < value < BIG else {"i": hex(value)}
        if depth > MAX_DEPTH:
            raise CodecError(f"nested deeper than {MAX_DEPTH}")
        if kind in _SCALARS:
            tag, content = _SCALARS[kind]
            return {tag: content(value)}
        if (container := self._CONTAINERS.get(kind)) is not None:
            return container(self, value, depth)
        if kind is type and value in _TYPE_NAMES:
            return {"T": _TYPE_NAMES[value]}
        if kind is slice:
            return {"S": self.items((value.start, value.stop, value.step), depth)}
        return self._other(value, depth)

    def items(self, values: Iterable[Any], depth: int) -> list[Any]:
        values = list(values)
        self.nodes += len(values)
        if self.nodes > MAX_NODES:
            raise CodecError(f"more than {MAX_NODES:,} values")
        kinds = set(map(type, values))
        if kinds <= _BARE and (int not in kinds or _within(values)):
            return values  # the common case, at the speed of C
        return [self.node(value, depth + 1) for value in values]

    def contents(self, value: Any) -> Any:
        """What is in a container that was met, without looking up its number."""
        return self._CONTENTS[type(value)](self, value, 0)

    def _numbered(self, value: Any, depth: int) -> Any:
        number = self.numbers.get(id(value))
        if number is not None:
            return {"n": number}
        self.numbers[id(value)] = len(self.met)
        self.met.append(value)
        content = self._CONTENTS[type(value)](self, value, depth)
        return content if type(value) is list else {_TAGS[type(value)]: content}

    def _tuple(self, value: tuple[Any, ...], depth: int) -> Any:
        return {"t": self.items(value, depth)}

    def _frozenset(self, value: frozenset[Any], depth: int) -> Any:
        return {"f": self.items(value, depth)}

    def _list(self, value: list[Any], depth: int) -> Any:
        return self.items(value, depth)

    def _dict(self, value: dict[Any, Any], depth: int) -> Any:
        return [self.items(value.keys(), depth), self.items(value.values(), depth)]

    def _deque(self, value: deque[Any], depth: int) -> Any:
        return [value.maxlen, self.items(value, depth)]

    def _bytearray(self, value: bytearray, depth: int) -> Any:
        return value.hex()

    def _other(self, value: Any, depth: int) -> Any:
        for base, read in BASES:
            if issubclass(type(value), base) and type(value) is not base:
                plain = self.node(read(value), depth + 1)
                number = None if self.subclass is None else self.subclass(value)
                return plain if number is None else {"u": [number, plain]}
        if type(value).__module__ == "numpy":
            if hasattr(type(value), "item") and getattr(value, "shape", None) == ():
                return self.node(value.item(), depth + 1)  # a scalar is its value
            if type(value).__name__ == "ndarray" and value.dtype.kind in _ARRAYS:
                return {"N": [value.dtype.str, list(value.shape), value.tobytes().hex()]}
        return self.handle(value)

    _CONTAINERS: Mapping[type, Callable[[Encoder, Any, int], Any]] = {
        tuple: _tuple,
        frozenset: _frozenset,
        **dict.fromkeys((list, dict, Counter, OrderedDict, set, deque, bytearray), _numbered),
    }
    _CONTENTS: Mapping[type, Callable[[Encoder, Any, int], Any]] = {
        list: _list,
        dict: _dict,
        Counter: _dict,
        OrderedDict: _dict,
        set: _list,
        deque: _deque,
        bytearray: _bytearray,
    }


_TAGS: dict[Any, str] = {dict: "d", Counter: "C", OrderedDict: "O", set: "s", deque: "q", bytearray: "y"}
_BARE = PLAIN | {int, float}


def _within(values: list[Any]) -> bool:
    """Whether all the ints among these scalars are within BIG."""
    ints = [value for value in values if type(value) is int]
    return min(ints) > -BIG and max(ints) < BIG


class Decoder:
    """Turns JSON text back into values. `special` says what to make of the tags that are none of this file's.

    Raises CodecError for whatever an Encoder would not have written. `met` as in Encoder."""

    def __init__(self, special: Callable[[str, Any], Any], met: Iterable[object] = ()) -> None:
        self.special = special
        self.met: list[Any] = list(met)

    def value(self, node: Any, depth: int = 0) -> Any:
        kind = type(node)
        if kind in PLAIN or kind is int or kind is float:
            return node
        if depth > MAX_DEPTH + 1:
            raise CodecError(f"nested deeper than {MAX_DEPTH}")
        if kind is list:
            new: list[Any] = []
            self.met.append(new)
            new.extend(self.items(node, depth))
            return new
        if kind is not dict or len(node) != 1:
            raise CodecError("is not what the encoding produces")
        ((tag, content),) = node.items()
        return self._tagged(tag, content, depth)

    def items(self, nodes: Any, depth: int) -> list[Any]:
        if type(nodes) is not list:
            raise CodecError("has something else where a list belongs")
        if set(map(type, nodes)) <= _BARE:
            return nodes
        return [self.value(node, depth + 1) for node in nodes]

    def change(self, value: Any, content: Any) -> None:
        """Make a container that was met hold `content`, as Encoder.contents wrote it."""
        kind = type(value)
        if kind is bytearray:
            value[:] = bytes.fromhex(content)
        elif kind is list:
            value[:] = self.items(content, 0)
        else:
            self._fill(value, kind, content, 0)

    def apply(self, changes: Any) -> None:
        """What `changes_of` found on the other side."""
        for number, content in changes:
            self.change(self.met[number], content)

    def _tagged(self, tag: str, content: Any, depth: int) -> Any:
        try:
            if tag in _NEW:
                new = _NEW[tag](content)
                self.met.append(new)
                self._fill(new, type(new), content, depth)
                return new
            if tag == "t":
                return tuple(self.items(content, depth))
            if tag == "f":
                return frozenset(self.items(content, depth))
            if tag == "S":
                return slice(*self.items(content, depth))
            if tag == "n":
                return self.met[content]
            if tag == "u":
                return self.special("u", [content[0], self.value(content[1], depth + 1)])
            if tag == "y":
                self.met.append(bytearray.fromhex(content))
                return self.met[-1]
            if tag in _FROM:
                return _FROM[tag](content)
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, ImportError) as error:
            raise CodecError(f"cannot be read back: {type(error).__name__}") from error
        return self.special(tag, content)

    def _fill(self, value: Any, kind: type, content: Any, depth: int) -> None:
        if issubclass(kind, dict):
            keys, values = content
            filled = dict(zip(self.items(keys, depth), self.items(values, depth), strict=True))
            value.clear()
            value.update(filled)
        else:
            filled_items = self.items(content[1] if kind is deque else content, depth)
            value.clear()
            (value.update if kind is set else value.extend)(filled_items)


_NEW: dict[str, Callable[[Any], Any]] = {
    "d": lambda _: {},
    "C": lambda _: Counter(),
    "O": lambda _: OrderedDict(),
    "s": lambda _: set(),
    "q": lambda content: deque(maxlen=content[0]),
}


def reduced(value: Any) -> Any:
    """An instance of a subclass as its base holds it."""
    return next((read(value) for base, read in BASES if isinstance(value, base)), None)


def snapshot(value: Any) -> Any:
    """A shallow copy to tell by, later, whether a container has changed; see `changed`."""
    return value.copy()


def changed(before: Any, now: Any) -> bool:
    """Whether a container holds other objects than its snapshot, or the same ones in another order."""
    if type(now) is bytearray:
        return bool(before != now)
    if len(before) != len(now):
        return True
    if isinstance(now, dict):
        before, now = chain.from_iterable(before.items()), chain.from_iterable(now.items())
    return any(a is not b for a, b in zip(before, now, strict=True))


def changes_of(encoder: Encoder, given: Sequence[Any], before: Sequence[Any]) -> list[Any]:
    """[number, content] of each of the `given` containers that is no longer as `before`."""
    pairs = enumerate(zip(before, given, strict=True))
    return [[number, encoder.contents(now)] for number, (then, now) in pairs if changed(then, now)]


def parse(text: str) -> Any:
    """JSON, as hostile as it likes. Raises CodecError."""
    try:
        return _parse(text)
    except (ValueError, RecursionError) as error:
        raise CodecError(f"is no JSON: {type(error).__name__}") from error


def dump(message: Any) -> str:
    return _compact(message)
