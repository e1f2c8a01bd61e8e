"""Stand-ins for the program's objects, and plain values that have something of the program's about them.

A stand-in forwards what is done to it. It never equals a plain value, is never ordered against one, and arithmetic
between the two never gives a plain value: the program would be handed what it is to be compared with, and could answer
as it likes. Two stand-ins compare as the program says, which `Session.own_word` remembers.

Leaves out how what is forwarded gets to the program (remote.py).
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpo_math.sandbox.codec import BASES, DATACLASS_FUNCTIONS

if TYPE_CHECKING:
    from grpo_math.sandbox.remote import Session


class Refused(Exception):
    """What a stand-in does not do: the program's object is not what the tests need. Any other exception of this package
    is a mistake of ours."""


class RefusedType(Refused, TypeError):
    pass


class RefusedAttribute(Refused, AttributeError):
    pass


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
            raise RefusedAttribute(name)
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
        return kind_of(self) == "based" and bool(_here(operator.eq, _do("reduced", self), other))

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
            raise RefusedType("the program's object has an __iter__ that returns no iterator")
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
        raise RefusedType(f"{operation} of the program's object gives a {type(value).__name__}, not a {kind.__name__}")
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
        raise RefusedType(f"{operation} between an object of the program's and a plain value")
    result = session.do(operation, left, right)
    if mixed and not isinstance(result, StandIn) and "based" in (kind_of(left), kind_of(right)):
        return _here(_FUNCTIONS[operation], _plain(left), _plain(right))  # what the base makes of it
    return _kept_apart(operation, result, mixed)


def _here(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """Worked out on this side, of plain values of which one is the program's: what they cannot do is its fault."""
    try:
        return function(left, right)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise RefusedType(str(error)) from error


def _plain(value: Any) -> Any:
    return _do("reduced", value) if kind_of(value) == "based" else value


def _kept_apart(operation: str, result: Any, tainted: bool) -> Any:
    if tainted:
        if not isinstance(result, StandIn):
            raise RefusedType(f"{operation} of the program's object and a plain value gives a {type(result).__name__}")
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
            return bool(_here(getattr(operator, operation), _do("reduced", self), other))
        raise RefusedType(f"the program's object is not ordered against a {type(other).__name__}")

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


async def awaited(coroutine: StandIn) -> Any:
    return _do("await", coroutine)


class Own:
    """Of exceptions that the program defines: the attributes that it gave them."""

    def __getattr__(self, name: str) -> Any:
        return _from_stand_in(self, name)


def _from_stand_in(value: Any, name: str) -> Any:
    stand_in = value.__dict__.get("__handle__")
    if stand_in is None or name.startswith("__"):
        raise RefusedAttribute(name)
    return _do("getattr", stand_in, name)


_TEXTS = {
    f"__{name}__": lambda self, *args, _name=name: str(_typed(str, _name, self.__dict__["__handle__"], *args))
    for name in ("str", "repr", "format")
}
# a Counter's or a defaultdict's idea of a key that is not there
_MISSING: dict[type, dict[str, Any]] = {
    dict: {"__missing__": lambda self, key: _do("getitem", self.__dict__["__handle__"], key)}
}
HYBRIDS: dict[type, type] = {
    base: type(
        f"Remote{base.__name__.capitalize()}",
        (base,),
        {"__getattr__": _from_stand_in, **_TEXTS, **_MISSING.get(base, {})},
    )
    for base, _ in BASES
    if base in (int, float, str, bytes, tuple, list, dict, set, frozenset)
}


def number_of(value: Any) -> int | None:
    """The handle of the program's object that a hybrid was made from."""
    stand_in = getattr(value, "__dict__", {}).get("__handle__")
    return None if stand_in is None else handle_of(stand_in).number
