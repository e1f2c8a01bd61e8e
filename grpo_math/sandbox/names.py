"""What the names in the tests mean: built-ins, modules and oracles of ours, or something of the program's.

Decided by the text of the tests, before a program is seen, so that no program can take a name over that decides whether
it is right. Leaves out the values behind the program's names (remote.py).
"""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, ModuleType
from typing import Any

from grpo_math.sandbox.remote import Session
from grpo_math.sandbox.stand_in import kind_of, type_of

ALIASES = {"np": "numpy"}
# Modules that a test means when it writes X.y, whatever the program calls X.
MODULES = frozenset(
    {*("math", "cmath", "operator", "statistics", "itertools", "functools", "collections", "re", "json", "random")}
    | {*("string", "decimal", "fractions", "copy", "sys", "os", "typing", "heapq", "bisect", "numpy", "np", "pytest")}
)
# Names that a test means even where the program has defined them; but for what the tests are about.
KNOWN = {
    **dict.fromkeys(("Counter", "OrderedDict", "defaultdict", "deque", "namedtuple"), "collections"),
    **dict.fromkeys(("isclose", "sqrt"), "math"),
    **dict.fromkeys(("allclose", "array_equal"), "numpy"),
    "Decimal": "decimal",
    "Fraction": "fractions",
    "approx": "pytest",
    "assert_allclose": "numpy.testing",
}
# Where else what the program has imported may be taken from on this side: these act on nothing but values.
PURE = frozenset(
    {*("math", "cmath", "operator", "statistics", "itertools", "functools", "collections", "string", "datetime")}
    | {*("decimal", "fractions", "typing", "heapq", "bisect")}
)


@dataclass(frozen=True)
class Reading:
    """What the text of the tests says. used: the global names that it reads, each with whether it is only ever the X of
    X.y; bound: those that it binds; subjects: what it tests; objects: whether it expects objects of the program's."""

    used: Mapping[str, bool]
    bound: frozenset[str]
    subjects: frozenset[str]
    objects: bool


@lru_cache(1024)
def compiled(source: str) -> CodeType:
    return compile(source, "tests.py", "exec", dont_inherit=True)


@lru_cache(1024)
def reading(setup: str, statements: tuple[str, ...], entry: str | None) -> Reading:
    """Raises SyntaxError."""
    trees = [ast.parse(source) for source in (setup, *statements)]
    used: dict[str, bool] = {}
    bound: set[str] = set()
    for tree in trees:
        of = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            bound |= _bound(node)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                used[node.id] = used.get(node.id, True) and id(node) in of
    subjects = frozenset({entry} if entry else _subjects(trees[1:]))
    objects = any(
        (name.lstrip("_")[:1].isupper() or (prefix and not _is_module(name)))
        and (name in subjects or name not in KNOWN)
        for name, prefix in used.items()
        if name not in bound and not hasattr(builtins, name)
    )
    return Reading(used, frozenset(bound), subjects, objects)


def _bound(node: ast.AST) -> set[str]:
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            return {name}
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.arg(arg=name) | ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
            return {name}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {(alias.asname or alias.name).partition(".")[0] for alias in names}
    return set()


def _subjects(statements: Sequence[ast.Module]) -> set[str]:
    """The names that every statement calls; of built-in and well-known ones only where there are no others, since
    `assert sum(10, 15) == 6` has to mean a function called sum."""
    called = [
        {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        for tree in statements
    ]
    always = set.intersection(*called) if called else set()
    others = {name for name in set().union(*called) if not hasattr(builtins, name) and name not in KNOWN}
    return {name for name in always if name in others} if others else always


def _is_module(name: str) -> bool:
    return name in MODULES or name in sys.stdlib_module_names


def prepare(read: Reading) -> None:
    """Load the modules of ours that these names stand for: once, for every program that is tested so."""
    for name, prefix in read.used.items():
        module = ALIASES.get(name, name) if prefix and name in MODULES else KNOWN.get(name)
        if module is not None and name not in read.bound and name not in read.subjects:
            importlib.import_module(module)


def namespace_of(read: Reading, session: Session) -> dict[str, Any]:
    """The globals of the tests. Raises ImportError where they need a module that is not there."""
    wanted = [name for name in read.used if name in read.subjects or not hasattr(builtins, name)]
    session.class_named = read.objects
    found = session.names(wanted)
    namespace = Namespace(session, {name: value for name, value in found.items() if kind_of(value)}, set(found))
    for name in wanted:
        if name not in read.subjects and (ours := _ours(name, read, found.get(name))) is not None:
            namespace[name] = ours
    if "type" in read.used:
        namespace["type"] = Type
    sys.modules["solution"] = _Solution(session)
    return namespace


def _ours(name: str, read: Reading, theirs: Any) -> Any:
    """The real thing where a name means something that the program can only have imported, or faked."""
    if name in read.bound:
        return None
    kind, _, what = kind_of(theirs).partition(" ")
    if read.used[name] and (name in MODULES or (_is_module(name) and (theirs is None or kind == "module"))):
        return importlib.import_module(ALIASES.get(name, name))
    if name in KNOWN:
        return getattr(importlib.import_module(KNOWN[name]), name)
    source, _, attribute = what.partition(" ")
    if kind == "from" and source in PURE and not attribute.startswith("_"):
        real = getattr(importlib.import_module(source), attribute, None)
        return None if isinstance(real, ModuleType) else real
    return None


class Namespace(dict[str, Any]):
    """Names that the tests do not bind are the program's: looked up anew each time where they are plain values, which
    may have become others."""

    def __init__(self, session: Session, stand_ins: Mapping[str, Any], names: set[str]) -> None:
        super().__init__({"__name__": "tests"})
        self.session, self.stand_ins, self.names = session, stand_ins, names

    def __missing__(self, name: str) -> Any:
        if name in self.stand_ins:
            return self.stand_ins[name]
        if name not in self.names:
            raise KeyError(name)
        return self.session.names([name])[name]


class _Solution(ModuleType):
    """What `from solution import f` in a test finds."""

    def __init__(self, session: Session) -> None:
        super().__init__("solution")
        self.__dict__["_session"] = session

    def __getattr__(self, name: str) -> Any:
        found = {} if name.startswith("__") else self.__dict__["_session"].names([name])
        if name not in found:
            raise AttributeError(name)
        return found[name]


class _OfType(type):
    """So that `type(x) is Money` and `isinstance(x, type)` work with the program's classes too."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return type(*args, **kwargs) if len(args) != 1 else type_of(args[0])

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, type) or kind_of(value) == "class"

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is type

    __hash__ = type.__hash__


class Type(type, metaclass=_OfType):
    """What the tests call `type`."""
