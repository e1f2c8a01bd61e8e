"""The program's side of the wall: load it, do to its objects what the tests ask, answer with plain data.

Runs inside the sandbox, in the interpreter that the program can change at will. So nothing here is trusted: an answer
is an answer of the program, and what it says of itself proves nothing. Leaves out the tests, which never come here
(remote.py speaks for them), and what keeps the program in (child.py).
"""

from __future__ import annotations

import atexit
import copy
import dataclasses
import functools
import linecache
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from grpo_math.sandbox import wire
from grpo_math.sandbox.codec import (
    DATACLASS_FUNCTIONS,
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
    reduced,
    snapshot,
)

FILE = "solution.py"
TESTS_ERROR = "_grpo_math_tests_error"  # of exceptions that a function of the tests raised: which one it was
MAX_ARGS = 4_000  # characters of an exception's encoded arguments


def _call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


@functools.cache
def _loop() -> Any:
    import asyncio  # of use to few, and large

    return asyncio.new_event_loop()  # one for all: an asynchronous generator goes on in the loop in which it began


def _await(coroutine: Any) -> Any:
    async def whole() -> Any:
        return await coroutine

    return _loop().run_until_complete(whole())


def _following(iterator: Any) -> Any:
    try:
        return _await(type(iterator).__anext__(iterator))
    except StopAsyncIteration as stop:
        raise StopIteration from stop


def _leave(manager: Any, error: BaseException | None) -> bool:
    return bool(_await(type(manager).__aexit__(manager, None if error is None else type(error), error, None)))


def _exit(manager: Any, error: BaseException | None) -> bool:
    kind = None if error is None else type(error)
    return bool(type(manager).__exit__(manager, kind, error, None))


# What the tests may ask for, by the name that remote.py sends.
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": _call,
    "await": _await,
    "aenter": lambda manager: _await(type(manager).__aenter__(manager)),
    "aexit": _leave,
    "aiter": lambda source: type(source).__aiter__(source),
    "anext": _following,
    "enter": lambda manager: type(manager).__enter__(manager),
    "exit": _exit,
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "contains": operator.contains,
    "isinstance": isinstance,
    "issubclass": issubclass,
    "reversed": reversed,
    "divmod": divmod,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "dir": dir,
    "reduced": reduced,
    **{f"dataclasses.{name}": getattr(dataclasses, name) for name in DATACLASS_FUNCTIONS},
    **{f.__name__: f for f in (iter, next, len, bool, repr, str, hash, format, int, float, complex, bytes, round, abs)},
    **{
        name: getattr(operator, name)
        for name in (
            *("eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "invert", "index"),
            *(
                "add",
                "sub",
                "mul",
                "matmul",
                "truediv",
                "floordiv",
                "mod",
                "pow",
                "lshift",
                "rshift",
                "and_",
                "or_",
                "xor",
            ),
            *("iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow", "ilshift", "irshift"),
            *("iand", "ior", "ixor"),
        )
    },
}


_IMPORTABLE = (types.FunctionType, types.BuiltinFunctionType, type)
_NAMES = {kind: name for name, kind in EXCEPTIONS.items() if kind.__name__ == name}


class Session:
    """Answers over `channel` until it closes."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.objects: list[object] = []  # by handle; kept alive, so that an id is never another object's
        self.handles: dict[int, int] = {}
        self.module = types.ModuleType("solution")

    def run(self) -> None:
        while True:
            kind, *rest = parse(wire.receive(self.channel))
            if kind == "do":
                self._do(*rest)
            else:
                self._answer(functools.partial({"load": self._load, "names": self._names}[kind], *rest))

    def _load(self, sources: Sequence[str]) -> None:
        sys.modules["solution"] = self.module
        for source in sources:
            run_source(source, self.module.__dict__)

    def _names(self, names: Sequence[str]) -> dict[str, object]:
        return {name: self.module.__dict__[name] for name in names if name in self.module.__dict__}

    def _do(self, operation: str, args: Any, kwargs: Any) -> None:
        decoder = Decoder(self._special)
        operands = decoder.items(args, 0)
        named = dict(zip(kwargs[0], decoder.items(kwargs[1], 0), strict=True))
        given = list(decoder.met)
        before = [snapshot(container) for container in given]

        work = functools.partial(OPERATIONS[operation], *operands, **named)
        self._answer(work, given, before, may_stop=operation in ("next", "anext"))

    def _answer(
        self, work: Callable[[], object], given: Sequence[Any] = (), before: Sequence[Any] = (), may_stop: bool = False
    ) -> None:
        """Send what `work` returns or raises, and what has become of the containers it was `given`."""
        encoder = Encoder(self._handle, given, self._number)
        try:
            message = ["value", encoder.node(work(), 0)]
        except StopIteration as stop:
            message = ["stop"] if may_stop else self._raised(stop)
        except BaseException as error:  # the program's own, whatever it is: the tests hear of it
            message, encoder = self._raised(error), Encoder(self._handle, given, self._number)
        try:
            text = dump([*message, changes_of(encoder, given, before)])
        except BaseException as error:  # too large, or too deep
            text = dump([*self._raised(error), []])
        wire.send(self.channel, text)

    def _raised(self, error: BaseException) -> list[Any]:
        number = getattr(error, TESTS_ERROR, None)
        return ["again", number] if type(number) is int else ["raise", self._described(error, MAX_CAUSES)]

    def _described(self, error: BaseException, causes: int) -> list[Any]:
        try:
            message = str(error)[:MAX_MESSAGE]
        except BaseException:  # its own __str__, which may do anything
            message = ""
        try:
            args = Encoder(self._handle).text(tuple(error.args))
            if len(args) > MAX_ARGS:
                raise CodecError("too long to be worth it")
        except BaseException:
            args = dump([message])
        cause = BaseException.__getattribute__(error, "__cause__")
        described = None if cause is None or not causes else self._described(cause, causes - 1)
        own = type(error) not in _NAMES
        return [self._class(type(error)), message, parse(args), self._number(error) if own else None, described]

    def _class(self, kind: type) -> Any:
        """An exception class: a built-in one by name, else its handle, its name, and those that it descends from."""
        if kind in _NAMES:
            return _NAMES[kind]
        bases = [self._class(base) for base in kind.__bases__ if issubclass(base, BaseException)]
        return [self._number(kind), kind.__name__, bases]

    def _special(self, tag: str, content: Any) -> object:
        if tag in ("h", "u"):
            return self.objects[content if tag == "h" else content[0]]
        if tag == "k":
            return self._callback(*content)
        if tag == "e":
            return EXCEPTIONS[content[0]](*Decoder(self._special).value(content[1]))
        if tag == "B":
            return FUNCTIONS[content]
        if tag == "g":
            return _generator(self._callback(content, "next", None))
        raise CodecError(f"unknown tag {tag}")

    def _callback(self, number: int, name: str, doc: str | None) -> Callable[..., Any]:
        def callback(*args: Any, **kwargs: Any) -> Any:
            encoder = Encoder(self._handle, (), self._number)
            message = ["call", number, encoder.items(args, 0), [list(kwargs), encoder.items(kwargs.values(), 0)]]
            wire.send(self.channel, dump(message))
            return self._until_returned(encoder)

        callback.__name__ = callback.__qualname__ = name
        callback.__doc__ = doc
        return callback

    def _until_returned(self, sent: Encoder) -> Any:
        while True:
            kind, *rest = parse(wire.receive(self.channel))
            if kind in ("return", "raise"):
                decoder = Decoder(self._special, sent.met)
                value = decoder.value(rest[0]) if kind == "return" else None
                decoder.apply(rest[-1])
            if kind == "return":
                return value
            if kind == "raise":
                error = EXCEPTIONS[rest[0]](rest[1])
                setattr(error, TESTS_ERROR, rest[2])
                raise error
            self._do(*rest)  # what the callback, in its turn, asks of the program

    def _handle(self, value: object) -> Any:
        if isinstance(value, type) and issubclass(value, BaseException):
            return {"h": [self._number(value), "exception", self._class(value)]}
        return {"h": [self._number(value), _kind(value)]}

    def _number(self, value: object) -> int:
        number = self.handles.get(id(value))
        if number is None:
            number = self.handles[id(value)] = len(self.objects)
            self.objects.append(value)
        return number


def _generator(following: Callable[[], tuple[object, ...]]) -> Iterator[object]:
    """An iterator of the tests: `following` returns the next item in a tuple, an empty one at the end."""
    while item := following():
        yield item[0]


def _kind(value: object) -> str:
    """What a handle stands for, as far as it matters to the tests."""
    kind = type(value)
    if kind is types.ModuleType:
        return f"module {value.__name__}"  # type: ignore[attr-defined]
    if kind in _IMPORTABLE and (module := sys.modules.get(getattr(value, "__module__", None) or "")) is not None:
        name = getattr(value, "__name__", "")
        if module.__name__ != "solution" and getattr(module, name, None) is value:
            return f"from {module.__name__} {name}"
    if kind is types.CoroutineType:
        return "coroutine"
    if isinstance(value, type):
        return "class"
    if hasattr(kind, "__next__"):
        return "iterator"
    return "object"


def run_source(source: str, namespace: dict[str, Any]) -> None:
    """Execute `source` as a file of its own. Raises whatever it raises."""
    source = source.removeprefix("\ufeff")
    linecache.cache[FILE] = (len(source), None, source.splitlines(keepends=True), FILE)  # inspect reads it there
    exec(compile(source, FILE, "exec", dont_inherit=True), namespace)


def run_script(source: str) -> NoReturn:
    """Execute `source` as the main program over the standard streams, and end the process as an interpreter would."""
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))
    sys.argv = [FILE]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    code = _exit_code(lambda: run_source(source, module.__dict__))
    threads = sys.modules.get("threading")
    for last in (
        getattr(threads, "_shutdown", lambda: None),
        atexit._run_exitfuncs,
        sys.stdout.flush,
        sys.stderr.flush,
    ):  # type: ignore[attr-defined]
        code = _exit_code(last) or code
    os._exit(code)


def _exit_code(work: Callable[[], object]) -> int:
    try:
        work()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0
