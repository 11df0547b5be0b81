"""Reads ``torch.save`` files without torch and without `pickle`: numbers, text, lists, dicts and tensors, never code.

A ``.pt`` file is an uncompressed zip archive of one pickle and of the raw bytes of each tensor. A pickle is a program
for a small stack machine, and two of its instructions run whatever Python function the file names. Here is that machine
without them: the only names it knows are those that `torch.save` writes for tensors, and what they make is a
`StoredTensor`. So nothing in a file can run, and what is built stays within a small multiple of the file's size.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moe_placer.engines.stored_tensors import (
    STORAGES,
    Integers,
    NotPlainTensorsError,
    StoredTensor,
    fail,
    is_count,
    run_of_integers,
    stated_tensor,
    unpack_integers,
)

__all__ = ["load_pickle"]

_LONG_RUN = 500  # integers; pickles write lists in runs of 1,000
_MOST_STEPS = 10_000_000  # each makes an object of at most about 100 bytes; long runs of integers count once


def load_pickle(data: bytes) -> Any:
    """Build what a pickle of plain data and tensors describes; shared lists stay shared.

    Raises
    ------
    NotPlainTensorsError
        It needs anything else, or is damaged.
    """
    machine = _Machine(data)
    try:
        return machine.run()
    except NotPlainTensorsError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, struct.error, OverflowError) as error:
        raise NotPlainTensorsError(f"a damaged pickle (at byte {machine.at}: {type(error).__name__})") from None


@dataclass(frozen=True, slots=True)
class _Name:
    """A name that the pickle asks for, and that stands for something here."""

    module: str
    name: str


class _Ordered(dict[Any, Any]):
    """What an OrderedDict becomes; torch writes an empty one with each tensor."""

    __slots__ = ()


_MARK = object()
_KNOWN = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor_v2"),
    *(("torch", name) for name in STORAGES),
}


class _Machine:
    """The stack machine; ``at`` is the byte that it reads next."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        stop = ord(".")
        for _ in range(_MOST_STEPS):
            code = self.data[self.at] if self.at < len(self.data) else fail("a pickle that ends too early")
            self.at += 1
            if code == stop:
                return self._result()
            step = _STEPS.get(code)
            if step is None:
                fail(f"the pickle instruction {bytes([code])!r}, which no file of tensors has (at byte {self.at - 1})")
            step(self)
        return fail(f"more than {_MOST_STEPS:,} instructions")

    def _result(self) -> Any:
        if len(self.stack) != 1 or self.stack[0] is _MARK or self.at != len(self.data):
            fail("a pickle that leaves something over")
        return self.stack[0]

    # --- what instructions take -----------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.data):
            fail("a pickle that ends too early")
        taken = self.data[self.at : self.at + count]
        self.at += count
        return taken

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 300)
        if end < 0:
            fail("a name without an end")
        return self.take(end + 1 - self.at)[:-1].decode("ascii", "replace")

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            fail("a pickle that takes more than it has")
        return self.stack.pop()

    def marked(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        at = len(self.stack) - 1
        while at >= 0 and self.stack[at] is not _MARK:
            at -= 1
        if at < 0:
            fail("a pickle without the mark that it goes back to")
        taken = self.stack[at + 1 :]
        del self.stack[at:]
        return taken


def _protocol(machine: _Machine) -> None:
    version = machine.number(1)
    if not 2 <= version <= 5:
        fail(f"a pickle of protocol {version}")


def _frame(machine: _Machine) -> None:
    machine.take(8)  # its length, which only streams need


def _constant(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value)


def _new(kind: Callable[[], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(kind())


def _mark(machine: _Machine) -> None:
    machine.stack.append(_MARK)
    end, count = run_of_integers(machine.data, machine.at)
    if count >= _LONG_RUN and machine.data[end : end + 1] == b"e":
        _append_run(machine, end, count)


def _append_run(machine: _Machine, end: int, count: int) -> None:
    """Append a long run of integers to the list below the mark, without making Python objects of them."""
    machine.stack.pop()
    target = machine.stack[-1] if machine.stack else None
    if isinstance(target, list) and not target:
        packed = Integers()
        machine.stack[-1] = packed
        last = next(reversed(machine.memo), None)  # a list is remembered as soon as it is there
        if last is not None and machine.memo[last] is target:
            machine.memo[last] = packed
        target = packed
    run = machine.take(end - machine.at)
    if isinstance(target, Integers):
        target.extend(run, count)
    elif isinstance(target, list):
        target.extend(unpack_integers(run))
    else:
        fail("integers that are appended to no list")
    machine.take(1)


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(items)))

    return step


def _tuple_from_mark(machine: _Machine) -> None:
    machine.stack.append(tuple(machine.marked()))


def _signed(machine: _Machine) -> None:
    machine.stack.append(int.from_bytes(machine.take(4), "little", signed=True))


def _unsigned(width: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.number(width))


def _long(machine: _Machine) -> None:
    machine.stack.append(int.from_bytes(machine.take(machine.number(1)), "little", signed=True))


def _float(machine: _Machine) -> None:
    machine.stack.append(struct.unpack(">d", machine.take(8))[0])


def _text(width: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.take(machine.number(width)).decode("utf-8", "replace"))


def _get(width: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.memo[machine.number(width)])


def _put(width: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        machine.memo[machine.number(width)] = _top(machine)

    return step


def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = _top(machine)


def _top(machine: _Machine) -> Any:
    value = machine.pop()
    machine.stack.append(value)
    return value


def _append(machine: _Machine) -> None:
    value = machine.pop()
    _extend(machine, [value])


def _appends(machine: _Machine) -> None:
    _extend(machine, machine.marked())


def _extend(machine: _Machine, values: list[Any]) -> None:
    target = _top(machine)
    if isinstance(target, Integers):
        plain = [value for value in values if type(value) is int and -(2**31) <= value < 2**31]
        if len(plain) != len(values):
            fail("a list of integers with something else in it")
        target.extend(b"".join(b"J" + value.to_bytes(4, "little", signed=True) for value in plain), len(plain))
    elif isinstance(target, list):
        target.extend(values)
    else:
        fail("values that are appended to no list")


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    _update(machine, [key, value])


def _set_items(machine: _Machine) -> None:
    _update(machine, machine.marked())


def _update(machine: _Machine, items: list[Any]) -> None:
    target = _top(machine)
    if not isinstance(target, dict) or len(items) % 2:
        fail("keys that belong to no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int):
            fail("a dictionary with keys that are neither text nor whole numbers")
        target[key] = value


def _global(machine: _Machine) -> None:
    _name(machine, machine.line(), machine.line())


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    _name(machine, str(module)[:200], str(name)[:200])


def _name(machine: _Machine, module: str, name: str) -> None:
    if (module, name) not in _KNOWN:
        shown = f"{module}.{name}".encode("ascii", "backslashreplace").decode()[:80]
        fail(f"the name {shown}, which no tensor needs; nothing of the file was run")
    machine.stack.append(_Name(module, name))


def _persistent(machine: _Machine) -> None:
    """Take the reference to a storage: ('storage', its class, its member, its device, its number of values)."""
    reference = machine.pop()
    if not (isinstance(reference, tuple) and len(reference) == 5 and reference[0] == "storage"):
        fail("a reference to something else than a tensor's values")
    _, kind, member, _, values = reference
    if not (isinstance(kind, _Name) and kind.name in STORAGES and isinstance(member, str) and is_count(values)):
        fail("a tensor whose values are of no known type")
    machine.stack.append(StoredTensor(member, STORAGES[kind.name], values, 0, (values,), (1,)))


def _reduce(machine: _Machine) -> None:
    arguments, called = machine.pop(), machine.pop()
    if not (isinstance(called, _Name) and isinstance(arguments, tuple)):
        fail("a call of something else than a tensor's name; nothing of the file was run")
    if called.name == "_rebuild_tensor_v2":
        machine.stack.append(stated_tensor(arguments))
    elif called.name == "OrderedDict" and not arguments:
        machine.stack.append(_Ordered())
    elif called.name == "Size" and len(arguments) == 1 and isinstance(arguments[0], tuple):
        machine.stack.append(arguments[0])
    else:
        fail(f"a call of {called.module}.{called.name} that torch.save never writes")


_STEPS: dict[int, Callable[[_Machine], None]] = {
    ord(code): step
    for code, step in {
        "\x80": _protocol,
        "\x95": _frame,
        "}": _new(dict),
        "]": _new(list),
        ")": _constant(()),
        "N": _constant(None),
        "\x88": _constant(True),
        "\x89": _constant(False),
        "(": _mark,
        "t": _tuple_from_mark,
        "\x85": _tuple_of(1),
        "\x86": _tuple_of(2),
        "\x87": _tuple_of(3),
        "J": _signed,
        "K": _unsigned(1),
        "M": _unsigned(2),
        "\x8a": _long,
        "G": _float,
        "X": _text(4),
        "\x8c": _text(1),
        "h": _get(1),
        "j": _get(4),
        "q": _put(1),
        "r": _put(4),
        "\x94": _memoize,
        "a": _append,
        "e": _appends,
        "s": _set_item,
        "u": _set_items,
        "c": _global,
        "\x93": _stack_global,
        "Q": _persistent,
        "R": _reduce,
    }.items()
}
