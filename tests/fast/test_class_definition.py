"""The class definition without Keras: small projects, logged in one process and read back where their files are gone.

One process imports and writes all projects, then the projects are renamed away, and one isolated process reads them
all by each route. The parametrized tests look at what those two processes reported.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from mlflow_keras_subclass.artifacts import class_definition
from mlflow_keras_subclass.artifacts.class_definition import DefinitionRecord, SourceModule, is_user_defined
from mlflow_keras_subclass.artifacts.class_definition.imports import missing_module
from mlflow_keras_subclass.errors import ClassDefinitionError, FormatError
from mlflow_keras_subclass.files import ArtifactWriter

REPOSITORY = Path(__file__).resolve().parents[2]
OTHER_MAGIC, OTHER_PYTHON = ("cb0d0d0a", "3.12") if sys.version_info[:2] != (3, 12) else ("f30d0d0a", "3.13")


@dataclass(frozen=True)
class Case:
    """A project: its files, the definition to log and an expression whose value must be the same after loading."""

    files: Mapping[str, str]
    root: str
    value: str
    before: str = ""
    extra_modules: tuple[str, ...] = ()
    closed_source: str = ""
    objects: Mapping[str, str] = field(default_factory=dict)


def net(body: str, head: str = "") -> str:
    """A module with a class ``Net`` whose method ``call(self, x)`` has the given body."""
    method = textwrap.indent(textwrap.dedent(body).strip(), " " * 8)
    return f"{textwrap.dedent(head)}\n\nclass Net:\n    def call(self, x):\n{method}\n"


CALL = "Root().call(3)"

CASES = {
    "single module": Case({"s01.py": net("return x * SCALE", "SCALE = 2.5")}, "s01:Net", CALL),
    "package with relative imports": Case(
        {
            "p02/__init__.py": "",
            "p02/base.py": "class Base:\n    def base(self, x):\n        return x + 1\n",
            "p02/const.py": "K = 4\n",
            "p02/layers/__init__.py": "from .dense import Dense\n",
            "p02/layers/dense.py": """
                from ..const import K
                class Dense:
                    def __call__(self, x):
                        return x * K
            """,
            "p02/net.py": """
                from .base import Base
                from .layers import Dense
                class Net(Base):
                    def __init__(self):
                        super().__init__()
                        self.dense = Dense()
                    def call(self, x):
                        return self.dense(super().base(x))
                """,
        },
        "p02.net:Net",
        CALL,
    ),
    "star import": Case(
        {"s03ops.py": "def up(x):\n    return x + 10\n", "s03.py": net("return up(x)", "from s03ops import *")},
        "s03:Net",
        CALL,
    ),
    "namespace package": Case(
        {"n04/ops.py": "def up(x):\n    return x + 11\n", "n04/net.py": net("return n04.ops.up(x)", "import n04.ops")},
        "n04.net:Net",
        CALL,
    ),
    "module objects as globals": Case(
        {
            "p05/__init__.py": "from . import net\n",
            "p05/ops.py": "from . import net\nF = 3\ndef up(x):\n    return x * F\n",
            "p05/net.py": net("return p05.ops.up(x) + O.F", "import p05.ops\nimport p05.ops as O"),
        },
        "p05.net:Net",
        CALL,
    ),
    "circular imports": Case(
        {
            "p06/__init__.py": "",
            "p06/a.py": "from . import b\nclass A:\n    def up(self, x):\n        return b.B().down(x) + 1\n",
            "p06/b.py": "from . import a\nclass B:\n    def down(self, x):\n        return x if x else a.A()\n",
            "p06/net.py": net("return A().up(x)", "from .a import A"),
        },
        "p06.net:Net",
        CALL,
    ),
    "package with a lock, a file and a generator nobody reads": Case(
        {
            "p07/__init__.py": "",
            "p07/util.py": """
                import threading
                LOCK = threading.Lock()
                GENERATOR = (i for i in range(3))
                def up(x):
                    return x + 1
                def locked():
                    with LOCK:
                        return next(GENERATOR)
                """,
            "p07/net.py": net("return util.up(x)", "from p07 import util"),
        },
        "p07.net:Net",
        CALL,
    ),
    "function-level imports": Case(
        {
            "p08/__init__.py": "",
            "p08/lazy.py": "def up(x):\n    return x * 7\n",
            "p08/deep/__init__.py": "",
            "p08/deep/er.py": "V = 5\n",
            "p08/net.py": net(
                """
                from .lazy import up
                from p08.deep import er
                import p08.lazy
                return up(x) + er.V + p08.lazy.up(1)
                """
            ),
        },
        "p08.net:Net",
        CALL,
    ),
    "import_module of a constant and of a value": Case(
        {
            "p09/__init__.py": "",
            "p09/one.py": "V = 1\n",
            "p09/two.py": "V = 2\n",
            "p09/net.py": net(
                """
                name = "two"
                return importlib.import_module("p09.one").V + import_module("p09." + name).V * x
                """,
                "import importlib\nfrom importlib import import_module",
            ),
        },
        "p09.net:Net",
        CALL,
        extra_modules=("p09.two",),
    ),
    "class in a function with closure": Case(
        {
            "s10.py": """
                class Base:
                    def up(self, x):
                        return x
                def make(k):
                    count = 0
                    def bump():
                        nonlocal count
                        count += k
                        return count
                    class Net(Base):
                        def call(self, x):
                            before = bump()
                            return super().up(x) + bump() - before + self.seen() - before
                        def seen(self):
                            return count
                    return Net
                """
        },
        "s10:make(5)",
        CALL,
        closed_source="has no attribute make.<locals>.Net",
    ),
    "global lock, rlock, thread-local and event": Case(
        {
            "s11.py": net(
                """
                with LOCK, RLOCK:
                    LOCAL.v = x
                return (LOCAL.v, EVENT.is_set())
                """,
                """
                import threading
                LOCK, RLOCK, LOCAL, EVENT = threading.Lock(), threading.RLock(), threading.local(), threading.Event()
                """,
            )
        },
        "s11:Net",
        CALL,
    ),
    "thread-local of a class of one's own": Case(
        {
            "s11b.py": net(
                """
                seen = []
                thread = threading.Thread(target=lambda: seen.append((CONTEXT.depth, CONTEXT.path)))
                thread.start()
                thread.join()
                return (CONTEXT.depth, CONTEXT.path, seen)
                """,
                """
                import threading
                class Context(threading.local):
                    def __init__(self, depth=1):
                        self.depth, self.path = depth, []
                CONTEXT = Context()
                CONTEXT.path.append("a")
                """,
            )
        },
        "s11b:Net",
        CALL,
    ),
    "descriptors of a class of one's own": Case(
        {
            "s11c.py": """
                class classproperty(property):
                    def __get__(self, _, owner):
                        return self.fget(owner)
                class noted(classmethod):
                    def __init__(self, function, note="none"):
                        super().__init__(function)
                        self.note = note
                class counted(staticmethod):
                    __slots__ = ()
                class Net:
                    @classproperty
                    def presets(cls):
                        "The presets."
                        return [cls.__name__, cls.scale(2)]
                    @noted
                    def scale(cls, x):
                        return x * cls.plus(1)
                    @counted
                    def plus(x):
                        return x + 1
                    def call(self, x):
                        kept = vars(Net)
                        return [x, *self.presets, Net.presets, kept["scale"].note, kept["presets"].__doc__]
                """
        },
        "s11c:Net",
        CALL,
    ),
    "typed dicts": Case(
        {
            "s11d.py": """
                import typing
                class Point(typing.TypedDict):
                    x: int
                class Named(Point, total=False):
                    name: str
                class Net:
                    def call(self, x):
                        point = Named(x=x, name="a")
                        return [point, sorted(Named.__annotations__), sorted(Named.__optional_keys__), Point.__total__]
                """
        },
        "s11d:Net",
        CALL,
    ),
    "logger": Case(
        {"s12.py": net("LOG.debug('x')\nreturn x", "import logging\nLOG = logging.getLogger(__name__)")},
        "s12:Net",
        CALL,
    ),
    "enums": Case(
        {
            "s13.py": """
                import enum
                BONUS = 2
                class Kind(enum.Enum):
                    A = 1
                    B = 2
                    ALIAS = 1
                    def up(self):
                        return self.value + BONUS
                class Planet(enum.Enum):
                    EARTH = (5.0, 6.0)
                    def __init__(self, mass, radius):
                        self.mass, self.radius = mass, radius
                class Flags(enum.IntFlag):
                    R = enum.auto()
                    W = enum.auto()
                class Net:
                    kind = Kind.B
                    def call(self, x):
                        both = Flags.R | Flags.W
                        found = [Kind.ALIAS is Kind.A, self.kind.up(), Planet.EARTH.mass]
                        return [*found, int(both), Kind("B" and 2).name]
                """
        },
        "s13:Net",
        CALL,
    ),
    "dataclasses": Case(
        {
            "s14.py": """
                from __future__ import annotations
                import dataclasses
                from dataclasses import dataclass, field, InitVar, KW_ONLY
                from typing import ClassVar
                @dataclass(frozen=True)
                class Conf:
                    a: int
                    b: list[int] = field(default_factory=list)
                    c: ClassVar[int] = 3
                    d: InitVar[int] = 0
                @dataclass(slots=True, order=True)
                class Slots:
                    x: int = 1
                    _: KW_ONLY
                    y: int = 2
                CONF = Conf(2)
                class Net:
                    def call(self, x):
                        names = [f.name for f in dataclasses.fields(Conf)]
                        slots = Slots(x, y=4)
                        full = hasattr(slots, "__dict__")
                        return [names, dataclasses.replace(CONF, a=5, d=1), slots > Slots(), full, Conf(1) == Conf(1)]
                """
        },
        "s14:Net",
        CALL,
    ),
    "generics, protocols, named tuples": Case(
        {
            "s15.py": """
                from typing import Generic, NamedTuple, NewType, Protocol, TypedDict, TypeVar
                from collections import namedtuple
                T = TypeVar("T", bound="Net")
                Id = NewType("Id", int)
                Pair = namedtuple("Pair", "a b")
                class Point(NamedTuple):
                    x: int
                    y: int = 2
                class Has(Protocol):
                    def up(self, x): ...
                class Row(TypedDict):
                    a: int
                class Holder(Generic[T]):
                    def __init__(self, v):
                        self.v = v
                class Net(Holder["Net"]):
                    def __init__(self):
                        super().__init__(4)
                    def call(self, x):
                        row: Row = {"a": Id(1)}
                        return [Point(x), Pair(1, x)._asdict(), self.v, row, Holder[int](3).v, Point._field_defaults]
                """
        },
        "s15:Net",
        CALL,
    ),
    "abstract classes, metaclasses, properties": Case(
        {
            "s16.py": """
                import abc
                SEEN = []
                class Meta(abc.ABCMeta):
                    def __new__(mcs, name, bases, ns, **kw):
                        cls = super().__new__(mcs, name, bases, ns, **kw)
                        cls.tag = name.lower()
                        return cls
                class Base(metaclass=Meta):
                    @abc.abstractmethod
                    def up(self, x): ...
                    @property
                    def twice(self):
                        return self._v * 2
                    @twice.setter
                    def twice(self, v):
                        self._v = v
                    @staticmethod
                    def s(x):
                        return x + 1
                    @classmethod
                    def c(cls, x):
                        return (cls.__name__, x)
                Base.register(int)
                class Net(Base):
                    __private = 3
                    def up(self, x):
                        return x + self.__private
                    def call(self, x):
                        self.twice = x
                        return [self.twice, self.s(1), self.c(2), self.up(1), self.tag, issubclass(int, Base)]
                """
        },
        "s16:Net",
        CALL,
    ),
    "decorators and context managers": Case(
        {
            "s17.py": """
                import contextlib, functools
                def twice(f):
                    @functools.wraps(f)
                    def inner(*a, **k):
                        return 2 * f(*a, **k)
                    return inner
                @contextlib.contextmanager
                def held(x):
                    yield x + 1
                class Net:
                    @twice
                    def call(self, x, *, k=3):
                        with held(x) as v:
                            match v:
                                case 4:
                                    return [i * k for i in range(v)]
                                case _:
                                    return 0
                """
        },
        "s17:Net",
        CALL,
    ),
    "caches": Case(
        {
            "s18.py": """
                import functools, weakref
                MEMO = weakref.WeakKeyDictionary()
                @functools.lru_cache(maxsize=7)
                def fib(n):
                    return n if n < 2 else fib(n - 1) + fib(n - 2)
                class Net:
                    @functools.cached_property
                    def big(self):
                        return fib(20)
                    def call(self, x):
                        MEMO[self] = x
                        return [self.big, fib.cache_parameters(), MEMO[self]]
                """
        },
        "s18:Net",
        CALL,
    ),
    "singledispatch": Case(
        {
            "s19.py": """
                import functools
                class Mine: pass
                @functools.singledispatch
                def kind(x):
                    return "object"
                @kind.register
                def _(x: int):
                    return "int"
                @kind.register(Mine)
                def _(x):
                    return "mine"
                class Net:
                    def call(self, x):
                        return [kind(x), kind(Mine()), kind("s")]
                """
        },
        "s19:Net",
        CALL,
    ),
    "getsource of a method": Case(
        {"s20.py": net("# a comment that only the text has\nreturn __import__('inspect').getsource(Net.call)")},
        "s20:Net",
        CALL,
    ),
    "two classes with one name": Case(
        {
            "p21/__init__.py": "",
            "p21/a.py": "class Block:\n    v = 1\n",
            "p21/b.py": "class Block:\n    v = 2\n",
            "p21/net.py": net("return a.Block.v * 10 + Block.v", "from . import a\nfrom .b import Block"),
        },
        "p21.net:Net",
        CALL,
    ),
    "optional imports": Case(
        {
            "s22.py": net(
                "return (fast, x)",
                """
                try:
                    import not_there_at_all as fast
                except ImportError:
                    fast = None
                """,
            )
        },
        "s22:Net",
        CALL,
    ),
    "module with __getattr__": Case(
        {
            "p23/__init__.py": """
                def __getattr__(name):
                    import importlib
                    if name == "late":
                        return importlib.import_module("p23.late")
                    raise AttributeError(name)
                """,
            "p23/late.py": "V = 9\n",
            "p23/net.py": net("return p23.late.V + x", "import p23"),
        },
        "p23.net:Net",
        CALL,
    ),
    "modules in a container": Case(
        {
            "p24/__init__.py": "",
            "p24/a.py": "def up(x):\n    return x + 1\n",
            "p24/net.py": net("return MODULES['a'].up(x)", "from . import a\nMODULES = {'a': a}"),
        },
        "p24.net:Net",
        CALL,
    ),
    "submodules of the standard library": Case(
        {"s25.py": net("return xml.dom.minidom.parseString('<a/>').toxml()", "import xml.dom.minidom")}, "s25:Net", CALL
    ),
    "value changed at run time": Case(
        {
            "s26c.py": "SCALE = 2\nOPTIONS = {'k': 1}\n",
            "s26.py": net("return x * c.SCALE + c.OPTIONS['k']", "import s26c as c"),
        },
        "s26:Net",
        CALL,
        before="import s26c; s26c.SCALE = 6; s26c.OPTIONS['k'] = 5",
        closed_source="s26c: ",
    ),
    "method replaced at run time": Case(
        {"s27.py": net("return x")},
        "s27:Net",
        CALL,
        before="import s27; s27.Net.call = lambda self, x: x * 100",
        closed_source="s27: Net.call was changed",
    ),
    "file edited after its import": Case(
        {"s28.py": net("return x + 1")},
        "s28:Net",
        CALL,
        before="import s28, pathlib; pathlib.Path(s28.__file__).write_text("
        "'class Net:\\n    def call(self, x):\\n        return -1\\n')",
        closed_source="s28: the text of Net.call is not what runs",
    ),
    "module variable written by a function": Case(
        {
            "s29.py": """
                COUNT = 0
                def bump():
                    global COUNT
                    COUNT += 1
                class Net:
                    def call(self, x):
                        import s29
                        before = COUNT
                        bump()
                        bump()
                        return [COUNT - before, s29.COUNT - before]
                """
        },
        "s29:Net",
        CALL,
        closed_source="s29: COUNT was changed",
    ),
    "opaque objects": Case(
        {
            "s30.py": """
                FACTOR = 3
                TABLE = {}
                class Helper:
                    def __init__(self, k):
                        self.k = k
                def scaled(x):
                    return x * FACTOR
                def make(k):
                    return lambda x: scaled(x) + k + len(TABLE)
                class Net:
                    def call(self, x):
                        TABLE["seen"] = x
                        return Helper(x).k
                """
        },
        "s30:Net",
        "[Root().call(1), type(objects['helper']).__module__.endswith('s30'), objects['helper'].k, "
        "objects['made'](2), objects['made'].__globals__['Helper'] is type(objects['helper']), objects['cls'] is Root, "
        "objects['named'].__globals__ is objects['made'].__globals__, objects['plain']]",
        objects={
            "helper": "m.Helper(4)",
            "made": "m.make(10)",
            "cls": "m.Net",
            "named": "m.scaled",
            "plain": "[1, {'a': 2}]",
        },
    ),
    "nested class as root": Case(
        {"s31.py": "class Outer:\n    class Net:\n        def call(self, x):\n            return x + 31\n"},
        "s31:Outer.Net",
        CALL,
    ),
    "function as root": Case({"s32.py": "K = 5\ndef act(x, *, k=K):\n    return x + k\n"}, "s32:act", "Root(3)"),
    "numpy values and functions": Case(
        {"s33.py": net("return float(np.sum(W * x) + np.linalg.norm(W))", "import numpy as np\nW = np.arange(4.0)")},
        "s33:Net",
        CALL,
    ),
    "module that shadows the standard library": Case(
        {"zipapp.py": "def mine(x):\n    return 'mine'\n", "s34.py": net("return mine(x)", "from zipapp import mine")},
        "s34:Net",
        CALL,
    ),
    "encoding and line ends": Case(
        {"s35.py": "# -*- coding: latin-1 -*-\r\nclass Net:\r\n    def call(self, x):\r\n        return 'caf\xe9'\r\n"},
        "s35:Net",
        CALL,
    ),
    "long chain of functions": Case(
        {
            "s36.py": "def f0(x):\n    return x\n"
            + "".join(f"def f{i}(x):\n    return f{i - 1}(x) + 1\n" for i in range(1, 250))
            + net("return f249(x)")
        },
        "s36:Net",
        CALL,
    ),
    "train-only import at module level": Case(
        {
            "s37.py": net(
                "return x + 1",
                """
                import sys
                import s37_train_only
                from s37_train_only.deep import tool
                def train():
                    tool()
                """,
            )
        },
        "s37:Net",
        CALL,
        before=(
            "import types; t = types.ModuleType('s37_train_only'); t.__path__ = []; "
            "t.__file__ = '/x/site-packages/s37_train_only/__init__.py'; "
            "d = types.ModuleType('s37_train_only.deep'); d.tool = print; t.deep = d; "
            "d.__file__ = '/x/site-packages/s37_train_only/deep.py'; "
            "sys.modules.update({'s37_train_only': t, 's37_train_only.deep': d})"
        ),
    ),
}

WRITER = """
import importlib, json, sys, traceback
from pathlib import Path
root, repository = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, repository)
from cloudpickle import cloudpickle
from mlflow_keras_subclass.artifacts import class_definition
from mlflow_keras_subclass.files import ArtifactWriter

def resolve(text):
    module, _, name = text.partition(":")
    module = importlib.import_module(module)
    return module, eval("m." + name, {"m": module})

report = {}
for name, case in json.loads((root / "cases.json").read_text()).items():
    sys.path.insert(0, str(root / "projects" / case["folder"]))
    try:
        exec(case["before"], {"sys": sys})
        module, live = resolve(case["root"])
        objects = {key: eval(text, {"m": module}) for key, text in case["objects"].items()}
        expected = repr(eval(case["value"], {"Root": live, "objects": objects}))
        path, modules = list(sys.path), dict(sys.modules)
        tracked = len(cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS)
        module.__dict__.get("TABLE", {}).clear()
        writer = ArtifactWriter(root / "artifacts", case["folder"])
        surveyed = class_definition.survey(
            {"Root": live}, objects=objects, registrations={"Custom>Root": "Root"}, extra_modules=case["extra_modules"],
        )
        written = class_definition.write(writer, surveyed)
        assert path == sys.path and modules == dict(sys.modules)
        assert cloudpickle.list_registry_pickle_by_value() == set()
        assert tracked == len(cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS)
        report[name] = {
            "expected": expected, "record": written.record.to_json(),
            "files": [str(file) for file in written.source_files],
        }
    except BaseException:
        report[name] = {"error": traceback.format_exc()}
    finally:
        del sys.path[0]
report["keras imported"] = "keras" in sys.modules
(root / "written.json").write_text(json.dumps(report))
"""

READER = """
import dataclasses, json, sys, traceback
from pathlib import Path
root, repository = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, repository)
from mlflow_keras_subclass.artifacts import class_definition
from cloudpickle import cloudpickle

class Reader:
    def __init__(self, folder):
        self.folder = folder
    def names(self):
        return tuple(sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file()))
    def read_bytes(self, name):
        return (self.folder / name).read_bytes()

written = json.loads((root / "written.json").read_text())
report = {}
for name, case in json.loads((root / "cases.json").read_text()).items():
    for route in ("cloudpickle", "source"):
        try:
            record = class_definition.DefinitionRecord.from_json(written[name]["record"])
            record = dataclasses.replace(record, serialization_format=route)
            path, modules, finders = list(sys.path), set(sys.modules), list(sys.meta_path)
            back = class_definition.read(record, Reader(root / "artifacts" / case["folder"]))
            value = repr(eval(case["value"], {"Root": back.definitions["Root"], "objects": back.objects}))
            assert path == sys.path and finders == sys.meta_path
            assert cloudpickle.list_registry_pickle_by_value() == set()
            shipped = {entry["name"] for entry in written[name]["record"]["modules"]}
            new = sorted(module for module in set(sys.modules) - modules if module in shipped)
            report[f"{name}/{route}"] = {"value": value, "leaked": new, "registrations": dict(back.registrations)}
        except BaseException:
            report[f"{name}/{route}"] = {"error": traceback.format_exc()}
(root / "read.json").write_text(json.dumps(report))
"""


class Folder:
    """Reads the files of one artifact, as the verified model does for the real caller."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()))

    def read_bytes(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))


@dataclass(frozen=True)
class Outcome:
    root: Path
    written: Mapping[str, Any]
    read: Mapping[str, Any]
    folders: Mapping[str, str]

    def artifact(self, name: str) -> Path:
        return self.root / "artifacts" / self.folders[name]


def isolated(script: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-I", "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = tmp_path_factory.mktemp("cases")
    described = {}
    for number, (name, case) in enumerate(CASES.items()):
        for path, text in case.files.items():
            file = root / "projects" / f"c{number}" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(dedented(text).encode("latin-1"))
        described[name] = dataclasses.asdict(case) | {"folder": f"c{number}"}
    (root / "cases.json").write_text(json.dumps(described))
    isolated(WRITER, str(root), str(REPOSITORY))
    (root / "projects").rename(root / "gone")
    isolated(READER, str(root), str(REPOSITORY))
    return Outcome(
        root=root,
        written=json.loads((root / "written.json").read_text()),
        read=json.loads((root / "read.json").read_text()),
        folders={name: entry["folder"] for name, entry in described.items()},
    )


def dedented(text: str) -> str:
    return textwrap.dedent(text).lstrip("\n") if text.startswith("\n") else text


@pytest.mark.parametrize("route", ["cloudpickle", "source"])
@pytest.mark.parametrize("name", CASES)
def test_value_is_the_same_elsewhere(outcome: Outcome, name: str, route: str) -> None:
    """By each route that is open, the definition gives the value it gave where it was logged, and leaks no module."""
    written, read = outcome.written[name], outcome.read[f"{name}/{route}"]
    assert "error" not in written, written["error"]
    reason = written["record"]["routes"][route]
    if route == "source" and CASES[name].closed_source:
        assert CASES[name].closed_source in reason
        return

    assert reason == ""
    assert "error" not in read, read.get("error")
    assert read["value"] == written["expected"]
    assert read["leaked"] == []
    assert read["registrations"] == {"Custom>Root": "Root"}


@pytest.mark.parametrize("name", [name for name in CASES if "edited" not in name])
def test_source_is_stored_byte_for_byte(outcome: Outcome, name: str) -> None:
    """Every stored module has the bytes of the user's file, and the files are named for git."""
    modules = {module["path"] for module in outcome.written[name]["record"]["modules"]}
    for path in CASES[name].files:
        stored = outcome.artifact(name) / "source" / path
        assert stored.read_bytes() == (outcome.root / "gone" / outcome.folders[name] / path).read_bytes()
        assert f"source/{path}" in modules
    assert len(outcome.written[name]["files"]) == len(CASES[name].files)


def test_writing_needs_no_keras(outcome: Outcome) -> None:
    """Classes that do not use Keras are written without importing it."""
    assert outcome.written["keras imported"] is False


def test_pickle_holds_no_path_of_this_machine(outcome: Outcome) -> None:
    """File names in code are replaced, so that neither the user's folders nor other text at that path matter."""
    for name in CASES:
        for file in outcome.artifact(name).glob("*.cloudpickle"):
            assert str(outcome.root).encode() not in file.read_bytes(), name


def test_record_names_what_a_reader_should_know(outcome: Outcome) -> None:
    """Dynamic imports and third-party packages are in the record."""
    dynamic = outcome.written["import_module of a constant and of a value"]["record"]
    assert any("p09.net:7" in note and "extra_modules=" in note for note in dynamic["notes"]), dynamic["notes"]
    assert outcome.written["numpy values and functions"]["record"]["third_party"] == ["numpy"]
    assert outcome.written["single module"]["record"]["definitions"] == {"Root": ["s01", "Net"]}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on ``sys.path``; modules imported from it are forgotten afterwards."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)) or name.startswith("_mks_"):
            del sys.modules[name]


def load(project: Path, name: str, text: str) -> Any:
    """Write a module and import it."""
    (project / f"{name}.py").write_text(textwrap.dedent(text))
    sys.modules.pop(name, None)
    return __import__(name)


def write(
    root: Path, definitions: Mapping[str, Any], folder: str = "k", **options: Any
) -> tuple[DefinitionRecord, Folder]:
    arguments = {"objects": {}, "registrations": {}, **options}
    written = class_definition.write(ArtifactWriter(root, folder), class_definition.survey(definitions, **arguments))
    return written.record, Folder(root / folder)


def test_two_versions_live_side_by_side(project: Path, tmp_path: Path) -> None:
    """Loading never touches the live class, nor another version of it that was loaded before."""
    stored = []
    for number in (1, 2):
        module = load(
            project,
            "versioned",
            f"V = {number}\nclass Net:\n    def call(self):\n        return {number}{number}{number}, V\n",
        )
        sys.modules["versioned"].__dict__.pop("__cached__", None)
        stored.append(write(tmp_path, {"Net": module.Net}, folder=f"v{number}"))
        Path(module.__cached__).unlink(missing_ok=True) if hasattr(module, "__cached__") else None
    for route in ("cloudpickle", "source"):
        nets = [
            class_definition.read(dataclasses.replace(record, serialization_format=route), folder).definitions["Net"]
            for record, folder in stored
        ]
        assert [net().call() for net in nets] == [(111, 1), (222, 2)]
        assert module.Net not in nets
        assert module.Net().call() == (222, 2)
        assert sys.modules["versioned"] is module


def test_other_python_takes_the_source(project: Path, tmp_path: Path) -> None:
    """A pickle with another magic number is never opened: the source is used."""
    module = load(project, "magical", "class Net:\n    def call(self):\n        return 7\n")
    record, folder = write(tmp_path, {"Net": module.Net})
    (folder.folder / "class.cloudpickle").write_bytes(b"not a pickle at all")

    back = class_definition.read(dataclasses.replace(record, python_magic=OTHER_MAGIC), folder)

    assert back.definitions["Net"]().call() == 7
    assert back.definitions["Net"].__module__.startswith("_mks_")


def test_other_python_without_source_is_refused(project: Path, tmp_path: Path) -> None:
    """Where the source cannot be used either, the error says which Python is needed and why."""
    module = load(project, "local", "def make():\n    class Net:\n        pass\n    return Net\n")
    record, folder = write(tmp_path, {"Net": module.make()})

    with pytest.raises(
        ClassDefinitionError, match=rf"Python {OTHER_PYTHON} and cannot .*no attribute make\.<locals>\.Net"
    ):
        class_definition.read(dataclasses.replace(record, python_magic=OTHER_MAGIC), folder)


def test_other_python_reads_objects_without_code(project: Path, tmp_path: Path) -> None:
    """Objects of libraries and instances of the user's classes are data, and refer to functions by name."""
    text = "class Net:\n    pass\n\nclass Unit:\n    size = 3\n\ndef half(x):\n    return x / 2\n"
    module = load(project, "opaque_data", text)
    objects = {
        "frame": pandas.DataFrame({"a": [1, 2]}),
        "unit": module.Unit(),
        "half": functools.partial(module.half, 4),
    }
    record, folder = write(tmp_path, {"Net": module.Net}, objects=objects)

    back = class_definition.read(dataclasses.replace(record, python_magic=OTHER_MAGIC), folder)

    assert back.objects["frame"].equals(objects["frame"])
    assert back.objects["half"]() == 2
    assert back.objects["unit"].size == 3
    assert type(back.objects["unit"]) is not module.Unit
    assert type(back.objects["unit"]).__module__.startswith("_mks_")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.part", "No module named 'nowhere': .* needed now for nowhere.part.function: install it"),
        ("numpy.nowhere", "numpy is installed here in a version without numpy.nowhere.function: install the one"),
    ],
)
def test_what_is_not_installed_is_told_from_what_another_version_has(name: str, said: str) -> None:
    function = missing_module(name).function

    with pytest.raises(ModuleNotFoundError, match=said):
        function()


@pytest.mark.parametrize("value", [lambda x: x, np.vectorize(lambda x: x)], ids=["lambda", "lambda of a library"])
def test_other_python_with_bytecode_in_objects_is_refused(project: Path, tmp_path: Path, value: Any) -> None:
    module = load(project, "opaque", "class Net:\n    act = None\n")
    record, folder = write(tmp_path, {"Net": module.Net}, objects={"act": value})

    with pytest.raises(ClassDefinitionError, match=rf"objects\.cloudpickle holds bytecode of Python {OTHER_PYTHON}"):
        class_definition.read(dataclasses.replace(record, python_magic=OTHER_MAGIC), folder)


def test_source_is_taken_where_the_pickle_cannot(project: Path, tmp_path: Path) -> None:
    """A file that the module opens again; nobody has to choose the route."""
    module = load(
        project,
        "reopens",
        """
        HANDLE = open(__file__, "ab")
        class Net:
            def call(self, x):
                return HANDLE.name
        """,
    )
    record, _ = write(tmp_path, {"Net": module.Net})
    module.HANDLE.close()

    assert "HANDLE" in record.routes["cloudpickle"]
    assert record.serialization_format == "source"


def test_all_that_cannot_be_pickled_is_named(project: Path, tmp_path: Path) -> None:
    """One error lists every value with the path to it."""
    module = load(
        project,
        "handles",
        """
        import numpy
        HANDLE = open(__file__, "ab")
        TABLE = {"rows": [(i for i in range(3))]}
        TEXT = b"x" * 2_000_000
        def make(stream):
            def read():
                return stream
            return read
        class Net:
            reader = make((i for i in range(4)))
            lines = (i for i in range(5))
            def call(self, x, big=numpy.zeros(300_000)):
                return HANDLE, TABLE, TEXT
        """,
    )
    with pytest.raises(ClassDefinitionError) as caught:
        write(tmp_path, {"Net": module.Net})
    module.HANDLE.close()

    text = str(caught.value)
    assert "handles.HANDLE cannot be pickled" in text
    assert "handles.TABLE['rows'][0] cannot be pickled: cannot pickle 'generator' object" in text
    assert "handles.TEXT is a bytes of 1.9 MB" in text
    assert "handles.Net.call (its default 0) is a ndarray of 2.3 MB (2400000 bytes)" in text
    assert "handles.Net.reader (its closure variable 'stream') cannot be pickled" in text
    assert "handles.Net.lines cannot be pickled" in text
    assert "__init__" in text
    assert not (tmp_path / "k").exists()


def test_large_arrays_travel_beside_the_pickle(project: Path, tmp_path: Path) -> None:
    """Alone, in a container or an object; they come back by name, to be put in their places."""
    module = load(
        project,
        "tables",
        """
        import numpy
        BIG = numpy.zeros(200_000)
        NESTED = {"w": numpy.zeros(300_000), "small": 1}
        class Held:
            def __init__(self):
                self.itself, self.tables = self, [numpy.zeros(300_000)]
        HELD = Held()
        class Net:
            def call(self, x):
                return BIG[0] + NESTED["w"][0] + HELD.tables[0][0]
        """,
    )
    surveyed = class_definition.survey({"Net": module.Net}, objects={}, registrations={})
    assert sorted(surveyed.global_values) == ["tables.BIG", "tables.HELD", "tables.NESTED"]
    assert surveyed.global_values["tables.HELD"] is module.HELD

    record, folder = write(tmp_path, {"Net": module.Net})
    back = class_definition.read(record, folder)
    assert len(folder.read_bytes("class.cloudpickle")) < 10_000
    for name, setters in back.setters.items():
        for put in setters:
            put({"BIG": [1.0], "NESTED": {"w": [2.0]}, "HELD": module.HELD}[name.removeprefix("tables.")])
    assert back.definitions["Net"]().call(0) == 3.0


def test_unpicklable_object_is_named(project: Path, tmp_path: Path) -> None:
    """An opaque object that cannot be pickled is named by its key and path."""
    module = load(project, "plain", "class Net:\n    pass\n")
    with pytest.raises(ClassDefinitionError, match=r"config/fn\['g'\] cannot be pickled"):
        write(tmp_path, {"Net": module.Net}, objects={"config/fn": {"g": (i for i in range(2))}})


def test_source_format_without_a_pickle(project: Path, tmp_path: Path) -> None:
    """With the source format, what stops only the pickle is recorded and nothing is refused."""
    module = load(
        project, "opened", "LINES = (i for i in [4, 5])\nclass Net:\n    def call(self):\n        return next(LINES)\n"
    )
    record, folder = write(tmp_path, {"Net": module.Net}, serialization_format="source")

    assert "opened.LINES cannot be pickled" in record.routes["cloudpickle"]
    assert folder.names() == ("source/opened.py",)
    assert class_definition.read(record, folder).definitions["Net"]().call() == 4


def test_source_format_refuses_changed_state(project: Path, tmp_path: Path) -> None:
    """The source route would silently use the value in the file."""
    module = load(project, "mutated", "SCALE = 2\nclass Net:\n    def call(self):\n        return SCALE\n")
    module.SCALE = 3
    with pytest.raises(ClassDefinitionError, match=r"mutated: SCALE was changed while the program ran"):
        write(tmp_path, {"Net": module.Net}, serialization_format="source")


def test_import_format_imports(project: Path, tmp_path: Path) -> None:
    """The import format stores text only, and loads the class that can be imported."""
    module = load(project, "importable", "class Net:\n    pass\n")
    record, folder = write(tmp_path, {"Net": module.Net}, serialization_format="import")

    assert folder.names() == ("source/importable.py",)
    assert class_definition.read(record, folder).definitions["Net"] is module.Net

    gone = dataclasses.replace(record, definitions={"Net": ("no_such_module", "Net")})
    with pytest.raises(ClassDefinitionError, match=r"no_such_module\.Net cannot be imported here"):
        class_definition.read(gone, folder)


def test_import_format_refuses_what_it_cannot_hold(project: Path, tmp_path: Path) -> None:
    """Classes made in functions cannot be imported, and opaque objects would need a pickle."""
    module = load(project, "inner", "def make():\n    class Net:\n        pass\n    return Net\n")
    with pytest.raises(ClassDefinitionError, match=r"inner\.make\.<locals>\.Net cannot be imported"):
        write(tmp_path, {"Net": module.make()}, serialization_format="import")
    with pytest.raises(ClassDefinitionError, match=r"\['fn'\] can only be pickled"):
        write(tmp_path, {}, objects={"fn": print}, serialization_format="import")


def test_unknown_format_is_named(tmp_path: Path) -> None:
    """A misspelt format is refused with what was received."""
    with pytest.raises(ClassDefinitionError, match="got 'dill'"):
        write(tmp_path, {}, serialization_format="dill")
    with pytest.raises(ClassDefinitionError, match=r"not among the definitions: \['Other'\]"):
        write(tmp_path, {}, registrations={"a>b": "Other"})


@pytest.mark.parametrize("route", ["cloudpickle", "source"])
def test_loaded_class_can_be_logged_again(outcome: Outcome, tmp_path: Path, route: str) -> None:
    """What was loaded elsewhere is stored again with the same source, and loads again."""
    for name in (
        "package with relative imports",
        "function-level imports",
        "import_module of a constant and of a value",
    ):
        record = DefinitionRecord.from_json(outcome.written[name]["record"])
        first = class_definition.read(
            dataclasses.replace(record, serialization_format=route), Folder(outcome.artifact(name))
        )
        again, folder = write(
            tmp_path,
            first.definitions,
            folder=name,
            extra_modules=CASES[name].extra_modules,
            serialization_format="cloudpickle",
        )
        assert again.definitions == record.definitions
        assert [m for m in again.modules] == [m for m in record.modules]
        assert (folder.folder / record.modules[-1].path).read_bytes() == (
            outcome.artifact(name) / record.modules[-1].path
        ).read_bytes()
        for second_route in ("cloudpickle", "source"):
            second = class_definition.read(dataclasses.replace(again, serialization_format=second_route), folder)
            assert repr(second.definitions["Root"]().call(3)) == outcome.written[name]["expected"]
    for name in [name for name in sys.modules if name.startswith("_mks_")]:
        del sys.modules[name]


SCRIPT = '''
"""A training script."""
from __future__ import annotations
import json, sys
from pathlib import Path
{imports}
print("TRAINING")
SCALES = {{"a": 1.0}}
SCALES["a"] = 5.0
REGISTRY = []
REGISTRY.append("r")
UNUSED = Path("nowhere").exists()

def helper(x):
    return x * SCALES["a"] {extra}

class Base:
    def up(self, x):
        return helper(x)

class Net(Base):
    def call(self, x):
        return [super().up(x), REGISTRY]

if __name__ == "__main__":
    root, repository = Path(sys.argv[1]), sys.argv[2]
    sys.path.insert(0, repository)
    from mlflow_keras_subclass.artifacts import class_definition
    from mlflow_keras_subclass.files import ArtifactWriter
    surveyed = class_definition.survey({{"Net": Net}}, objects={{"fn": lambda x: helper(x)}}, registrations={{}})
    written = class_definition.write(ArtifactWriter(root, "script"), surveyed)
    (root / "record.json").write_text(json.dumps(written.record.to_json()))
    (root / "value.txt").write_text(repr(Net().call(3)))
'''


@pytest.mark.parametrize("run", ["script", "module"])
def test_script_is_sliced(tmp_path: Path, run: str) -> None:
    """A class in a script, also one run with -m, comes back by both routes and the training does not run again."""
    package = tmp_path / "gone" / "pkg38"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "ops.py").write_text("def plus(x):\n    return x + 1\n")
    is_script = run == "script"
    imports = "from ops import plus" if is_script else "from .ops import plus"
    (package / "train.py").write_text(SCRIPT.format(imports=imports, extra="+ plus(0)"))
    command = [str(package / "train.py")] if is_script else ["-m", "pkg38.train"]
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path), str(REPOSITORY)],
        cwd=tmp_path / "gone",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = DefinitionRecord.from_json(json.loads((tmp_path / "record.json").read_text()))
    path = "source/__main__.py" if is_script else "source/pkg38/train.py"
    assert {module.path for module in record.modules if module.name == "__main__"} == {path}
    assert record.routes["source"] == ""
    assert (tmp_path / "script" / path).read_bytes() == (package / "train.py").read_bytes()
    (tmp_path / "gone").rename(tmp_path / "renamed")
    for route in ("cloudpickle", "source"):
        back = class_definition.read(
            dataclasses.replace(record, serialization_format=route), Folder(tmp_path / "script")
        )
        assert repr(back.definitions["Net"]().call(3)) == (tmp_path / "value.txt").read_text()
        assert back.objects["fn"](3) == 16.0
        module = sys.modules.get(back.definitions["Net"].__module__)
        assert not hasattr(module, "UNUSED") or module.__name__ == "__main__"
    for name in [name for name in sys.modules if name.startswith("_mks_")]:
        del sys.modules[name]


CELLS = """
import json, linecache, sys
from pathlib import Path
root, repository = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, repository)
from mlflow_keras_subclass.artifacts import class_definition
from mlflow_keras_subclass.files import ArtifactWriter
cells = [
    "SCALE = 2\\n\\ndef helper(x):\\n    return x * SCALE\\n",
    "TOKEN = 'secret-token'\\n",
    "class Net:\\n    def call(self, x):\\n        return 'old'\\n",
    "\\n\\nclass Net:\\n    def call(self, x):\\n        # new\\n        return helper(x) + 1\\n",
]
for number, text in enumerate(cells):
    file = f"<ipython-input-{number}-abc>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    exec(compile(text, file, "exec"), vars(sys.modules["__main__"]))
del sys.modules["__main__"].__file__
surveyed = class_definition.survey({"Net": Net}, objects={}, registrations={})
written = class_definition.write(ArtifactWriter(root, "cells"), surveyed)
(root / "record.json").write_text(json.dumps(written.record.to_json()))
"""


def test_notebook_cells_are_recovered(tmp_path: Path) -> None:
    """The text of a class in cells is put together from the cells it needs, without the others."""
    script = tmp_path / "kernel.py"
    script.write_text(CELLS)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(REPOSITORY)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    record = DefinitionRecord.from_json(json.loads((tmp_path / "record.json").read_text()))
    text = (tmp_path / "cells" / "source/__main__.py").read_text()
    assert "secret-token" not in text
    assert "'old'" not in text
    assert record.routes["source"] == ""
    for route in ("cloudpickle", "source"):
        back = class_definition.read(
            dataclasses.replace(record, serialization_format=route), Folder(tmp_path / "cells")
        )
        assert back.definitions["Net"]().call(3) == 7
        source = __import__("inspect").getsource(back.definitions["Net"].call)
        assert source.strip().startswith("def call(self, x):\n        # new")
    for name in [name for name in sys.modules if name.startswith("_mks_")]:
        del sys.modules[name]


def test_what_is_the_users() -> None:
    """Classes and functions of this file are the user's; those of Python and of installed packages are not."""

    class Local:
        pass

    assert is_user_defined(Local)
    assert is_user_defined(load)
    assert is_user_defined(lambda: None)
    for other in (int, len, Path, json.loads, pytest.fixture, dataclasses.dataclass, ArtifactWriter, 3, Local()):
        assert not is_user_defined(other), other


RECORD = DefinitionRecord(
    serialization_format="source",
    routes={"cloudpickle": "a", "source": "", "import": "b"},
    python_magic="a70d0d0a",
    definitions={"Net": ("pkg.net", "Net")},
    registrations={"Custom>Net": "Net"},
    modules=(SourceModule(name="pkg.net", path="source/pkg/net.py", is_package=False),),
    main_lines=((1, 3),),
    third_party=("numpy",),
    notes=("n",),
)


def test_record_survives_json() -> None:
    """A record is equal after a round trip through JSON text."""
    assert DefinitionRecord.from_json(json.loads(json.dumps(RECORD.to_json()))) == RECORD


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("serialization_format", "dill", "got 'dill'"),
        ("routes", {"cloudpickle": ""}, r"got \['cloudpickle'\]"),
        ("python_magic", 3, "python_magic: expected text, got 3"),
        ("definitions", {"Net": ["a"]}, r"definitions\.Net: .* got \['a'\]"),
        ("registrations", {"a": "Other"}, r"\['Other'\]"),
        ("modules", [{"name": "a", "path": "../a.py", "is_package": False}], r"got '\.\./a\.py'"),
        ("modules", [{"name": "a", "path": "source/../../a.py", "is_package": False}], "below source/"),
        ("main_lines", [[0, 2]], r"got \[0, 2\]"),
        ("third_party", "numpy", "third_party: expected a list, got 'numpy'"),
        ("unknown", 1, r"not known \['unknown'\]"),
    ],
)
def test_record_is_read_strictly(key: str, value: Any, message: str) -> None:
    """What does not fit the format is named."""
    with pytest.raises(FormatError, match=message):
        DefinitionRecord.from_json(RECORD.to_json() | {key: value})
