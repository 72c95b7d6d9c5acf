"""The c target: freestanding C99 sources for microcontrollers, with the oracle's bits and no float."""

from qcompiler.target import Target
from qcompiler.targets.c.build import build, check
from qcompiler.targets.c.capabilities import CAPABILITIES

TARGET = Target(
    "c",
    CAPABILITIES,
    build,
    options={
        "prefix": "name of the model in the sources: qc_PREFIX_run; default: model",
        "arena": "static (default) or caller (the arena is passed to qc_PREFIX_run)",
    },
    check=check,
    runtime=False,
)
