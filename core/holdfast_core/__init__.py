"""Shared, pure parts of Holdfast: formats, messages, and every decision.

Nothing in here opens a file or a socket, reads a clock or draws a random number: these are arguments. The standard
library is the only dependency, because this package is injected into users' containers together with `holdfast`.
"""

__version__ = "0.1.0"
