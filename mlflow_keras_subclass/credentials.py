"""Finds secrets in text, so that they are not copied where others read them.

By the ``detect-secrets`` library, imported when it is first needed; the checks of it that ask a service on the
network are left out. Imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType

__all__ = ["lines_with_secrets"]

# The library's own defaults but for is_ignored_due_to_verification_policies, which sends what it found to a service.
_FILTERS = (
    "allowlist.is_line_allowlisted",
    "heuristic.is_indirect_reference",
    "heuristic.is_likely_id_string",
    "heuristic.is_not_alphanumeric_string",
    "heuristic.is_potential_uuid",
    "heuristic.is_prefixed_with_dollar_sign",
    "heuristic.is_sequential_string",
    "heuristic.is_templated_secret",
)
# The library keeps its settings in a global.
_SCANNING = threading.Lock()


def lines_with_secrets(lines: Sequence[str], path: str) -> Mapping[int, str]:
    """Numbers of the lines (from 1) of the text of ``path`` that seem to hold a secret, and what kind of one.

    A line that carries the library's ``pragma: allowlist secret`` is left alone.
    """
    # The suffix decides whether a value has to be quoted to count.
    return _scanned("\n".join(lines) + "\n", ".py" if PurePosixPath(path).suffix == ".py" else ".txt")


# Half a millisecond a line, and a model is logged again and again with the same source, in the same order: a cache that
# holds fewer files than that is of no use at all.
@functools.lru_cache(maxsize=8192)
def _scanned(text: str, suffix: str) -> Mapping[int, str]:
    scan = importlib.import_module("detect_secrets.core.scan")
    plugins = importlib.import_module("detect_secrets.core.plugins.util").get_mapping_from_secret_type_to_class()
    settings = importlib.import_module("detect_secrets.settings")
    chosen = {
        "plugins_used": [{"name": plugin.__name__} for plugin in plugins.values()],
        "filters_used": [{"path": f"detect_secrets.filters.{name}"} for name in _FILTERS],
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(_SCANNING)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlflow-keras-subclass-")))
        stack.enter_context(settings.transient_settings(chosen))
        file = folder / f"text{suffix}"  # the library reads files only
        file.write_text(text, encoding="utf-8", errors="replace")
        return MappingProxyType({found.line_number: found.type for found in scan.scan_file(str(file))})
