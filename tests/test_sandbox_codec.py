"""The codec and the wire: what crosses is what arrives, in kind, order, identity and change; nonsense is refused.

Left out: who makes handles and what they are for (test_sandbox_tester.py).
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import os
import socket
import threading
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_math.sandbox import codec, wire
from grpo_math.sandbox.codec import BIG, CodecError, Decoder, Encoder, changed, parse, snapshot


def no_handle(value: object) -> Any:
    raise CodecError(f"{type(value).__name__} has no plain form")


def no_special(tag: str, content: Any) -> Any:
    raise CodecError(f"unknown tag {tag}")


def crossed(value: object) -> Any:
    return Decoder(no_special).value(parse(Encoder(no_handle).text(value)))


def written(value: Any) -> str:
    """As repr, which refuses an int of more than 4,300 digits."""
    if type(value) is int:
        return hex(value)
    if type(value) is dict:
        return "{" + ", ".join(f"{written(k)}: {written(v)}" for k, v in value.items()) + "}"
    if type(value) in (list, tuple, deque):
        return f"{type(value).__name__}({', '.join(map(written, value))})"
    return repr(value)


# ---- what crosses

SCALARS = [
    None, True, False, 0, -1, 2**64, BIG - 1, BIG, BIG + 1, -BIG, 1 - BIG, 7**5000,
    0.1, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf"), float("nan"),
    "", "a\0b", "naïve 字 🙂", "\ud800 alone", "\u2028", '"\\', b"", b"\x00\xff", 1 - 2j, complex(-0.0, float("inf")),
    range(0), range(5, -3, -2), range(10**30), Decimal("1.10"), Decimal("-0"), Decimal("NaN"), Decimal("-Infinity"),
    Decimal("1E+20"), Fraction(-2, 3), Fraction(3**3000, 2**3000), datetime.date(2024, 2, 29),
    datetime.time(23, 59, 1, 5), datetime.datetime(1999, 12, 31, 1, 2, 3, 4),
    datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=-3, minutes=-30))),
    datetime.timedelta(days=-1, seconds=5, microseconds=7), datetime.timedelta.max,
    ..., NotImplemented, slice(None), slice(1, -1, 2), slice("a", (1, 2), None), int, type, object, dict, KeyError,
]  # fmt: skip


@pytest.mark.parametrize("value", SCALARS, ids=lambda value: str(value)[:20].encode("ascii", "replace").decode())
def test_a_scalar_arrives_as_it_is(value: object) -> None:
    new = crossed(value)
    assert (type(new), written(new)) == (type(value), written(value))


CONTAINERS = [
    [], [1, 2.5, "x", None, True], [2**5000, -(2**5000), 1], [[1], [2, [3]]], (), (1,), ((1, 2), (3,), []),
    {}, {"a": 1, "b": [2]}, {1: "int", "1": "str", 2.5: (), None: 0, (1, 2): {}, frozenset({3}): b""},
    {"t": [1]}, {"n": 0}, {"h": [0, "object"]}, [{"d": [[1], [2]]}], {"b": 1, "a": 2},
    Counter("abracadabra"), Counter({"a": -1, "b": 0}), OrderedDict(b=1, a=2), set(), {1, "a", (2, 3)},
    frozenset(), frozenset({1, frozenset({2})}), deque(), deque([1, [2]], maxlen=5), deque([1, 2, 3], maxlen=3),
    bytearray(b"\x00a\xff"), bytearray(), [1, 1.0, True, "1"], [float("nan"), -0.0],
    {"deep": [{"er": ({"still": {4}},)}]}, [int, ValueError, ...], list(range(3000)), [range(3), slice(0, [1])],
]  # fmt: skip


@pytest.mark.parametrize("value", CONTAINERS, ids=[f"{type(v).__name__}-{i}" for i, v in enumerate(CONTAINERS)])
def test_a_container_arrives_as_it_is(value: object) -> None:
    new = crossed(value)
    assert (type(new), repr(new)) == (type(value), repr(value))


def test_the_length_to_which_a_deque_may_grow_arrives() -> None:
    assert crossed(deque([1], maxlen=2)).maxlen == 2
    assert crossed(deque([1])).maxlen is None


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
VALUES = st.recursive(
    SCALAR
    | st.integers(BIG - 2, BIG + 2)
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.datetimes().map(lambda value: value.replace(fold=0))
    | st.timedeltas(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(SCALAR, inner, max_size=4)
        | st.lists(inner, max_size=3).map(deque)
    ),
    max_leaves=15,
)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_whatever_is_plain_arrives_as_it_is(value: object) -> None:
    assert written(crossed(value)) == written(value)


def test_aliases_and_cycles_arrive_as_such() -> None:
    shared: list[Any] = [1]
    one, two, three = crossed((shared, {"a": shared}, [[1], shared]))
    assert one is two["a"] is three[1]
    assert three[0] == one
    assert three[0] is not one  # equal, and not the same
    loop: list[Any] = [1]
    loop.append(loop)
    new = crossed(loop)
    assert new[1] is new
    tree: dict[str, Any] = {"child": {}}
    tree["child"]["parent"] = tree
    new = crossed(tree)
    assert new["child"]["parent"] is new
    knot: list[Any] = []
    knot.append((knot, knot))
    new = crossed(knot)
    assert new[0][0] is new[0][1] is new
    buffer = bytearray(b"x")
    one, two = crossed([buffer, buffer])
    assert one is two


class Odd:
    """Overrides what the codec must not ask."""

    __eq__ = __ne__ = lambda self, other: True  # type: ignore[assignment]
    __hash__ = lambda self: 1  # type: ignore[assignment]  # noqa: E731
    __iter__ = lambda self: iter(())  # noqa: E731
    __len__ = lambda self: 0  # noqa: E731
    __int__ = __index__ = lambda self: 0
    __float__ = lambda self: 0.0  # noqa: E731
    __complex__ = lambda self: 0j  # noqa: E731
    __str__ = __repr__ = lambda self: ""
    __getitem__ = lambda self, key: None  # noqa: E731
    keys = values = items = copy = lambda self: []


class OddInt(Odd, int): ...


class OddFloat(Odd, float): ...


class OddComplex(Odd, complex): ...


class OddStr(Odd, str): ...


class OddBytes(Odd, bytes): ...


class OddTuple(Odd, tuple): ...


class OddList(Odd, list): ...


class OddDict(Odd, dict): ...


class OddSet(Odd, set): ...


class OddFrozenset(Odd, frozenset): ...


class OddDecimal(Odd, Decimal): ...


class Colour(enum.IntEnum):
    RED = 7


Point = namedtuple("Point", "x y")

SUBCLASSES = [
    (OddInt(5), 5), (OddFloat(0.5), 0.5), (OddComplex(1j), 1j), (OddStr("ab"), "ab"), (OddBytes(b"ab"), b"ab"),
    (OddTuple((1, 2)), (1, 2)), (OddList([1, 2]), [1, 2]), (OddDict(a=1), {"a": 1}), (OddSet({1, 2}), {1, 2}),
    (OddFrozenset({1}), frozenset({1})), (OddDecimal("1.5"), Decimal("1.5")), (Colour.RED, 7), (Point(1, 2), (1, 2)),
    (defaultdict(list, a=[1]), {"a": [1]}), ([OddInt(5)], [5]), ({OddStr("k"): OddList([1])}, {"k": [1]}),
]  # fmt: skip


@pytest.mark.parametrize(("value", "base"), SUBCLASSES, ids=lambda value: type(value).__name__)
def test_a_subclass_is_reduced_to_what_its_base_reads(value: object, base: object) -> None:
    new = crossed(value)
    assert (type(new), new) == (type(base), base)


def test_what_is_kept_of_a_subclass_stands_beside_its_value() -> None:
    seen: list[object] = []
    encoder = Encoder(no_handle, (), lambda value: seen.append(value) or 7)
    value = Point(1, 2)
    told: list[object] = []
    decoder = Decoder(lambda tag, content: told.append((tag, content)) or content[1])
    assert decoder.value(parse(encoder.text([value, 3]))) == [(1, 2), 3]
    assert len(seen) == 1
    assert seen[0] is value
    assert told == [("u", [7, (1, 2)])]


def test_what_has_no_plain_form_goes_by_its_handle() -> None:
    objects = [object(), len, lambda: 0, Odd, OSError()]
    encoder = Encoder(lambda value: {"h": [i for i, o in enumerate(objects) if o is value][0]})  # noqa: RUF015
    decoder = Decoder(lambda tag, content: objects[content])
    new = decoder.value(parse(encoder.text({"all": objects})))
    assert all(a is b for a, b in zip(new["all"], objects, strict=True))


def test_a_numpy_scalar_is_its_value() -> None:
    np = pytest.importorskip("numpy")
    new = crossed([np.float64(0.5), np.int32(3), np.bool_(True)])
    assert [(type(v), v) for v in new] == [(float, 0.5), (int, 3), (bool, True)]


# ---- bounds


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_depth_is_bounded_on_both_sides() -> None:
    assert repr(crossed(nested(100))) == "[" * 100 + "]" * 100
    with pytest.raises(CodecError, match="nested deeper than 100"):
        Encoder(no_handle).text(nested(110))
    for depth in (110, 500, 100_000):
        with pytest.raises(CodecError):
            Decoder(no_special).value(parse("[" * depth + "]" * depth))
        with pytest.raises(CodecError):
            Decoder(no_special).value(parse('{"t":[' * depth + "]}" * depth))


def test_the_number_of_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_NODES", 10)
    assert crossed([[1] * 4, [2] * 4]) == [[1] * 4, [2] * 4]
    for value in ([0] * 11, [[1] * 5, [2] * 5], {i: i for i in range(6)}):
        with pytest.raises(CodecError, match="more than 10 values"):
            Encoder(no_handle).text(value)


HOSTILE = [
    "", "{", "[1,]", "nul", "1 2", "9" * 5000, "\ud800", "{}", '{"a":1,"b":2}', '{"zz":1}', '{"d":5}', '{"d":[[1],[]]}',
    '{"d":[[[1]],[2]]}', '{"d":[[1],[2],[3]]}', '{"d":[5,6]}', '{"C":"ab"}', '{"O":null}', '{"s":[[1]]}',
    '{"s":{"t":[1]}}',     '{"f":[{"s":[]}]}', '{"t":"ab"}', '{"t":{"a":1}}', '{"q":[-1,[]]}', '{"q":["a",[]]}',
    '{"q":[2]}', '{"q":5}',
    '{"n":0}', '{"n":5}', '{"n":"x"}', '{"n":[]}', '{"i":"zz"}', '{"i":5}', '{"i":""}', '{"b":"0"}', '{"b":[1]}',
    '{"y":"zz"}', '{"y":5}', '{"c":["1","2"]}', '{"r":["0x0","0x1","0x0"]}', '{"r":[0,1,2]}', '{"r":[]}',
    '{"D":"abc"}', '{"D":[1]}', '{"F":["0x1","0x0"]}', '{"F":["0x1"]}', '{"F":[1,2]}', '{"dd":"2024-02-30"}',
    '{"dt":5}', '{"dm":"soon"}', '{"dl":[1e999,0,0]}', '{"dl":[99999999999,0,0]}', '{"o":"None"}', '{"T":"eval"}',
    '{"T":"os"}', '{"T":[]}', '{"S":[]}', '{"S":[1,2,3,4]}', '{"u":[1]}', '{"u":5}', '[{"h":[0,"object"]}]',
    '{"t":[{"t":[{"zz":0}]}]}', '[[1,{"d":0}]]',
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:25].encode("ascii", "replace").decode())
def test_what_no_encoder_writes_is_refused(text: str) -> None:
    with pytest.raises(CodecError):
        Decoder(no_special).value(parse(text))


TAGS = st.sampled_from([*"bcrDFoiTydCOsqtfSnuhk", "dd", "dt", "dm", "dl"])


@settings(max_examples=200, deadline=None)
@given(st.recursive(
    SCALAR.filter(lambda value: not isinstance(value, bytes | complex)),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(TAGS, inner).map(lambda pair: dict([pair])),
    max_leaves=12,
))  # fmt: skip
def test_no_text_raises_anything_else(node: object) -> None:
    with contextlib.suppress(CodecError):
        Decoder(no_special).value(parse(codec.dump(node)))


# ---- changes in place


CHANGES = [
    ([1, 2], [2, [3]]), ({"a": 1}, {"b": 2, "a": 1}), ({1}, {2, 3}), (deque([1, 2], maxlen=2), deque([2, 9], maxlen=2)),
    (Counter("ab"), Counter("bbc")), (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)), (bytearray(b"ab"), bytearray(b"")),
    ([1], []), ({}, {(1, 2): None}), (set(), {"x"}),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), CHANGES, ids=lambda value: repr(value)[:25])
def test_a_change_reaches_the_very_container(before: Any, after: Any) -> None:
    """What a program does to its argument: the tests' own object is made to hold it."""
    sent = Encoder(no_handle)
    text = sent.text((before,))
    theirs = Decoder(no_special)
    (copy,) = theirs.value(parse(text))
    given = list(theirs.met)
    kept = [snapshot(container) for container in given]
    assert not any(map(changed, kept, given))
    copy.clear()
    (copy.update if isinstance(copy, dict | set) else copy.extend)(after)
    assert changed(kept[0], copy)
    content = parse(codec.dump(Encoder(no_handle, given).contents(copy)))
    Decoder(no_special, sent.met).change(before, content)
    assert (type(before), repr(before)) == (type(after), repr(after))


def test_a_snapshot_tells_identity_and_order() -> None:
    one, other = [1], [1]
    for container, same in (([one], [one]), ({"a": one}, {"a": one}), (deque([one]), deque([one]))):
        assert not changed(snapshot(container), same)
    assert changed([one], [other])  # equal, and another object
    assert changed({"a": one}, {"a": other})
    assert changed({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert changed([1, 2], [2, 1])
    assert changed([1], [1, 1])
    assert changed(bytearray(b"a"), bytearray(b"b"))
    assert not changed(bytearray(b"a"), bytearray(b"a"))


def test_what_the_tests_passed_may_come_back_as_itself() -> None:
    given = [[1], {"k": 2}]
    sent = Encoder(no_handle)
    theirs = Decoder(no_special)
    argument = theirs.value(parse(sent.text(given)))
    answer = Encoder(no_handle, theirs.met).text((argument[1], argument, [1]))
    back = Decoder(no_special, sent.met).value(parse(answer))
    assert back[0] is given[1]
    assert back[1] is given
    assert back[2] == [1]
    assert back[2] is not given[0]


# ---- the wire


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    one.settimeout(30)  # only so that a failure does not hang
    other.settimeout(30)
    with one, other:
        yield one, other


@pytest.mark.parametrize("text", ["", "x", "ä字🙂", "\n\0", "long " * 600_000])
def test_a_text_crosses(ends: tuple[socket.socket, socket.socket], text: str) -> None:
    sender = threading.Thread(target=lambda: (wire.send(ends[0], text), wire.send(ends[0], "next")))
    sender.start()
    assert wire.receive(ends[1]) == text
    assert wire.receive(ends[1]) == "next"
    sender.join()


def test_a_frame_may_come_in_pieces(ends: tuple[socket.socket, socket.socket]) -> None:
    frame = wire.HEADER.pack(3) + b"abc" + wire.HEADER.pack(0)
    sender = threading.Thread(target=lambda: [ends[0].send(frame[i : i + 1]) for i in range(len(frame))])
    sender.start()
    assert wire.receive(ends[1]) == "abc"
    assert wire.receive(ends[1]) == ""
    sender.join()


@pytest.mark.parametrize("sent", [b"", b"\x01", wire.HEADER.pack(5), wire.HEADER.pack(5) + b"abcd"])
def test_a_stream_that_ends_is_told(ends: tuple[socket.socket, socket.socket], sent: bytes) -> None:
    ends[0].sendall(sent)
    ends[0].close()
    with pytest.raises(wire.WireError, match="stopped talking"):
        wire.receive(ends[1])


def test_bytes_that_are_no_text_are_told(ends: tuple[socket.socket, socket.socket]) -> None:
    wire.send_bytes(ends[0], b"\xff\xfe")
    with pytest.raises(wire.WireError, match="no UTF-8"):
        wire.receive(ends[1])
    wire.send_bytes(ends[0], b"\xff\xfe")
    assert wire.receive_bytes(ends[1]) == b"\xff\xfe"


def test_a_listener_that_is_gone_is_told(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].close()
    with pytest.raises(wire.WireError, match="stopped listening"):
        wire.send(ends[0], "hello")


def test_a_frame_is_bounded(ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (wire.MAX_FRAME + 1, 2**32 - 1):  # refused by its header, before anything is kept
        ends[0].sendall(wire.HEADER.pack(size))
        with pytest.raises(wire.TooLarge):
            wire.receive(ends[1])
    monkeypatch.setattr(wire, "MAX_FRAME", 4)
    wire.send(ends[0], "four")
    assert wire.receive(ends[1]) == "four"
    with pytest.raises(wire.TooLarge):
        wire.send(ends[0], "fives")
    with pytest.raises(wire.TooLarge):
        wire.send(ends[0], "ääö")  # bytes count, not characters


def test_packets_stay_apart_and_carry_descriptors() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    with one, other:
        other.settimeout(30)
        wire.send_packet(one, b"first", (write,))
        wire.send_packet(one, b"second")
        os.close(write)
        message, (fd,) = wire.receive_packet(other)
        assert message == b"first"
        assert not os.get_inheritable(fd)
        os.write(fd, b"through")
        os.close(fd)
        assert os.read(read, 100) == b"through"
        assert os.read(read, 100) == b""  # no other copy is left open
        assert wire.receive_packet(other) == (b"second", [])
        one.close()
        assert wire.receive_packet(other) == (b"", [])
    os.close(read)
