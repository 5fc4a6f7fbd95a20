"""What a pickle would import and call, read from its opcodes; nothing is imported, called or unpickled.

For information, not a verdict: the stored class is code, and code can import more while it runs. Imports errors only.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow_keras_subclass.errors import FormatError

__all__ = ["PickleContent", "scan"]

_LARGE_BYTES = 2**20
_MARK = object()
_COMPUTED = "<computed>"
_CODE_MAKER = "runtime.make_code"
# Libraries whose pickles hold code in forms of their own.
_CODE_LIBRARIES = ("cloudpickle", "dill", "marshal", "numba")
# Functions that import a module whose name is their argument.
_IMPORTERS = (
    "builtins.__import__",
    "cloudpickle.cloudpickle.subimport",
    "importlib.import_module",
    "runtime.import_module",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PickleContent:
    """What one pickle names.

    Attributes:
        file: Its name below ``keras_subclass/``.
        size_bytes: Its size.
        names: What is looked up in modules when it is read, as ``module.name``, sorted.
        called: Those of them, and of this package's own functions (``runtime.…``), that are called then, sorted.
        imports: Modules that are imported as such, sorted.
        definitions: The user's definitions and modules in the class pickle or the source that it refers to, sorted.
        code_files: Files that the code in it says it comes from, sorted.
        large_blobs: Sizes of the byte strings of 1 MiB and more, in bytes.
    """

    file: str
    size_bytes: int
    names: tuple[str, ...]
    called: tuple[str, ...]
    imports: tuple[str, ...]
    definitions: tuple[str, ...]
    code_files: tuple[str, ...]
    large_blobs: tuple[int, ...]

    @property
    def holds_bytecode(self) -> bool:
        """Whether it makes functions of code, which only the Python that wrote it reads."""
        return _CODE_MAKER in self.called or any(name.partition(".")[0] in _CODE_LIBRARIES for name in self.names)


def scan(data: bytes, file: str) -> PickleContent:
    """What the pickle ``data`` names.

    Raises:
        FormatError: ``data`` is no pickle.
    """
    machine = _Machine()
    position = 0
    try:
        for opcode, argument, place in pickletools.genops(data):
            position = place or 0
            machine.step(opcode, argument)
    except (ValueError, IndexError, KeyError, UnicodeError, OverflowError) as error:
        raise FormatError(f"{file}: no pickle can be read at byte {position}: {error}.") from None
    return PickleContent(
        file=file,
        size_bytes=len(data),
        names=tuple(sorted(machine.names)),
        called=tuple(sorted(machine.called)),
        imports=tuple(sorted(machine.imports)),
        definitions=tuple(sorted(machine.definitions)),
        code_files=tuple(sorted(machine.code_files)),
        large_blobs=tuple(machine.large),
    )


@dataclass(frozen=True, slots=True)
class _Name:
    """Something that the pickle refers to by name."""

    text: str


@dataclass(slots=True)
class _Machine:
    """The stack machine of pickle on symbols: strings, tuples and names are kept, all else is ``None``."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    imports: set[str] = field(default_factory=set)
    definitions: set[str] = field(default_factory=set)
    code_files: set[str] = field(default_factory=set)
    large: list[int] = field(default_factory=list)

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        own = _STEPS.get(opcode.name)
        if own is not None:
            own(self, argument)
        elif opcode.name.endswith(("UNICODE", "UNICODE8", "STRING")):
            self.stack.append(argument)
        else:
            self._by_effect(opcode, argument)

    def _by_effect(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Any opcode that makes nothing of interest: what it takes off the stack and how many it puts there."""
        if isinstance(argument, bytes | bytearray) and len(argument) >= _LARGE_BYTES:
            self.large.append(len(argument))
        if any(item.name == "mark" for item in opcode.stack_before):
            self._to_mark()
            below = next(number for number, item in enumerate(opcode.stack_before) if item.name == "mark")
            self._pop(below)
        else:
            self._pop(len(opcode.stack_before))
        self.stack += [_MARK if item.name == "mark" else None for item in opcode.stack_after]

    def _pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError("the stack is empty")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def _to_mark(self) -> list[Any]:
        for number in range(len(self.stack) - 1, -1, -1):
            if self.stack[number] is _MARK:
                taken = self.stack[number + 1 :]
                del self.stack[number:]
                return taken
        raise IndexError("no mark on the stack")

    def memoize(self, number: int | None) -> None:
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def _name(self, text: str) -> _Name:
        self.names.add(text)
        return _Name(text)

    def global_name(self, argument: str) -> None:
        self.stack.append(self._name(argument.replace(" ", ".", 1)))

    def stack_global(self, _: Any) -> None:
        parts = [item if isinstance(item, str) else _COMPUTED for item in self._pop(2)]
        self.stack.append(self._name(".".join(parts)))

    def inst(self, argument: str) -> None:
        self._to_mark()
        self._call(self._name(argument.replace(" ", ".", 1)), None)

    def obj(self, _: Any) -> None:
        items = self._to_mark()
        if not items:
            raise IndexError("nothing after the mark")
        self._call(items[0], tuple(items[1:]))

    def extension(self, argument: int) -> None:
        self.stack.append(self._name(f"<copyreg extension {argument}>"))

    def persistent(self, argument: Any) -> None:
        identity = self._pop(1)[0] if argument is None else argument
        match identity:
            case ("runtime", str(name)):
                self.stack.append(_Name(f"runtime.{name}"))
            case ("definition" | "module", str(key)):
                self.definitions.add(key)
                self.stack.append(None)
            case ("symbol", _, _, str(qualname)):
                self.definitions.add(qualname)
                self.stack.append(None)
            case _:
                self.stack.append(None)

    def reduce(self, _: Any) -> None:
        function, arguments = self._pop(2)
        self._call(function, arguments)

    def new_with_keywords(self, _: Any) -> None:
        kind, arguments, _keywords = self._pop(3)
        self._call(kind, arguments)

    def _call(self, function: Any, arguments: Any) -> None:
        self.stack.append(None)
        if not isinstance(function, _Name):
            return
        self.called.add(function.text)
        texts = arguments if isinstance(arguments, tuple) else ()
        match texts:
            case (first, *_) if function.text in _IMPORTERS:
                self.imports.add(first if isinstance(first, str) else _COMPUTED)
            case (str(module), str(name)) if function.text == "runtime.import_attribute":
                self.imports.add(f"{module}.{name}")
            case (_, str(file)) if function.text == "runtime.make_code":
                self.code_files.add(file)

    def nothing(self, _: Any) -> None:
        """For opcodes that leave the stack as it is."""

    def pop_one(self, _: Any) -> None:
        self._pop(1)

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def tuple_of(self, count: int | None) -> None:
        self.stack.append(tuple(self._to_mark() if count is None else self._pop(count)))


_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _Machine.nothing),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _Machine.extension),
    **dict.fromkeys(("PERSID", "BINPERSID"), _Machine.persistent),
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "INST": _Machine.inst,
    "OBJ": _Machine.obj,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "BUILD": _Machine.pop_one,
    "POP": _Machine.pop_one,
    "DUP": _Machine.duplicate,
    "TUPLE": lambda machine, _: machine.tuple_of(None),
    "EMPTY_TUPLE": lambda machine, _: machine.tuple_of(0),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
}
