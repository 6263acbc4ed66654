"""What can go wrong here, as a user should read it."""

from __future__ import annotations


class DemoError(Exception):
    """Something that a user can act on: one line that says what is wrong and what to do."""


class WaitTimeout(DemoError):
    """A condition did not come true within its bound; the text ends with what was seen last."""
