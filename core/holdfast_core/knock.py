"""What a TCP connect tells about the node behind an address, for those who only want to know whether anything answers. Pure.

The node's kernel answers, whether it accepts or refuses, also when its processes get no CPU. A node without power, or without a
network, does not.
"""

from __future__ import annotations

import errno

_NOBODY = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ETIMEDOUT}
_SOMEBODY = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE}


def answered(number: int | None) -> bool | None:
    """Whether a connect that ended with this errno (0: it stands) was answered; None if the reason lies on our side."""
    if number == 0 or number in _SOMEBODY:
        return True
    return False if number in _NOBODY else None
