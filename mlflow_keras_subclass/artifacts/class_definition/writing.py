"""Stores the user's classes and functions: finds what they need, says what is in the way, and writes the files.

The first pass pickles into nothing and collects everything that cannot be stored, so that one error names it all; only
then is the identity of the artifact known, and the second pass writes.
"""

from __future__ import annotations

import importlib.util
import io
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from mlflow_keras_subclass.artifacts.class_definition import fidelity
from mlflow_keras_subclass.artifacts.class_definition.closure import Closure, Root, collect
from mlflow_keras_subclass.artifacts.class_definition.diagnosis import Problem, explained
from mlflow_keras_subclass.artifacts.class_definition.objects import ObjectPickler, Symbol, is_reachable
from mlflow_keras_subclass.artifacts.class_definition.origins import (
    INSTALLED,
    USER,
    find_spec,
    is_shipped,
    module_name,
    origin_of,
    original_name,
)
from mlflow_keras_subclass.artifacts.class_definition.pickler import DefinitionPickler, LastVariables
from mlflow_keras_subclass.artifacts.class_definition.records import ROUTES, DefinitionRecord, Written
from mlflow_keras_subclass.artifacts.class_definition.sources import ShippedSources, content_id, live_variables
from mlflow_keras_subclass.artifacts.class_definition.spaces import Spaces, live_module
from mlflow_keras_subclass.errors import ClassDefinitionError
from mlflow_keras_subclass.files import ArtifactWriter
from mlflow_keras_subclass.manifest import CLASS_FILE, OBJECTS_FILE

__all__ = ["Survey", "survey", "write"]

_NO_IDENTITY = "0" * 12
_BIG_PICKLE_BYTES = 5 * 2**20
_STACK_BYTES = 256 * 2**20
_RECURSION_LIMIT = 50_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Options:
    """The arguments of ``survey``."""

    definitions: Mapping[str, Any]
    objects: Mapping[str, Any]
    registrations: Mapping[str, str]
    serialization_format: str | None
    extra_modules: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Survey:
    """What the first pass saw; nothing is written yet."""

    options: _Options
    spaces: Spaces
    problems: list[Problem]
    object_problems: list[Problem]
    functions: list[types.FunctionType]
    classes: list[type]
    symbols: list[Symbol]
    unimported: set[tuple[str, str]]
    is_deep: bool = False

    @property
    def global_values(self) -> Mapping[str, Any]:
        """By name, the values outside of the model that are to be stored with it: layers, optimizers, large arrays."""
        return self.spaces.global_values.values


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """The user's modules, the lines of ``__main__`` that are needed, and where the text differs from the live code."""

    closure: Closure
    main_lines: tuple[tuple[int, int], ...]
    stale: Mapping[str, str]
    changed: Mapping[str, str]
    identity: str


def survey(
    definitions: Mapping[str, Any],
    *,
    objects: Mapping[str, Any],
    registrations: Mapping[str, str],
    serialization_format: str | None = None,
    extra_modules: Sequence[str] = (),
) -> Survey:
    """Look at all that ``write`` will store.

    Args:
        definitions: Key to live class or function of the user.
        objects: Key to a value without a form as data; user definitions in it are stored once, as definitions.
        registrations: Keras' registered name to the key of a definition.
        serialization_format: The route that ``read`` takes; ``None`` is the pickle, or the source where the pickle
            cannot be used.
        extra_modules: Names of user modules that are imported in ways that cannot be seen in the text.

    Raises:
        ClassDefinitionError: The arguments do not fit each other.
    """
    _check(serialization_format, registrations, definitions, objects)
    options = _Options(definitions, objects, registrations, serialization_format, tuple(extra_modules))
    try:
        return _survey(options)
    except RecursionError:
        surveyed = _with_large_stack(lambda: _survey(options))
        surveyed.is_deep = True
        return surveyed


def write(writer: ArtifactWriter, surveyed: Survey) -> Written:
    """Store what was surveyed, with the source text of all modules that it needs.

    The values in ``surveyed.global_values`` are the caller's to store: the pickle has their names only.

    Raises:
        ClassDefinitionError: Something cannot be stored; all of it is named, with where it is held.
    """
    return _with_large_stack(lambda: _write(writer, surveyed)) if surveyed.is_deep else _write(writer, surveyed)


def _write(writer: ArtifactWriter, surveyed: Survey) -> Written:
    options = surveyed.options
    sources = _find_sources(surveyed)
    routes = _routes(surveyed, sources)
    chosen = options.serialization_format or _first_open(routes)
    _refuse(surveyed, routes, chosen)
    notes = set(sources.closure.notes) | _notes(surveyed, sources)
    for path, data in {s.module.path: s.data for s in sources.closure.sources.values()}.items():
        writer.write_bytes(path, data)
    if chosen != "import":
        notes |= _write_pickles(writer, surveyed, sources, routes)
    record = DefinitionRecord(
        serialization_format=chosen,
        routes=routes,
        python_magic=importlib.util.MAGIC_NUMBER.hex(),
        definitions={key: _place(value) for key, value in options.definitions.items()},
        registrations=dict(options.registrations),
        modules=tuple(sources.closure.sources[name].module for name in sorted(sources.closure.sources)),
        main_lines=sources.main_lines,
        third_party=tuple(sorted(sources.closure.third_party | _installed(options.definitions))),
        notes=tuple(sorted(notes)),
    )
    files = {source.file for source in sources.closure.sources.values() if source.file is not None}
    return Written(record=record, source_files=tuple(sorted(files)))


def _with_large_stack(call: Callable[[], T]) -> T:
    """Run ``call`` where long chains of functions fit: pickling them recurses on the C stack."""
    with ThreadPoolExecutor(max_workers=1) as pool, _limits_raised():
        return pool.submit(call).result()


@contextmanager
def _limits_raised() -> Iterator[None]:
    limit, size = sys.getrecursionlimit(), threading.stack_size(_STACK_BYTES)
    sys.setrecursionlimit(_RECURSION_LIMIT)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
        threading.stack_size(size)


def _check(
    serialization_format: str | None,
    registrations: Mapping[str, str],
    definitions: Mapping[str, Any],
    objects: Mapping[str, Any],
) -> None:
    if serialization_format is not None and serialization_format not in ROUTES:
        raise ClassDefinitionError(f"serialization_format must be one of {ROUTES}, got {serialization_format!r}.")
    unknown = sorted(set(registrations.values()) - set(definitions))
    if unknown:
        raise ClassDefinitionError(f"registrations name keys that are not among the definitions: {unknown}.")
    if serialization_format == "import" and objects:
        raise ClassDefinitionError(
            f"serialization_format='import' stores nothing pickled, but {sorted(objects)} can only be pickled. "
            f"Replace them by named functions or classes of the module, or use serialization_format='cloudpickle'."
        )


# --- first pass


def _extra_roots(options: _Options) -> list[Root]:
    """The modules named by the caller; of definitions that were loaded, the modules of their artifact."""
    return [_extra_root(name, _scopes(options)) for name in options.extra_modules]


def _extra_root(name: str, scopes: list[dict[str, Any]]) -> Root:
    for scope in scopes:
        module, loader = live_module(name, scope), scope.get("__loader__")
        is_stored = isinstance(loader, ShippedSources) and name in loader.modules
        if module is not None or is_stored:
            shipped = loader if isinstance(loader, ShippedSources) and is_stored else None
            return Root(name=name, variables=None if module is None else vars(module), shipped=shipped)
    if find_spec(name) is None:
        raise ClassDefinitionError(f"extra_modules names {name!r}, which cannot be found.")
    return Root(name=name)


def _scopes(options: _Options) -> list[dict[str, Any]]:
    """The globals of the definitions, then none: a module that only the process knows."""
    scopes = [
        value.__globals__
        for definition in options.definitions.values()
        for value in (definition, *getattr(definition, "__dict__", {}).values())
        if isinstance(value, types.FunctionType)
    ]
    return [*scopes, {}]


def _survey(options: _Options) -> Survey:
    spaces = Spaces()
    unwritten: dict[str, Any] = {"identity": _NO_IDENTITY, "files": {}}
    object_problems: list[Problem] = []
    opaque = ObjectPickler(io.BytesIO(), spaces, problems=object_problems, definitions=options.definitions, **unwritten)
    _attempt(opaque, dict(options.objects), object_problems)
    problems: list[Problem] = []
    pickler = DefinitionPickler(io.BytesIO(), spaces, problems=problems, **unwritten)
    _attempt(pickler, _payload(options, opaque, {}), problems)
    return Survey(
        options=options,
        spaces=spaces,
        problems=problems,
        object_problems=object_problems,
        functions=[*opaque.functions, *pickler.functions],
        classes=[*opaque.classes, *pickler.classes],
        symbols=opaque.symbols,
        unimported=opaque.unimported | pickler.unimported,
    )


def _attempt(pickler: DefinitionPickler, value: Any, problems: list[Problem]) -> None:
    try:
        pickler.dump(value)
    except Exception as error:  # pickle and the user's own reducers raise anything; a failure is the finding.
        if isinstance(error.__cause__, RecursionError) and threading.stack_size() != _STACK_BYTES:
            raise error.__cause__ from error
        problems.append(Problem(value, f"cannot be pickled: {error}"))


def _payload(options: _Options, opaque: ObjectPickler, stale: Mapping[str, str]) -> dict[str, Any]:
    live = (live_module(name, scope) for name in options.extra_modules for scope in _scopes(options))
    extra = {id(module): module for module in live if module is not None}
    return {
        "definitions": dict(options.definitions),
        "symbols": [symbol.value for symbol in opaque.symbols],
        "modules": [*opaque.modules, *extra.values()],
        "stale": sorted(stale),
        "last": LastVariables(),
    }


# --- source text


def _find_sources(surveyed: Survey) -> _Sources:
    options = surveyed.options
    named = [*options.definitions.values(), *(symbol.value for symbol in surveyed.symbols)]
    tops: dict[str, set[str]] = {}
    for value in named:
        tops.setdefault(str(module_name(value)), set()).add(value.__qualname__.partition(".")[0])
    closure = collect([*_roots(surveyed, tops), *_extra_roots(options)])
    main = closure.sources.get("__main__")
    wanted = set(tops.get("__main__", ())).union(*(s.used | s.stored for s in surveyed.spaces if s.name == "__main__"))
    lines = fidelity.main_lines(main, wanted) if main is not None else ()
    stale = fidelity.stale_functions(surveyed.functions, closure.sources)
    changed = fidelity.changed_classes(surveyed.classes, closure.sources)
    changed |= fidelity.changed_values(surveyed.spaces, closure.sources)
    texts = [(name, source.data) for name, source in closure.sources.items()]
    return _Sources(closure=closure, main_lines=lines, stale=stale, changed=changed, identity=content_id(texts, lines))


def _roots(surveyed: Survey, tops: Mapping[str, set[str]]) -> list[Root]:
    roots = [
        Root(
            name=space.live_name if space.is_importable else space.name,
            variables=space.variables,
            filenames=frozenset(space.filenames),
            wanted=frozenset(space.used | space.stored | tops.get(space.live_name, set())),
        )
        for space in sorted(surveyed.spaces, key=lambda space: not space.is_importable)
    ]
    known = {root.name for root in roots}
    classes = {cls.__module__ for cls in surveyed.classes if not is_shipped(cls)} - known
    names = [name for name in sorted(classes) if origin_of(name) == USER]
    wanted = {name: frozenset(tops.get(name, ())) for name in names}
    roots += [Root(name=n, variables=live_variables(n), wanted=wanted[n]) for n in names]
    return roots


# --- which routes are open


def _routes(surveyed: Survey, sources: _Sources) -> dict[str, str]:
    definitions = surveyed.options.definitions
    problems = explained([*surveyed.problems, *surveyed.object_problems], surveyed.spaces, definitions)
    return {
        "cloudpickle": " ".join(problems),
        "source": " ".join(_against_source(surveyed, sources, definitions)),
        "import": " ".join(_against_import(surveyed, definitions)),
    }


def _against_source(surveyed: Survey, sources: _Sources, definitions: Mapping[str, Any]) -> list[str]:
    reasons = []
    known = sources.closure.sources
    for key, value in definitions.items():
        module, qualname = _place(value)
        if origin_of(module) == INSTALLED and is_reachable(value):
            continue
        if module not in known:
            reasons.append(f"{key}: there is no source text for its module {module}.")
        elif not (is_reachable(value) or is_shipped(value)):
            reasons.append(f"{key}: {module} has no attribute {qualname} that is this object.")
    reasons += [
        f"{symbol.qualname} is referred to by a stored object and is not an attribute of its module."
        for symbol in surveyed.symbols
        if symbol.module is None
    ]
    reasons += [
        f"{symbol.qualname} is referred to by a stored object and there is no source text for its module."
        for symbol in surveyed.symbols
        if symbol.module is not None and symbol.module not in known
    ]
    reasons += [f"{name}: the text of {what} is not what runs." for name, what in sorted(sources.stale.items())]
    reasons += [f"{name}: {what} was changed while the program ran." for name, what in sorted(sources.changed.items())]
    if names := sorted(surveyed.global_values):
        reasons.append(f"{', '.join(names)}: running the text would make them anew, without their state.")
    unbound = _unbound(surveyed, sources)
    return reasons + [f"__main__: {name} is not set by a statement that loading may run." for name in unbound]


def _unbound(surveyed: Survey, sources: _Sources) -> list[str]:
    main = sources.closure.sources.get("__main__")
    if main is None:
        return []
    return [
        name
        for space in surveyed.spaces
        if space.name == "__main__"
        for name in fidelity.unbound_names(space, main, sources.main_lines)
    ]


def _installed(definitions: Mapping[str, Any]) -> set[str]:
    """The packages of definitions that are not the user's own."""
    modules = {_place(value)[0] for value in definitions.values() if not is_shipped(value)}
    return {module.partition(".")[0] for module in modules if origin_of(module) == INSTALLED}


def _against_import(surveyed: Survey, definitions: Mapping[str, Any]) -> list[str]:
    reasons = [f"{name}: importing would make it anew, without its state." for name in sorted(surveyed.global_values)]
    for key, value in definitions.items():
        module, qualname = _place(value)
        if module == "__main__":
            reasons.append(f"{key}: a class in __main__ cannot be imported elsewhere.")
        elif find_spec(module) is None or not (is_reachable(value) or is_shipped(value)):
            reasons.append(f"{key}: {module}.{qualname} cannot be imported.")
    return reasons


def _first_open(routes: Mapping[str, str]) -> str:
    """The pickle; the source where that alone works, and running it again makes the same values.

    A module that holds weights or a large array would make new ones: the pickle is asked for, and its refusal names
    them.
    """
    holds_state = "is a live Keras" in routes["cloudpickle"] or " MB (" in routes["cloudpickle"]
    return "source" if routes["cloudpickle"] and not routes["source"] and not holds_state else "cloudpickle"


def _refuse(surveyed: Survey, routes: Mapping[str, str], chosen: str) -> None:
    """Raise if the route asked for is closed, or a live Keras object or an opaque value is in the way of any."""
    in_objects = explained(surveyed.object_problems, surveyed.spaces, surveyed.options.objects)
    in_definitions = explained(surveyed.problems, surveyed.spaces, surveyed.options.definitions)
    if chosen == "cloudpickle":
        reasons = in_definitions + in_objects
    elif chosen == "source":
        keras = [text for text in in_definitions if "is a live Keras" in text]
        reasons = [*filter(None, [routes["source"]]), *keras, *in_objects]
    else:
        reasons = [*filter(None, [routes["import"]])]
    if reasons:
        listed = "".join(f"\n  - {reason}" for reason in reasons)
        raise ClassDefinitionError(
            f"The class definition cannot be stored with "
            f"serialization_format={chosen!r}:{listed}\n"
            f"Create such values in __init__ or where they are used, or keep them out of what the model's code reads."
        )


def _notes(surveyed: Survey, sources: _Sources) -> set[str]:
    closure = sources.closure
    notes = {f"{name}: no source text was found; only the pickle holds it." for name in closure.missing}
    notes |= {
        f"{name} is a compiled module of yours and is not stored; install it where the model is loaded."
        for name in closure.native
    }
    notes |= {
        f"{name}: the stored text of {what} is not the code that ran when the model was logged."
        for name, what in sources.stale.items()
    }
    return notes | {
        f"{function} imports {name}, which was not imported when the model was logged: only the source route has it."
        for function, name in surveyed.unimported
    }


# --- second pass


def _write_pickles(writer: ArtifactWriter, surveyed: Survey, sources: _Sources, routes: Mapping[str, str]) -> set[str]:
    """Write the pickles; returns notes about them."""
    place: dict[str, Any] = {"identity": sources.identity, "files": sources.closure.file_map()}
    options, spaces = surveyed.options, surveyed.spaces.fresh()
    buffer = io.BytesIO()
    texts = sources.closure.sources
    opaque = ObjectPickler(buffer, spaces, definitions=options.definitions, modules_with_text=texts, **place)
    opaque.dump(dict(options.objects))
    if options.objects:
        writer.write_bytes(OBJECTS_FILE, buffer.getvalue())
    if routes["cloudpickle"]:
        return set()
    buffer = io.BytesIO()
    DefinitionPickler(buffer, spaces, **place).dump(_payload(options, opaque, sources.stale))
    data = buffer.getvalue()
    writer.write_bytes(CLASS_FILE, data)
    if len(data) > _BIG_PICKLE_BYTES:
        return {f"{CLASS_FILE} has {len(data) / 2**20:.1f} MB: the user's modules hold large values."}
    return set()


def _place(value: Any) -> tuple[str, str]:
    return original_name(str(module_name(value))), value.__qualname__
