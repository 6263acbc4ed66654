"""Builds the C library of `holdfast_core.fastcopy` beside it when a compiler is there; without one the package works too."""

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ("-O3", "-Wall", "-Wextra", "-std=gnu11", "-shared", "-fPIC")


class Native(BuildHookInterface):
    """Compiles core/native/copycrc.c into core/holdfast_core/_native/."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            self.app.display_warning("no C compiler: checksums go through zlib, which is slower")
            return
        root = Path(self.root)
        target = root / "core/holdfast_core/_native" / f"copycrc-{platform.machine()}.so"
        target.parent.mkdir(exist_ok=True)
        work = target.with_suffix(".new")
        subprocess.run([compiler, *FLAGS, "-o", str(work), str(root / "core/native/copycrc.c")], check=True)
        work.replace(target)  # whole or not at all: a running process may have the old one mapped
        build_data["artifacts"].append("core/holdfast_core/_native/*.so")
