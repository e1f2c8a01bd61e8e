"""The tests' side of the wall: stand-ins for the program's objects, and plain values for the rest.

A stand-in forwards what is done to it. What comes back is data: it may be wrong, it cannot act. A stand-in never equals
a plain value, is never ordered against one, and arithmetic between the two never gives a plain value: the program would
be handed what it is to be compared with, and could answer as it likes. Two stand-ins compare as the program says, which
`Session.own_word` remembers.

Leaves out the tests themselves (tester.py) and all trust: whoever answers here may be lying.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, ItemsView, Iterator, KeysView, Sequence, ValuesView
from dataclasses import dataclass
from socket import socket
from types import CoroutineType
from typing import Any

from grpo_math.sandbox import wire
from grpo_math.sandbox.codec import (
    BASES,
    DATACLASS_FUNCTIONS,
    EXCEPTIONS,
    FUNCTIONS,
    CodecError,
    Decoder,
    Encoder,
    changes_of,
    dump,
    parse,
    snapshot,
)

MAX_MESSAGE = 500  # characters of an exception's text
MAX_CAUSES, MAX_ANCESTORS = 3, 20
_STOPS = ("StopIteration", "StopAsyncIteration", "GeneratorExit")  # else all(map(f, xs)) would end early, and pass


class Gone(BaseException):
    """The program is no longer there to be asked, or makes no sense. No `except Exception` of a test hides it."""


class TestsError(Exception):
    """The tests ask for something that cannot be done here: their fault or ours, not the program's."""

    __test__ = False  # it is no test, whatever pytest makes of its name


class Session:
    """Speaks with one program over `channel`.

    gone: why there is nobody any more, too_large where that was the size of an answer. raised: the exceptions that came
    from the program. own_word: whether something was decided by the program's own comparisons. class_named: whether the
    tests, by their text, expect objects of the program's own classes."""

    def __init__(self, channel: socket) -> None:
        self.channel = channel
        self.gone: str | None = None
        self.too_large = self.own_word = self.class_named = False
        self.raised: list[BaseException] = []
        self._stand_ins: dict[int, StandIn] = {}
        self._exceptions: dict[int, type[BaseException]] = {}
        self._callbacks: list[Callable[..., Any]] = []
        self._tests_errors: list[Exception] = []
        self._hybrids: dict[int, Any] = {}

    def load(self, sources: Sequence[str]) -> None:
        """Run the program's sources one after the other in one namespace. Raises what it raises, or Gone."""
        self._ask(["load", sources], self._encoder())

    def names(self, wanted: Sequence[str]) -> dict[str, Any]:
        """Those of the `wanted` global names that the program has, and their values."""
        found = self._ask(["names", wanted], self._encoder())
        if type(found) is not dict:
            raise self._lost("it did not say which names it has")
        return found

    def do(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Have the program apply one of program.OPERATIONS. Raises what it raises, or Gone."""
        encoder = self._encoder()
        operands = encoder.items(args, 0)
        named = [list(kwargs), encoder.items(kwargs.values(), 0)]
        return self._ask(["do", operation, operands, named], encoder, operation)

    def stand_in(self, number: int, kind: str = "object") -> StandIn:
        """The one for this handle; the same object, the same stand-in."""
        if type(number) is not int or type(kind) is not str:
            raise CodecError("has no handle where one belongs")
        if number not in self._stand_ins:
            made: StandIn = object.__new__(RemoteIterator if kind == "iterator" else StandIn)
            object.__setattr__(made, "__handle__", Handle(self, number, kind))
            self._stand_ins[number] = made
        return self._stand_ins[number]

    def _ask(self, message: list[Any], encoder: Encoder, operation: str = "") -> Any:
        if self.gone is not None:
            raise Gone(self.gone)
        self._send(message)
        try:
            while True:
                kind, *rest = self._receive()
                if kind == "value":
                    return self._value(encoder, *rest)
                if kind == "call":
                    self._call_back(*rest)
                    continue
                Decoder(self._special, encoder.met).apply(rest[-1])
                if kind == "stop" and operation in ("next", "anext"):
                    raise StopIteration
                if kind == "raise":
                    raised = self._error(rest[0])
                    break
                if kind != "again":
                    raise CodecError("is no answer")
                raised = self._tests_errors[rest[0]]
                break
        except CodecError as error:
            raise self._lost(f"its answer {error}") from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise self._lost("its answer is malformed") from error
        self.raised.append(raised)
        raise raised

    def _send(self, message: list[Any]) -> None:
        try:
            wire.send(self.channel, dump(message))
        except wire.WireError as error:
            raise self._lost(str(error)) from error

    def _receive(self) -> Any:
        try:
            answer = parse(wire.receive(self.channel))
        except wire.WireError as error:
            self.too_large = isinstance(error, wire.TooLarge)
            raise self._lost(str(error)) from error
        if type(answer) is not list or not answer:
            raise CodecError("is no answer")
        return answer

    def _lost(self, why: str) -> Gone:
        self.gone = why
        return Gone(why)

    def _value(self, encoder: Encoder, node: Any, changes: Any) -> Any:
        decoder = Decoder(self._special, encoder.met)
        value = decoder.value(node)
        decoder.apply(changes)
        return value

    def _error(self, described: Any, depth: int = 0) -> BaseException:
        cls, message, args, number, cause = described
        kind = self._exception_class(cls)
        try:
            error = kind(*Decoder(self._special).value(args))
        except (TypeError, ValueError):  # such as UnicodeDecodeError, which wants five arguments
            error = RuntimeError(f"{kind.__name__}: {message}")
        if isinstance(error, _Own) and number is not None:
            error.__dict__["__handle__"] = self.stand_in(number)
        if cause is not None and depth < MAX_CAUSES:
            error.__cause__ = self._error(cause, depth + 1)
        return error

    def _exception_class(self, cls: Any, depth: int = 0) -> type[BaseException]:
        """A class of our own for the program's: under its name, and under the same built-in ones."""
        if type(cls) is str:
            return EXCEPTIONS["RuntimeError" if cls in _STOPS else cls]
        number, name, parents = cls
        if depth > MAX_ANCESTORS:
            raise CodecError("has an exception with too many ancestors")
        if number not in self._exceptions:
            bases = [self._exception_class(parent, depth + 1) for parent in parents] or [Exception]
            own = () if any(issubclass(base, _Own) for base in bases) else (_Own,)
            self._exceptions[number] = type(str(name), (*own, *dict.fromkeys(bases)), {})
        return self._exceptions[number]

    def _call_back(self, number: int, args: Any, kwargs: Any) -> None:
        decoder = Decoder(self._special)
        operands = decoder.items(args, 0)
        named = dict(zip(kwargs[0], decoder.items(kwargs[1], 0), strict=True))
        function = self._callbacks[number]
        given = list(decoder.met)
        before = [snapshot(container) for container in given]
        encoder = Encoder(self._no_plain_form, given, _number_of)
        try:
            answer = ["return", encoder.node(function(*operands, **named), 0)]
        except Exception as error:  # the test's function may raise for the program to catch, and it chose the arguments
            self._tests_errors.append(error)
            answer = ["raise", _built_in(error), str(error)[:MAX_MESSAGE], len(self._tests_errors) - 1]
        self._send([*answer, changes_of(encoder, given, before)])

    def _encoder(self) -> Encoder:
        return Encoder(self._no_plain_form, (), _number_of)

    def _no_plain_form(self, value: object) -> Any:
        """What stands for an object of the tests that cannot be copied."""
        if isinstance(value, StandIn):
            return {"h": handle_of(value).number}
        if isinstance(value, type) and issubclass(value, _Own):
            cls: type = value
            return {"h": next(number for number, kind in self._exceptions.items() if kind is cls)}
        if isinstance(value, _Own) and "__handle__" in value.__dict__:
            return {"h": handle_of(value.__dict__["__handle__"]).number}
        if isinstance(value, BaseException):
            return {"e": [_built_in(value), self._encoder().node(list(value.args), 0)]}
        name = str(getattr(value, "__name__", "function"))
        if FUNCTIONS.get(name) is value:
            return {"B": name}
        if isinstance(value, CoroutineType) and value.cr_code is _awaited.__code__:
            assert value.cr_frame is not None  # it has not begun
            coroutine = value.cr_frame.f_locals["coroutine"]
            value.close()
            return {"h": handle_of(coroutine).number}
        if isinstance(value, KeysView | ValuesView | ItemsView):
            value = iter(value)
        if isinstance(value, Iterator):
            return {"g": self._callback(lambda: tuple(_take_one(value)))}
        if callable(value):
            return {"k": [self._callback(value), name, getattr(value, "__doc__", None)]}
        raise TestsError(f"the tests pass the program a {type(value).__name__}, which has no plain form")

    def _callback(self, function: Callable[..., Any]) -> int:
        self._callbacks.append(function)
        return len(self._callbacks) - 1

    def _special(self, tag: str, content: Any) -> Any:
        if tag == "u":
            number, plain = content
            return self.stand_in(number, "based") if self.class_named else self._hybrid(number, plain)
        if tag == "h":
            number, kind, *ancestry = content
            if kind == "exception":
                return self._exception_class(*ancestry)
            return _awaited(self.stand_in(number)) if kind == "coroutine" else self.stand_in(number, kind)
        raise CodecError(f"has the unknown tag {str(tag)[:20]!r}")

    def _hybrid(self, number: int, plain: Any) -> Any:
        """The plain value of an instance of a subclass, which has its other attributes from the program."""
        known = self._hybrids.get(number)
        if (kind := _HYBRIDS.get(type(plain))) is None or (type(known) is kind and known == plain):
            return plain if kind is None else known
        made = kind(plain)
        made.__dict__["__handle__"] = self.stand_in(number)
        self._hybrids[number] = made
        return made


def _built_in(error: BaseException) -> str:
    """The name of the built-in exception that it is, or descends from."""
    return next(kind.__name__ for kind in type(error).__mro__ if EXCEPTIONS.get(kind.__name__) is kind)


def _take_one(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        yield item
        return


@dataclass(slots=True)
class Handle:
    """What a stand-in stands for. tainted: it was computed from a plain value of the tests; method: it is an attribute
    of one of the program's objects."""

    session: Session
    number: int
    kind: str
    tainted: bool = False
    method: bool = False


_PROTOCOLS = ("__array", "__buffer__", "__dlpack", "__cuda_array")


class StandIn:
    """An object of the program's. That of a subclass of a plain type, the kind `based`, equals what its base holds."""

    __slots__ = ("__handle__",)
    __handle__: Handle

    def __getattribute__(self, name: str) -> Any:
        if name.startswith(_PROTOCOLS):  # NumPy and the like would follow what they say
            raise AttributeError(name)
        value = _do("getattr", self, name)
        if isinstance(value, StandIn) and kind_of(self) in ("object", "based"):
            handle_of(value).method = True
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        _do("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        _do("delattr", self, name)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        value = _do("call", self, *args, **kwargs)
        if isinstance(value, bool) and handle_of(self).method and (args or kwargs):
            handle_of(self).session.own_word = True  # f(1).equals([1])
        return value

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StandIn):
            return self is other or _own_word("eq", self, other)
        return kind_of(self) == "based" and bool(_do("reduced", self) == other)

    def __ne__(self, other: object) -> bool:
        if isinstance(other, StandIn):
            return self is not other and _own_word("ne", self, other)
        return not self == other

    def __bool__(self) -> bool:
        return bool(_typed(bool, "bool", self))

    def __hash__(self) -> int:
        return int(_typed(int, "hash", self))

    def __repr__(self) -> str:
        return str(_typed(str, "repr", self))

    def __str__(self) -> str:
        return str(_typed(str, "str", self))

    def __format__(self, spec: str) -> str:
        return str(_typed(str, "format", self, spec))

    def __len__(self) -> int:
        return int(_typed(int, "len", self))

    def __dir__(self) -> list[str]:
        return list(_typed(list, "dir", self))

    def __contains__(self, item: object) -> bool:
        if isinstance(item, StandIn) or handle_of(self).session.class_named:
            return _own_word("contains", self, item)
        return any(item is other or item == other for other in self)

    def __iter__(self) -> Iterator[Any]:
        iterator = _do("iter", self)
        if not isinstance(iterator, StandIn):
            raise TypeError("the program's object has an __iter__ that returns no iterator")
        while True:
            try:
                item = _do("next", iterator)
            except StopIteration:
                return
            yield item

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, StandIn) and bool(_typed(bool, "isinstance", instance, self))

    def __subclasscheck__(self, kind: object) -> bool:
        return isinstance(kind, StandIn) and bool(_typed(bool, "issubclass", kind, self))

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return bool(_typed(bool, "exit", self, error))

    async def __aenter__(self) -> Any:
        return _do("aenter", self)

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return bool(_typed(bool, "aexit", self, error))

    def __aiter__(self) -> Any:
        return _do("aiter", self)

    async def __anext__(self) -> Any:
        try:
            return _do("anext", self)
        except StopIteration as stop:
            raise StopAsyncIteration from stop

    def __copy__(self) -> Any:
        return _do("copy", self)

    def __deepcopy__(self, memo: object) -> Any:
        return _do("deepcopy", self)


class RemoteIterator(StandIn):
    """An iterator or generator of the program's."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return _do("next", self)


def handle_of(stand_in: StandIn) -> Handle:
    handle: Handle = object.__getattribute__(stand_in, "__handle__")
    return handle


def forward_dataclasses() -> None:
    """Have the functions of `dataclasses` that look into objects do so where the objects are."""
    for name in DATACLASS_FUNCTIONS:
        setattr(dataclasses, name, _here_or_there(name, getattr(dataclasses, name)))


def _here_or_there(name: str, here: Callable[..., Any]) -> Callable[..., Any]:
    def function(value: Any, /, *args: Any, **kwargs: Any) -> Any:
        there = isinstance(value, StandIn)
        return _do(f"dataclasses.{name}", value, *args, **kwargs) if there else here(value, *args, **kwargs)

    return function


def type_of(value: object) -> Any:
    """type(value), where the value may be the program's."""
    stand_in = value if isinstance(value, StandIn) else getattr(value, "__dict__", {}).get("__handle__")
    return type(value) if stand_in is None else _do("getattr", stand_in, "__class__")


def kind_of(value: object) -> str:
    """The kind of a stand-in, as program.py names it; nothing for a plain value."""
    return handle_of(value).kind if isinstance(value, StandIn) else ""


def _do(operation: str, stand_in: StandIn, *args: Any, **kwargs: Any) -> Any:
    return handle_of(stand_in).session.do(operation, stand_in, *args, **kwargs)


def _typed(kind: type, operation: str, stand_in: StandIn, *args: Any) -> Any:
    value = _do(operation, stand_in, *args)
    if type(value) is not kind:
        raise TypeError(f"{operation} of the program's object gives a {type(value).__name__}, not a {kind.__name__}")
    return value


def _own_word(operation: str, stand_in: StandIn, *args: Any) -> bool:
    handle_of(stand_in).session.own_word = True
    return bool(_typed(bool, operation, stand_in, *args))


def _tainted(value: object) -> bool:
    return isinstance(value, StandIn) and handle_of(value).tainted


def _arithmetic(operation: str, left: Any, right: Any) -> Any:
    """With a plain value on one side the result has to be the program's own object again, and so has whatever is
    computed from that: else `abs(answer - 0.2) < 1e-9` would ask the program whether it is right."""
    session = handle_of(left if isinstance(left, StandIn) else right).session
    mixed = not (isinstance(left, StandIn) and isinstance(right, StandIn)) or _tainted(left) or _tainted(right)
    if mixed and not session.class_named:
        raise TypeError(f"{operation} between an object of the program's and a plain value")
    result = session.do(operation, left, right)
    if mixed and not isinstance(result, StandIn) and "based" in (kind_of(left), kind_of(right)):
        return _FUNCTIONS[operation](_plain(left), _plain(right))  # what the base makes of it, worked out here
    return _kept_apart(operation, result, mixed)


def _plain(value: Any) -> Any:
    return _do("reduced", value) if kind_of(value) == "based" else value


def _kept_apart(operation: str, result: Any, tainted: bool) -> Any:
    if tainted:
        if not isinstance(result, StandIn):
            raise TypeError(f"{operation} of the program's object and a plain value gives a {type(result).__name__}")
        handle_of(result).tainted = True
    return result


def _binary(operation: str, swapped: bool = False) -> Callable[[Any, Any], Any]:
    if swapped:
        return lambda self, other: _arithmetic(operation, other, self)
    return lambda self, other: _arithmetic(operation, self, other)


def _order(operation: str) -> Callable[[Any, Any], Any]:
    def method(self: StandIn, other: Any) -> bool:
        if isinstance(other, StandIn):
            return _own_word(operation, self, other)
        if kind_of(self) == "based":
            return bool(getattr(operator, operation)(_do("reduced", self), other))
        raise TypeError(f"the program's object is not ordered against a {type(other).__name__}")

    return method


def _conversion(operation: str, kind: type | None) -> Callable[..., Any]:
    def method(self: StandIn, *args: Any) -> Any:
        if _tainted(self):
            return _kept_apart(operation, _do(operation, self, *args), True)
        return _do(operation, self, *args) if kind is None else _typed(kind, operation, self, *args)

    return method


def _forwarded(operation: str) -> Callable[..., Any]:
    return lambda self, *args: _do(operation, self, *args)


_ARITHMETIC = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "xor")
_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    **{name: getattr(operator, name) for name in (*_ARITHMETIC, "and_", "or_")},
    **{f"i{name}": getattr(operator, name) for name in _ARITHMETIC},
    "iand": operator.and_,
    "ior": operator.or_,
    "divmod": divmod,
}
_OPERATORS = {name: name for name in _ARITHMETIC} | {"and": "and_", "or": "or_", "divmod": "divmod"}
_METHODS: dict[str, Callable[..., Any]] = {
    **{f"__{name}__": _binary(operation) for name, operation in _OPERATORS.items()},
    **{f"__r{name}__": _binary(operation, swapped=True) for name, operation in _OPERATORS.items()},
    **{f"__i{name}__": _binary(f"i{name}") for name in (*_ARITHMETIC, "and", "or")},
    **{f"__{name}__": _order(name) for name in ("lt", "le", "gt", "ge")},
    **{f"__{name}__": _conversion(name, None) for name in ("neg", "pos", "invert", "abs", "round")},
    **{f"__{kind.__name__}__": _conversion(kind.__name__, kind) for kind in (int, float, complex, bytes)},
    "__index__": _conversion("index", int),
    **{f"__{name}__": _forwarded(name) for name in ("getitem", "setitem", "delitem", "enter", "reversed")},
}
for _name, _method in _METHODS.items():
    setattr(StandIn, _name, _method)


async def _awaited(coroutine: StandIn) -> Any:
    return _do("await", coroutine)


class _Own:
    """Of exceptions that the program defines: the attributes that it gave them."""

    def __getattr__(self, name: str) -> Any:
        return _from_stand_in(self, name)


def _from_stand_in(value: Any, name: str) -> Any:
    stand_in = value.__dict__.get("__handle__")
    if stand_in is None or name.startswith("__"):
        raise AttributeError(name)
    return _do("getattr", stand_in, name)


_TEXTS = {
    f"__{name}__": lambda self, *args, _name=name: str(_typed(str, _name, self.__dict__["__handle__"], *args))
    for name in ("str", "repr", "format")
}
# a Counter's or a defaultdict's idea of a key that is not there
_MISSING: dict[type, dict[str, Any]] = {
    dict: {"__missing__": lambda self, key: _do("getitem", self.__dict__["__handle__"], key)}
}
_HYBRIDS: dict[type, type] = {
    base: type(
        f"Remote{base.__name__.capitalize()}",
        (base,),
        {"__getattr__": _from_stand_in, **_TEXTS, **_MISSING.get(base, {})},
    )
    for base, _ in BASES
    if base in (int, float, str, bytes, tuple, list, dict, set, frozenset)
}


def _number_of(value: Any) -> int | None:
    """The handle of the program's object that a hybrid was made from."""
    stand_in = getattr(value, "__dict__", {}).get("__handle__")
    return None if stand_in is None else handle_of(stand_in).number
