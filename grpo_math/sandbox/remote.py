"""The tests' side of the wall: ask the program, and make values or stand-ins of what it says.

What comes back is data: it may be wrong, it cannot act. Whoever answers here may be lying. Leaves out what a stand-in
does (stand_in.py) and the tests themselves (tester.py).
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, Sequence, ValuesView
from socket import socket
from types import CoroutineType
from typing import Any

from grpo_math.sandbox import wire
from grpo_math.sandbox.codec import (
    EXCEPTIONS,
    FUNCTIONS,
    MAX_CAUSES,
    MAX_MESSAGE,
    CodecError,
    Decoder,
    Encoder,
    changes_of,
    dump,
    parse,
    snapshot,
)
from grpo_math.sandbox.stand_in import HYBRIDS, Handle, Own, RemoteIterator, StandIn, awaited, handle_of, number_of

MAX_ANCESTORS = 20  # of an exception's class, one above the other
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
        raised: BaseException
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
                    raised = StopIteration()
                    break
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
            # hostile data may fail anywhere in here; were this an `error`, a program could ask for one
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
        if isinstance(error, Own) and number is not None:
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
            own = () if any(issubclass(base, Own) for base in bases) else (Own,)
            self._exceptions[number] = type(str(name), (*own, *dict.fromkeys(bases)), {})
        return self._exceptions[number]

    def _call_back(self, number: int, args: Any, kwargs: Any) -> None:
        decoder = Decoder(self._special)
        operands = decoder.items(args, 0)
        named = dict(zip(kwargs[0], decoder.items(kwargs[1], 0), strict=True))
        function = self._callbacks[number]
        given = list(decoder.met)
        before = [snapshot(container) for container in given]
        encoder = Encoder(self._no_plain_form, given, number_of)
        try:
            answer = ["return", encoder.node(function(*operands, **named), 0)]
        except (
            Exception
        ) as raised:  # the test's function may raise for the program to catch, and it chose the arguments
            error = TypeError(str(raised)) if isinstance(raised, TestsError) else raised
            self._tests_errors.append(error)
            answer = ["raise", _built_in(error), str(error)[:MAX_MESSAGE], len(self._tests_errors) - 1]
        self._send([*answer, changes_of(encoder, given, before)])

    def _encoder(self) -> Encoder:
        return Encoder(self._no_plain_form, (), number_of)

    def _no_plain_form(self, value: object) -> Any:
        """What stands for an object of the tests that cannot be copied."""
        if isinstance(value, StandIn):
            return {"h": handle_of(value).number}
        if isinstance(value, type) and issubclass(value, Own):
            cls: type = value
            return {"h": next(number for number, kind in self._exceptions.items() if kind is cls)}
        if isinstance(value, Own) and "__handle__" in value.__dict__:
            return {"h": handle_of(value.__dict__["__handle__"]).number}
        if isinstance(value, BaseException):
            return {"e": [_built_in(value), self._encoder().node(list(value.args), 0)]}
        name = str(getattr(value, "__name__", "function"))
        if FUNCTIONS.get(name) is value:
            return {"B": name}
        if isinstance(value, CoroutineType) and value.cr_code is awaited.__code__:
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
            return awaited(self.stand_in(number)) if kind == "coroutine" else self.stand_in(number, kind)
        raise CodecError(f"has the unknown tag {str(tag)[:20]!r}")

    def _hybrid(self, number: int, plain: Any) -> Any:
        """The plain value of an instance of a subclass, which has its other attributes from the program."""
        known = self._hybrids.get(number)
        if (kind := HYBRIDS.get(type(plain))) is None or (type(known) is kind and known == plain):
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
