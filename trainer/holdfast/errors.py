"""Every error that this package raises on purpose. Each text says what to do."""

from __future__ import annotations


class HoldfastError(Exception):
    """Base of all of them."""


class UnsupportedValue(HoldfastError, TypeError):
    """A value that cannot be stored without pickle; the text names its full key."""


class AgentUnreachable(HoldfastError, ConnectionError):
    """The sidecar did not answer in time."""


class StateMismatch(HoldfastError, ValueError):
    """The snapshot does not fit the live objects, for example another dtype."""


class DirectoryInUse(HoldfastError, RuntimeError):
    """Another process writes snapshots of this rank into the same directory, or another world size did."""


class SnapshotSkipped(HoldfastError):
    """Internal: this step gets no snapshot; the text is the reason that is reported."""


class Interrupted(BaseException):
    """Raised in a function that `holdfast.resilient` runs, because its attempt is over: clean up and let it pass.

    Like KeyboardInterrupt it is no Exception, so that `except Exception` does not swallow it.
    """
