"""Makes the N-th change of the file system below a folder fail, or kills the process there."""

import os
import sys
import threading

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Faults:
    """Something happens at the N-th change of the file system below one folder. An audit hook cannot be removed."""

    def __init__(self):
        self.folder = self.action = None
        self.count = self.at = 0
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.folder is None or threading.get_ident() != self.thread:
            return
        changes = event in ("os.rename", "os.mkdir", "os.link") or (event == "open" and (arguments[2] or 0) & WRITES)
        if changes and str(arguments[0]).startswith(self.folder):
            self.changed(str(arguments[0]))

    def changed(self, what):
        """Called for a change that is seen here, and by those who see others (of a database)."""
        if self.folder is None or threading.get_ident() != self.thread:
            return
        self.count += 1
        self.seen.append(what)
        if self.count == self.at:
            self.action()

    def arm(self, folder, at, action):
        self.count, self.at, self.action, self.thread = 0, at, action, threading.get_ident()
        self.seen = []
        self.folder = str(folder)

    def disarm(self):
        self.folder = None
        return self.count


def numbers(count, *, every):
    """The changes to try of ``count``: all of them, or some from the start, the middle and the end."""
    return range(1, count + 1) if every else sorted({1, 2, count // 3, count // 2, count - 2, count - 1, count})
