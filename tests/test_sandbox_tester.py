"""Both sides of the wall in one process, over a socket: what a test may do with the program's objects, and what the
program gains by lying.

No isolation here: the program runs in a thread, so these are harmless programs. Left out: processes
(test_sandbox_life.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from grpo_math.sandbox import program, remote, stand_in, tester, wire
from grpo_math.sandbox.equality import equal
from grpo_math.sandbox.names import reading
from grpo_math.sandbox.tester import NOT_RUN, PASSED, Job, Outcome, run_job


@pytest.fixture(autouse=True)
def _undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the two sides change in their processes is changed here for the length of a test."""
    monkeypatch.setitem(sys.modules, "solution", sys)
    for name in program.DATACLASS_FUNCTIONS:
        monkeypatch.setattr(dataclasses, name, getattr(dataclasses, name))
    stand_in.forward_dataclasses()


def run(tests: dict[str, Any], *sources: str, all_or_nothing: bool = False) -> Outcome:
    mine, theirs = socket.socketpair()
    mine.settimeout(60)  # only so that a failure does not hang

    def answer() -> None:
        with theirs, contextlib.suppress(wire.WireError):
            program.Session(theirs).run()

    thread = threading.Thread(target=answer)
    thread.start()
    with mine:
        outcome = run_job(Job(tests, sources, all_or_nothing), mine)
    thread.join()
    return outcome


def asserts(source: str, *statements: str, **tests: Any) -> Outcome:
    return run({"type": "asserts", "asserts": list(statements), **tests}, source)


# ---- what right programs may rely on

POINT = """
class Point:
    def __init__(self, x, y=0): self.x, self.y = x, y
    def __eq__(self, other): return (self.x, self.y) == (other.x, other.y)
    def __hash__(self): return hash((self.x, self.y))
    def __add__(self, other): return Point(self.x + other.x, self.y + other.y)
    def __mul__(self, n): return Point(self.x * n, self.y * n)
    __rmul__ = __mul__
    def __lt__(self, other): return self.x < other.x
    def __repr__(self): return f"<{self.x}|{self.y}>"
    def __format__(self, spec): return f"{self.x:{spec}}"
    def __len__(self): return 2
    def __iter__(self): return iter((self.x, self.y))
    def __getitem__(self, i): return (self.x, self.y)[i]
    def __setitem__(self, i, v): setattr(self, "xy"[i], v)
    def __delitem__(self, i): setattr(self, "xy"[i], None)
    def __contains__(self, v): return v in (self.x, self.y)
    def __bool__(self): return self.x != 0
    def __neg__(self): return Point(-self.x, -self.y)
    def __call__(self, *args, **kwargs): return [args, kwargs]
    def __int__(self): return self.x
    def __abs__(self): return (self.x**2 + self.y**2) ** 0.5
    def __enter__(self): self.y = "in"; return self
    def __exit__(self, kind, error, trace): self.y = "out"; return kind is KeyError
    @property
    def norm(self): return self.x**2 + self.y**2
    @classmethod
    def unit(cls): return cls(1, 1)
def point(x): return Point(x)
"""

ACCEPTED: list[tuple[str, str]] = [
    # values, and names
    ("def f(x): return x + 1", "assert f(1) == 2"),
    ("def f(*a, **k): return [a, k]", "assert f(1, 2, z=(3,)) == [(1, 2), {'z': (3,)}]"),
    ("f = 0.1 + 0.2", "assert f == 0.30000000000000004"),
    ("import math\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(2), 2**0.5)"),
    ("from math import sqrt\ndef f(x): return x", "assert f(sqrt(4)) == 2"),
    ("import math as m\ndef f(x): return x", "assert m.floor(f(2.5)) == 2"),
    ("import collections\ndef f(x): return collections.Counter(x)", "assert f('aab') == collections.Counter('aba')"),
    ("def f(x): return sorted(x)", "assert f([2, 1]) == sorted([1, 2])"),
    ("def sum(a, b): return a - b", "assert sum(5, 3) == 2"),
    ("def f(x): return x", "import itertools\nassert list(itertools.chain(f([1]), [2])) == [1, 2]"),
    ("n = 0\ndef f():\n    global n\n    n += 1", "assert n == 0\nf()\nf()\nassert n == 2"),
    ("def f(x): return {1: x, '1': (x, {x})}", "assert f(3) == {'1': (3, {3}), 1: 3}"),
    ("def f(n): return 7 ** n", "assert f(6000) == 7 ** 6000"),
    ("def f(): return float('nan'), float('inf')", "a, b = f()\nassert a != a and b == float('inf')"),
    ("def f(x): return None", "assert f(1) is None"),
    ("def f(x): return type(x)", "assert f(1) is int and f([]) == list"),
    ("def f(kind): return kind('5')", "assert f(int) == 5 and f(list) == ['5']"),
    # objects
    (POINT, "assert point(3).x == 3 and point(3).norm == 9"),
    (POINT, "p = Point(1)\np.x = 5\ndel p[1]\nassert p.x == 5 and p.y is None and not hasattr(p, 'z')"),
    (POINT, "p = Point(1)\np[1] = [2]\nassert p[1] == [2] and list(p) == [1, [2]] and len(p) == 2"),
    (POINT, "assert Point(1, 2) + Point(3) == Point(4, 2) and Point(1) != Point(2)"),
    (POINT, "assert 2 * Point(1, 2) == Point(1, 2) * 2 == Point(2, 4) and -Point(1) == Point(-1)"),
    (POINT, "assert repr(Point(1, 2)) == str(Point(1, 2)) == '<1|2>' and f'{Point(1):03}' == '001'"),
    (POINT, "assert Point(1)(2, z=3) == [(2,), {'z': 3}] and Point.unit().y == 1"),
    (POINT, "assert 1 in Point(1) and 2 not in Point(1) and bool(Point(0)) is False and int(Point(4)) == 4"),
    (POINT, "assert abs(Point(3, 4)) == 5.0"),
    (POINT, "assert sorted([Point(2), Point(1)])[0].x == 1 and max(Point(2), Point(1)).x == 2"),
    (POINT, "assert len({Point(1), Point(1), Point(2)}) == 2 and {Point(1): 5}[Point(1)] == 5"),
    (POINT, "assert isinstance(Point(1), Point) and type(Point(1)) is Point and not isinstance(5, Point)"),
    (POINT, "assert issubclass(Point, object) and isinstance(Point, type) and type(5) is int"),
    (POINT, "with Point(1) as p:\n    assert p.y == 'in'\n    raise KeyError('swallowed')\nassert p.y == 'out'"),
    (POINT, "import copy\np = Point(1)\nq = copy.copy(p)\nq.x = 2\nassert p.x == 1"),
    (POINT, "assert 'norm' in dir(Point(1)) and callable(Point) and getattr(Point(1), 'none', 5) == 5"),
    (POINT, "a, b = Point(3, 4)\nassert (a, b) == (3, 4)"),
    ("class N: pass\nn = N()\ndef f(): return n", "assert f() is f() and f() == f() and f() != N()"),
    ("class N:\n    next = None\ndef f():\n    a = N()\n    a.next = a\n    return a",
     "a = f()\nassert a.next.next is a"),
    ("class A:\n    class B: v = 1", "assert A.B.v == 1 and A().B().v == 1"),
    # iterators, coroutines
    ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2] and next(f(1)) == 0"),
    ("def f():\n    i = 0\n    while True:\n        yield i\n        i += 1",
     "from itertools import islice\ng = f()\nassert list(islice(g, 2)) == [0, 1] and next(g) == 2"),
    ("def f(): yield 1", "g = f()\nassert next(g) == 1 and next(g, 'end') == 'end'"),
    ("def f(): return map(str, [1, 2])", "assert ''.join(f()) == '12'"),
    ("async def f(x): return x + 1", "import asyncio\nassert asyncio.run(f(1)) == 2"),
    ("import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x",
     "async def both(): return [await f(1), await f(2)]\nassert asyncio.run(both()) == [1, 2]"),
    ("import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int",
     "assert dataclasses.asdict(P(1)) == {'x': 1} and P(1) == P(1) and dataclasses.replace(P(1), x=2).x == 2"),
    # instances of subclasses
    ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
     "assert f() == (1, 2) and f().y == 2 and f()._asdict() == {'x': 1, 'y': 2} and isinstance(f(), tuple)"),
    ("import enum\nclass C(enum.IntEnum):\n    A = 5\ndef f(): return C.A",
     "assert f() == 5 and f().name == 'A' and f() + 1 == 6"),
    ("from collections import defaultdict\ndef f():\n    d = defaultdict(list)\n    d[1].append(2)\n    return d",
     "d = f()\nassert d == {1: [2]} and d[9] == []"),
    ("from collections import Counter\ndef f(): return Counter('aab')",
     "assert f() == {'a': 2, 'b': 1} and f()['z'] == 0"),
    ("class S(str):\n    def shout(self): return self.upper() + '!'\ndef f(): return S('a')",
     "assert f() == 'a' and f().shout() == 'A!' and f() + 'b' == 'ab'"),
    ("class L(list):\n    def total(self): return sum(self)\nl = L([1, 2])\ndef f(): return l\ndef g(x): return x is l",
     "assert f() == [1, 2] and f().total() == 3 and g(f())"),
    ("class I(int):\n    def __str__(self): return 'five'\ndef f(): return I(5)",
     "assert f() == 5 and str(f()) == 'five'"),
    # functions and iterators of the tests
    ("def f(g, x): return g(x) + g(x)",
     "assert f(lambda x: x * 10, 2) == 40 and f(abs, -1) == 2 and f(str, 1) == '11'"),
    ("def f(xs): return sum(xs)", "assert f(i * i for i in range(4)) == 14 and f(iter([1, 2])) == 3"),
    ("def f(xs): return next(xs)", "xs = iter([1, 2, 3])\nassert f(xs) == 1 and next(xs) == 2"),
    ("def f(g): return g.__name__, g.__doc__", "def named():\n    'doc'\nassert f(named) == ('named', 'doc')"),
    (POINT + "def f(g): return g(Point(3))", "assert f(lambda p: p.x * p.norm) == 27"),
    ("def deco(g):\n    def inner(*a): return ['got', g(*a)]\n    return inner",
     "@deco\ndef h(x): return x + 1\nassert h(1) == ['got', 2]"),
    ("def f(g): return g(lambda x: x + 1)", "assert f(lambda h: h(h(5))) == 7"),
    ("def f(g):\n    try: g()\n    except KeyError: return 'caught'",
     "def g(): raise KeyError('k')\nassert f(g) == 'caught'"),
    ("def f(g): return g()",
     "class Mine(KeyError): pass\nerror = Mine('k')\ndef g(): raise error\n"
     "try: f(g)\nexcept Mine as e: assert e is error\nelse: assert False"),
    # exceptions
    ("def f(): raise ValueError('no', 5)",
     "try: f()\nexcept ValueError as e: assert e.args == ('no', 5)\nelse: assert False"),
    ("class Own(LookupError):\n    def __init__(self, code):\n        super().__init__(f'code {code}')\n"
     "        self.code = code\n"
     "def f(): raise Own(7)",
     "try: f()\nexcept LookupError as e: assert str(e) == 'code 7' and e.code == 7\nelse: assert False"),
    ("class Own(Exception): pass\nclass Sub(Own): pass\ndef f(): raise Sub",
     "try: f()\nexcept Own: pass\nelse: assert False"),
    ("def f():\n    try: 1 / 0\n    except ZeroDivisionError as e: raise ValueError('x') from e",
     "try: f()\nexcept ValueError as e: assert type(e.__cause__) is ZeroDivisionError\nelse: assert False"),
    ("def f(d): return d['k']", "import pytest\nwith pytest.raises(KeyError, match='k'): f({})"),
    ("def f(): return '\\udc80'.encode()",
     "try: f()\nexcept UnicodeEncodeError as e: assert e.start == 0\nelse: assert False"),
    ("def f(e): return str(e), isinstance(e, ValueError)", "assert f(ValueError('v')) == ('v', True)"),
    # changes of arguments
    ("def f(xs): xs.sort()", "xs = [3, 1, 2]\nassert f(xs) is None and xs == [1, 2, 3]"),
    ("def f(d): d['new'] = [d.pop('old')]", "d = {'old': 1}\nf(d)\nassert d == {'new': [1]}"),
    ("def f(s): s.add(3); s.discard(1)", "s = {1, 2}\nf(s)\nassert s == {2, 3}"),
    ("def f(q): q.append(4)",
     "from collections import deque\nq = deque([1, 2], maxlen=2)\nf(q)\nassert list(q) == [2, 4]"),
    ("def f(b): b[:] = b'xyz'", "b = bytearray(b'a')\nf(b)\nassert b == b'xyz'"),
    ("def f(m): m[0][1] = 9",
     "row = [1, 2]\nm = [row, row]\nf(m)\nassert row == [1, 9] and m[1] is row and m[0] is row"),
    ("def f(m): m.append(m[0])", "m = [[1]]\nf(m)\nassert m == [[1], [1]] and m[0] is m[1]"),
    ("def f(m): m[0], m[1] = m[1], m[0]", "a, b = [1], [2]\nm = [a, b]\nf(m)\nassert m[0] is b and m[1] is a"),
    ("def f(x): x.append(1); return x", "x = []\nassert f(x) is x and x == [1]"),
    ("def f(t): t[0].append(1)", "t = ([], 5)\nf(t)\nassert t == ([1], 5)"),
    ("def f(*, xs): xs.clear()", "xs = [1]\nf(xs=xs)\nassert xs == []"),
    ("def f(xs): xs.append(xs)", "xs = []\nf(xs)\nassert xs[0] is xs"),
    ("def f(xs): return sorted(xs)", "xs = [2, 1]\nassert f(xs) == [1, 2] and xs == [2, 1]"),
    ("class B:\n    def fill(self, xs): xs.extend([1, 2])", "xs = []\nB().fill(xs)\nassert xs == [1, 2]"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "test"), ACCEPTED, ids=lambda text: text.strip().replace("\n", " ")[-45:])
def test_a_right_program_passes(source: str, test: str) -> None:
    outcome = asserts(source, test)
    assert (outcome.results, outcome.reason, outcome.detail) == ([PASSED], "correct", "")


@pytest.mark.parametrize(("source", "test"), ACCEPTED[:60:3], ids=lambda text: text.strip().replace("\n", " ")[-45:])
def test_the_same_tests_refuse_an_empty_program(source: str, test: str) -> None:
    assert asserts("", test).results != [PASSED]


# ---- what lies gain

LIAR = """
class Liar:
    def always(self, *_): return True
    def itself(self, *_): return self
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = always
    __hash__ = lambda self: 5
    __sub__ = __rsub__ = __add__ = __radd__ = __mul__ = __rmul__ = __truediv__ = __mod__ = __rmod__ = itself
    __abs__ = __neg__ = __round__ = __pow__ = __getitem__ = __call__ = itself
    __getattr__ = lambda self, name: (lambda *a: True)
    def __repr__(self): return '5'
def f(*_): return Liar()
"""
TAINT = """
class Money:
    def __init__(self, v): self.v = v
    def plain(self, *_): return 0.0
    def itself(self, *_): return self
    __sub__ = __rsub__ = __add__ = __radd__ = __isub__ = __mod__ = plain
    __abs__ = __neg__ = __round__ = __float__ = plain
    __int__ = __index__ = lambda self: 0
    __eq__ = __lt__ = __le__ = lambda self, other: True
"""
TAINT_STEPS = TAINT.replace("__mod__ = plain", "__mod__ = itself")
LIES = [
    *[(LIAR, test) for test in (
        "assert f() == 5", "assert 5 == f()", "assert not f() != 5", "assert f() < 5", "assert 5 <= f()",
        "assert f() >= [1]",
        "assert f() in [5]", "assert 5 in [f()]", "assert f() in {5}", "assert f() in (4, 5, 6)", "assert [f()] == [5]",
        "assert (1, f()) == (1, 5)", "assert {'k': f()} == {'k': 5}", "assert sorted([f()]) == [5]",
        "assert abs(f() - 5) < 1e-9", "assert abs(5 - f()) < 1e-9", "assert f() - 5 == 0", "assert not (f() - 5)",
        "assert f() % 2 == 0", "assert round(f(), 2) == 5", "assert max(f(), 5) == 5", "assert sum([f()]) == 5",
        "import math\nassert math.isclose(f(), 5)", "assert isclose(f(), 5)", "assert f() is True",
        "assert [f()].count(5) == 1", "assert {5: 1}[f()] == 1", "assert str(f()) == 'five'", "assert f() == 'x'",
        "assert f()[0] == 5", "assert f()() == 5", "assert f().value == 5",
        "import operator\nassert operator.eq(f(), 5)",
        "assert all(a == b for a, b in zip([f()], [5]))", "assert set([f()]) == {5}", "assert f() == None",
    )],
    *[(source, test) for source in (TAINT, TAINT_STEPS) for test in (
        "assert abs(Money(1) - 0.2) < 1e-9", "assert Money(1) - 0.2 == 0", "assert 0.2 - Money(1) == 0.0",
        "assert abs(0.2 - Money(1)) <= 0", "assert float(Money(1) - 0.2) == 0", "assert round(Money(1) - 0.2, 5) == 0",
        "assert -(Money(1) - 1) == 0", "assert int(abs(Money(1) - 1)) == 0", "assert range(Money(1) - 1) == range(0)",
        "m = Money(1)\nm -= 0.2\nassert m == 0", "assert abs((Money(1) - 0.2) - Money(2)) == 0", "assert Money(1) == 1",
        "assert abs(Money(Money(1) - 0.2) - 0.2) < 1e-9", "assert Money(1) < 2",
        "assert (Money(1) - 0.2) % Money(2) == 0",
    )],
]  # fmt: skip


@pytest.mark.parametrize(("source", "test"), LIES, ids=lambda text: text.strip().replace("\n", " ")[-45:])
def test_a_lie_earns_nothing(source: str, test: str) -> None:
    outcome = asserts(source, test)
    assert outcome.reason in ("wrong", "crashed")
    assert outcome.results[0].startswith(outcome.reason)


REFUSED: list[tuple[str, str, str]] = [
    ("def f(x): return x", "assert f(1) == 2", "wrong"),
    ("def f(x): return x", "assert f(1) == 2, 'why'", "wrong"),
    ("def f(x): return x", "assert g(1) == 1", "wrong"),
    ("def f(x): return [x]", "assert f(1)[1] == 1", "wrong"),
    # oracles and built-ins that the program puts in the tests' way
    ("def isclose(*a): return True\ndef f(): return 1", "assert isclose(f(), 2)", "wrong"),
    ("def sorted(x): return 'same'\ndef f(): return [2, 1]", "assert sorted(f()) == sorted([1, 3])", "wrong"),
    ("def len(x): return 3\ndef f(): return []", "assert len(f()) == 3", "wrong"),
    ("def set(x): return 0\ndef f(): return [1]", "assert set(f()) == set([2])", "wrong"),
    ("class all:\n    def __new__(c, x): return True\ndef f(): return 1", "assert all(f() == x for x in [2])", "wrong"),
    ("import math\nmath = type(math)('math')\nmath.isclose = lambda *a: True\ndef f(): return 1",
     "assert math.isclose(f(), 2)", "wrong"),
    ("from math import isclose as floor\ndef f(): return 1", "assert floor(f()) == 2", "crashed"),
    ("x = 5\ndef f(): return 5", "x = 6\nassert f() == x", "wrong"),
    ("import builtins\ndef f(): return 1\nAssertionError = ValueError", "assert f() == 2", "wrong"),
    # exceptions
    ("def f(): raise ValueError('no')", "assert f() == 1", "crashed"),
    ("def f(): raise AssertionError", "f()", "crashed"),
    ("def f(): raise SystemExit(0)", "assert f() == 1", "crashed"),
    ("def f(): raise KeyboardInterrupt", "assert f() == 1", "crashed"),
    ("def f(): raise GeneratorExit", "assert f() == 1", "crashed"),
    ("def f(): raise BaseException('x')", "try: f()\nexcept Exception: pass", "crashed"),
    ("def f(): raise MemoryError", "assert f() == 1", "memory"),
    ("def f(): raise PermissionError('socket')", "assert f() == 1", "forbidden"),
    ("def f(x): return f(x + 1)", "assert f(0) == 1", "crashed"),
    ("def f(x): raise StopIteration", "assert all(map(f, [1, 2]))", "crashed"),
    ("class S(StopIteration): pass\ndef f(x): raise S", "assert all(map(f, [1, 2]))", "crashed"),
    ("def f(x): raise StopAsyncIteration", "assert list(map(f, [1])) == []", "crashed"),
    ("class E(Exception):\n    def __str__(self): raise self\ndef f(): raise E", "assert f() == 1", "crashed"),
    ("def f(): raise ValueError", "try: f()\nexcept KeyError: pass", "crashed"),
    ("def f(): pass", "try: f()\nexcept ValueError: pass\nelse: assert False", "wrong"),
    ("class ValueError(Exception): pass\ndef f(): raise ValueError", "try: f()\nexcept ValueError: pass", "crashed"),
    # instances of subclasses, and containers that change
    ("class L(list):\n    __eq__ = lambda s, o: True\n    __len__ = lambda s: 2\n    __iter__ = lambda s: iter([1, 2])"
     "\ndef f(): return L([1])", "assert f() == [1, 2]", "wrong"),
    ("class L(list):\n    __len__ = lambda s: 2\ndef f(): return L([1])", "assert len(f()) == 2", "wrong"),
    ("class I(int):\n    __eq__ = lambda s, o: True\n    __hash__ = None\ndef f(): return I(1)",
     "assert f() == 2", "wrong"),
    ("class I(int):\n    __sub__ = lambda s, o: 0\n    __abs__ = lambda s: 0\ndef f(): return I(1)",
     "assert abs(f() - 2) == 0", "wrong"),
    ("class S(str):\n    __eq__ = lambda s, o: True\n    __hash__ = str.__hash__\ndef f(): return S('a')",
     "assert 'b' == f()", "wrong"),
    ("class D(dict):\n    __missing__ = lambda s, k: 5\ndef f(): return D()", "assert f() == {1: 5}", "wrong"),
    ("def f(xs): xs[:] = [0]", "xs = [1]\nf(xs)\nassert xs == [1]", "wrong"),
    ("def f(): return [lambda: 0]", "assert f() == [0]", "wrong"),
    ("def f():\n    x = []\n    for _ in range(500): x = [x]\n    return x", "assert f() == 1", "crashed"),
    ("import asyncio\nasync def f(): return 1", "assert f() == 1", "wrong"),
    ("def f(): yield 1", "assert f() == [1]", "wrong"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize(("source", "test", "reason"), REFUSED, ids=lambda text: text.strip().replace("\n", " ")[-45:])
def test_a_wrong_program_is_refused(source: str, test: str, reason: str) -> None:
    outcome = asserts(source, test)
    assert outcome.reason == reason, outcome.detail
    assert outcome.results == [NOT_RUN] or outcome.results[0].startswith(reason)


def test_the_program_cannot_name_an_oracle_of_its_own_under_a_modules_name() -> None:
    faked = "class math:\n    isclose = staticmethod(lambda *a, **k: True)\ndef f(): return 1"
    assert asserts(faked, "assert math.isclose(f(), 2)", entry_point="f").reason == "wrong"
    faked = "class np:\n    allclose = staticmethod(lambda *a, **k: True)\ndef f(): return 1"
    assert asserts(faked, "assert np.allclose(f(), 2)", entry_point="f").reason != "correct"


def test_a_change_comes_back_even_where_the_call_raises() -> None:
    source = "def f(xs):\n    xs.append(1)\n    raise ValueError"
    assert asserts(source, "xs = []\ntry: f(xs)\nexcept ValueError: pass\nassert xs == [1]").reason == "correct"


def test_a_function_of_the_tests_may_change_what_it_is_given() -> None:
    source = "def f(visit):\n    seen = []\n    visit(seen)\n    return seen"
    assert asserts(source, "assert f(lambda xs: xs.append(1)) == [1]").reason == "correct"


def test_an_exception_that_the_tests_pass_keeps_its_arguments() -> None:
    source = "def f(error): return error.args"
    assert (
        asserts(source, "assert f(KeyError('k')) == ('k',)", "assert f(OSError(2, 'x')) == (2, 'x')").reason
        == "correct"
    )


def test_whose_word_it_was_is_told() -> None:
    assert asserts(POINT, "assert Point(1) + Point(2) == Point(3)").own_word
    assert asserts(POINT, "assert sorted([Point(2), Point(1)])[0].x == 1").own_word
    assert not asserts(POINT, "assert (Point(1) + Point(2)).x == 3 and Point(1) != 5").own_word
    assert not asserts("def f(x): return x", "assert f([1]) == [1]").own_word


# ---- the answers of a program that speaks the protocol itself


def hostile(*answers: str | bytes, tests: str = "assert f(1) == 1", count: int = 1) -> Outcome:
    """A program that loads, has the name f, and then gives these answers whatever it is asked."""
    mine, theirs = socket.socketpair()
    mine.settimeout(60)
    first = ['["value",null,[]]', '["value",{"d":[["f"],[{"h":[0,"object"]}]]},[]]']

    def answer() -> None:
        with theirs, contextlib.suppress(OSError):
            for said in (*first, *answers):
                wire.receive(theirs)
                theirs.sendall(said) if isinstance(said, bytes) else wire.send(theirs, said)

    thread = threading.Thread(target=answer)
    thread.start()
    with mine:
        outcome = run_job(Job({"type": "asserts", "asserts": [tests] * count}, [""], False), mine)
    thread.join()
    return outcome


def test_the_stand_in_for_a_program_is_judged_like_one() -> None:
    assert hostile('["value",1,[]]').reason == "correct"
    assert hostile('["value",2,[]]').reason == "wrong"


@pytest.mark.parametrize(
    "answer",
    [
        "", "true", "[]", "{}", "null", "[", '"value"', '["value"]', '["value",1]', '["value",1,[],1]', '["value",1,5]',
        '["value",1,[[0,[]]]]', '["value",1,[[5,[]]]]', '["value",1,["x"]]', '["value",{"zz":1},[]]', '["VALUE",1,[]]',
        '["stop"]', '["again",0]', '["again",-1]', '["again","x"]', '["raise"]',
        '["raise","Nope","",{"t":[]},null,null]',
        '["raise","eval","",{"t":[]},null,null]', '["raise",5,"",{"t":[]},null,null]',
        '["raise",["x","y",[]],"",{"t":[]},"nan",null]', '["call",0,[],[[],[]]]', '["call",-1,[],[[],[]]]', '["call"]',
        '["value",{"h":["x","object"]},[]]', '["value",{"h":[]},[]]', '["value",{"h":[1,5]},[]]',
        '["value",{"u":[1]},[]]',
        '["value",{"k":[0,"f",null]},[]]', '["value",{"B":"eval"},[]]', '["value",{"T":"eval"},[]]',
        '["value",{"g":0},[]]',
        '["value",{"e":["ValueError",[]]},[]]', "[" * 5000, '["value",' + "[" * 200 + "]" * 200 + ",[]]",
        b"", b"\x01", wire.HEADER.pack(4) + b"\xff\xff\xff\xff", wire.HEADER.pack(10) + b"short",
    ],
    ids=lambda answer: (answer if isinstance(answer, str) else repr(answer))[:40],
)  # fmt: skip
def test_an_answer_that_is_none_is_the_programs_end(answer: str | bytes) -> None:
    outcome = hostile(answer, count=2)
    assert outcome.reason == "crashed"
    assert outcome.results == ["crashed: " + outcome.detail.partition(": ")[2], NOT_RUN]


def test_an_answer_that_is_too_large_is_an_output_limit() -> None:
    assert hostile(wire.HEADER.pack(wire.MAX_FRAME + 1)).reason == "output_limit"


def test_no_test_can_swallow_the_programs_end() -> None:
    for test in (
        "try: f(1)\nexcept Exception: pass",
        "try: f(1)\nexcept: pass",
        "f(1) if False else [*map(f, [])]; f(1)",
    ):
        assert hostile("nonsense", tests=test).reason == "crashed"


def test_a_forged_ancestry_of_exceptions_ends() -> None:
    cls: list[Any] = ["Exception"]
    for number in range(60):
        cls = [[number, "E", cls]]
    outcome = hostile(json.dumps(["raise", cls[0], "", {"t": []}, None, None]))
    assert outcome.reason == "crashed"
    assert outcome.results[0].startswith("crashed")


def test_a_class_that_lies_about_itself_is_no_plain_value() -> None:
    """`__class__` is the program's word, and earns nothing by it."""
    answers = ['["value",{"h":[1,"object"]},[]]', *['["value",{"T":"int"},[]]'] * 3]
    assert hostile(*answers, tests="r = f(1)\nassert isinstance(r, int) and r == 1").reason == "wrong"


# ---- kinds of tests


def test_asserts_share_a_namespace_and_are_told_apart() -> None:
    source = "def f(x): return x\nhelper = 3"
    outcome = asserts(source, "y = f(2)", "assert y == 2", "assert y == 3", "assert helper + k == 8", setup="k = 5")
    assert outcome.results == [PASSED, PASSED, "wrong", PASSED]
    assert (outcome.reason, outcome.detail) == ("wrong", "assert y == 3")
    stopped = run({"type": "asserts", "asserts": ["assert f(1) == 2", "assert f(1) == 1"]}, source, all_or_nothing=True)
    assert stopped.results == ["wrong", NOT_RUN]


def test_sources_run_one_after_the_other_in_one_namespace() -> None:
    tests = {"type": "asserts", "asserts": ["assert root == [1, 2]"]}
    assert run(tests, "def make(): return [1, 2]", "root = make()").reason == "correct"
    assert run(tests, "def make(): return [1]", "root = make()").reason == "wrong"
    outcome = run(tests, "def make(): return [1, 2]", "root = made()")
    assert (outcome.reason, outcome.results) == ("crashed", [NOT_RUN])
    assert outcome.detail.startswith("it does not load: NameError")


@pytest.mark.parametrize(
    ("source", "reason"),
    [("1 / 0", "crashed"), ("def f(", "crashed"), ("raise SystemExit(0)", "crashed"), ("raise MemoryError", "memory"),
     ("import no_such_module", "crashed"), ("open('/no/such')", "crashed"), ("x = '\0'", "crashed")],
)  # fmt: skip
def test_a_program_that_does_not_load(source: str, reason: str) -> None:
    outcome = asserts(source, "assert True", "assert True")
    assert (outcome.reason, outcome.results) == (reason, [NOT_RUN, NOT_RUN])


@pytest.mark.parametrize(
    ("tests", "source"),
    [
        ({"type": "asserts", "asserts": []}, "f = 1"),
        ({"type": "asserts", "asserts": ["assert f =="]}, "f = 1"),
        ({"type": "asserts", "asserts": ["import no_such_module_of_the_tests"]}, "f = 1"),
        ({"type": "asserts", "asserts": ["f(object())"]}, "def f(x): return x"),
        ({"type": "asserts"}, "f = 1"),
        ({"type": "check", "test": "def check(", "entry_point": "f"}, "f = 1"),
        ({"type": "function", "entry_point": "f", "cases": []}, "f = 1"),
        ({"type": "function", "entry_point": "f", "cases": [{"args": []}]}, "f = 1"),
        ({"type": "nothing"}, "f = 1"),
    ],
    ids=str,
)
def test_tests_that_are_of_no_use_are_an_error(tests: dict[str, Any], source: str) -> None:
    assert run(tests, source).reason == "error"


def test_tests_without_a_check_are_an_error() -> None:
    assert run({"type": "check", "test": "x = 1", "entry_point": "f"}, "def f(): return 1").reason == "error"


CHECK = "METADATA = {}\ndef check(candidate):\n    assert candidate(2) == helper(2)\n    assert candidate(3) == 6\n"


def test_check_has_helpers_of_its_own() -> None:
    tests = {"type": "check", "prompt": "def helper(x): return 2 * x", "test": CHECK, "entry_point": "double"}
    assert run(tests, "def double(x): return 2 * x").results == [PASSED]
    assert run(tests, "def double(x): return x + 2").results == ["wrong"]
    assert run(tests, "def helper(x): return 9\ndef double(x): return 9 if x == 2 else 6").results == ["wrong"]
    assert run(tests, "def other(x): return 2 * x").detail == "before the tests: the program has no double"
    assert run(tests, "double = 5").reason == "wrong"


def test_check_may_be_of_a_class_and_may_name_the_entry_point() -> None:
    test = "def check(candidate):\n    assert candidate(3).x == Box(3).x == 3\n    assert candidate(1) + 1 == Box(2)"
    source = "class Box:\n    def __init__(self, x): self.x = x\n    def __add__(self, n): return Box(self.x + n)\n"
    tests = {"type": "check", "test": test, "entry_point": "Box"}
    assert run(tests, source + "    def __eq__(self, o): return self.x == o.x").reason == "correct"
    assert run(tests, source).reason == "wrong"


def function(source: str, *cases: tuple[list[Any], Any], **tests: Any) -> list[str]:
    given = [{"args": args, "expected": expected} for args, expected in cases]
    return run({"type": "function", "entry_point": "f", "cases": given, **tests}, source).results


def test_function_compares_each_case() -> None:
    assert function("def f(a, b=1): return a // b", ([6, 2], 3), ([5], 5), ([5, 2], 3), ([1, 0], 0), ([9, 3], 3)) == [
        PASSED, PASSED, "wrong: got 2, not 3", "crashed: ZeroDivisionError: integer division or modulo by zero", PASSED,
    ]  # fmt: skip
    assert function(LIAR, ([1], 5)) == ["wrong: got an object of its own, not 5"]
    assert function("def f(x): return tuple(x)", ([[1, 2]], [1, 2])) == ["wrong: got (1, 2), not [1, 2]"]
    assert function("def f(): return float('nan')", ([], float("nan"))) == [PASSED]
    assert function("g = 1", ([], 1)) == [NOT_RUN]


def test_function_takes_keywords_and_methods() -> None:
    cases = [
        {"args": [1], "kwargs": {"by": 2}, "expected": 3},
        {"kwargs": {"x": 1, "by": 1}, "expected": 2},
        {"args": [1], "expected": 1},
    ]
    source = "def f(x, by=0): return x + by"
    assert run({"type": "function", "entry_point": "f", "cases": cases}, source).results == [PASSED] * 3
    method = (
        "class Solution:\n    n = 0\n    def f(self, x, by=0):\n        self.n += 1\n"
        "        return x + by if self.n == 1 else 'used'"
    )
    tests = {"type": "function", "class_name": "Solution", "entry_point": "f", "cases": cases}
    assert run(tests, method).results == [PASSED] * 3  # an object of its own for each case


def test_each_case_has_arguments_of_its_own() -> None:
    shared = [1, 2]
    source = "def f(xs):\n    xs.append(3)\n    return len(xs)"
    assert function(source, ([shared], 3), ([shared], 3)) == [PASSED, PASSED]
    assert shared == [1, 2]


@pytest.mark.parametrize(
    ("value", "expected", "tolerance", "same"),
    [
        (1.0, 1, None, True), (True, 1, None, True), (0.1 + 0.2, 0.3, None, False), (0.1 + 0.2, 0.3, 1e-9, True),
        (1.1, 1, 0.05, False),
         (1.1, 1, 0.1, True), (1e10, 1e10 + 1, 1e-9, True), (1e-10, 0, 1e-9, True), (1, 1.5, 0, False),
        ([0.1 + 0.2], [0.3], 1e-9, True), ((1, [2.0000000001]), (1, [2]), 1e-6, True), ([1], [1, 1], 1e-6, False),
        ({"a": 0.30000000000000004}, {"a": 0.3}, 1e-9, True), ({"a": 1}, {"b": 1}, 1, False), ((1,), [1], 1, False),
        (True, 1.0000001, 1e-3, False), (True, False, 5, False), (float("nan"), float("nan"), None, True),
        (float("nan"), 1.0, 10.0, False), ([float("nan")], [float("nan")], None, True), (10**400, 1.0, 1e-3, False),
        (10**400, 10**400 + 1, None, False),
         (float("inf"), 1e308, 1e-3, False), (float("inf"), float("inf"), 1e-3, True),
        ("1.0", "1", 1e-3, False), ("a", "a", None, True), ({1.0}, {1}, None, True), (None, 0, 1.0, False),
        (0, 0.0000001, 0, False), ([], (), None, False), (b"a", "a", None, False),
    ],
)  # fmt: skip
def test_equality_by_hand(value: Any, expected: Any, tolerance: float | None, same: bool) -> None:
    assert equal(value, expected, tolerance) is same


@pytest.mark.parametrize(
    ("statements", "entry", "subjects"),
    [
        (("assert sum(10, 15) == 6",), None, {"sum"}),
        (("assert sum(1, 2) == 3", "assert sum(2, 2) == 4"), None, {"sum"}),
        (("assert f(1) == sum([1])",), None, {"f"}),
        (("assert f(1) == g(2)", "assert f(2) == 3"), None, {"f"}),
        (("assert f(1) == sum([1])",), "sum", {"sum"}),
        (("assert True",), None, set()),
    ],
)
def test_what_the_tests_are_about(statements: tuple[str, ...], entry: str | None, subjects: set[str]) -> None:
    assert reading("", statements, entry).subjects == subjects


def test_random_numbers_of_the_tests_are_the_same_each_time() -> None:
    test = "import random\nassert f(random.random()) == 0.8444218515250481"  # of seed 0
    for _ in range(2):
        assert asserts("def f(x): return x", test).reason == "correct"


def test_what_is_shown_is_short() -> None:
    outcome = run(
        {"type": "function", "entry_point": "f", "cases": [{"args": [], "expected": "y" * 9999}]},
        "def f(): return 'x' * 9999",
    )
    assert len(outcome.detail) < 3 * tester.MAX_SHOWN


def test_a_session_says_who_is_gone() -> None:
    mine, theirs = socket.socketpair()
    session = remote.Session(mine)
    theirs.close()
    with mine, pytest.raises(remote.Gone):
        session.names(["f"])
    assert session.gone
    with pytest.raises(remote.Gone):
        session.load(["x = 1"])


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


# ---- a mistake of ours


@pytest.mark.parametrize("where", ["equal", "namespace_of"])
def test_a_bug_of_ours_is_no_verdict_on_the_program(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    exec(compile("def broken(*_): raise KeyError('ours')", f"{tester.OURS}broken.py", "exec"), names)
    monkeypatch.setattr(tester, where, names["broken"])
    tests = {"type": "function", "entry_point": "f", "cases": [{"args": [], "expected": 1}]}
    outcome = run(
        tests if where == "equal" else {"type": "asserts", "asserts": ["assert f() == 1"]}, "def f(): return 1"
    )
    assert outcome.reason == "error"
    assert "KeyError: 'ours'" in outcome.detail


def test_a_program_without_what_the_tests_import_of_it_is_wrong() -> None:
    assert asserts("def f(): return 1", "from solution import f\nassert f() == 1").reason == "correct"
    assert asserts("def g(): return 1", "from solution import f\nassert f() == 1").reason == "wrong"
    assert asserts("def f(): return 1", "from no_such_module import f").reason == "error"


def test_what_the_tests_hand_on_too_deep_is_wrong() -> None:
    deep = "def f():\n    x = []\n    for _ in range(99): x = [x]\n    return x\ndef g(x): return 1"
    assert asserts(deep, "assert g([[f()]]) == 1").reason == "wrong"


def test_a_value_that_cannot_be_shown_is_wrong() -> None:
    tests = {"type": "function", "entry_point": "f", "cases": [{"args": [], "expected": 1}]}
    assert run(tests, "def f(): return 1 << 100_000").reason == "wrong"
    assert run({**tests, "cases": [{"args": [], "expected": 1 << 100_000}]}, "def f(): return 1").reason == "wrong"


@pytest.mark.parametrize("value", ["Decimal('sNaN')", "[Decimal('sNaN')]"])
def test_a_value_that_cannot_be_compared_is_wrong(value: str) -> None:
    tests = {"type": "function", "entry_point": "f", "cases": [{"args": [], "expected": 1}]}
    assert run(tests, f"from decimal import Decimal\ndef f(): return {value}").reason == "wrong"
    assert asserts(f"from decimal import Decimal\ndef f(): return {value}", "assert f() == 1").reason == "wrong"
