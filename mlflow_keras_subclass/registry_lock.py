"""One lock for all that changes the tables in which Keras and Python name classes and modules.

Construction puts the model's classes into Keras' registry, and stored source that runs does the same by its
decorators: at the same time, each would restore what the other put there. A module of stored source is in
``sys.modules`` before it has run to its end, and another thread must not find it there. Imports nothing.
"""

from __future__ import annotations

import threading

__all__ = ["REGISTRY_LOCK"]

# A constructor may import a stored module, so one thread may take it again.
REGISTRY_LOCK = threading.RLock()
