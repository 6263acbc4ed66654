"""`python3 -m holdfast_cluster`: checks the interpreter before anything newer than Python 3.8 is imported."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - the check is for an interpreter that the package does not support
    sys.exit(
        "cluster: Python %d.%d is too old: install Python 3.11 or newer, or name one in HOLDFAST_PYTHON" % sys.version_info[:2]  # noqa: UP031 - this line must be readable to old interpreters
    )

from holdfast_cluster.cli import main

sys.exit(main())
