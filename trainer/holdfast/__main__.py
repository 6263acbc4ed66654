"""`python -m holdfast`: the same as the `holdfast` command."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
