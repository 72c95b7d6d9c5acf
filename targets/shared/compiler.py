"""The C compiler of this machine."""

from __future__ import annotations

import os
import shutil


def find_compiler() -> str | None:
    """What the environment variable CC names, else cc, gcc or clang; None if there is none of them."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next((name for name in names if name and shutil.which(name)), None)
