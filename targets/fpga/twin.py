"""model_c/: C99 sources of the very same integer graph, those of target c, so that a program has the circuit's bits."""

from __future__ import annotations

from qcompiler.graph.model import Graph
from qcompiler.targets.c.build import TEMPLATES, plan
from qcompiler.targets.c.emit import HELPERS, Sources
from qcompiler.targets.c.header import header
from qcompiler.targets.c.machine import SCALAR
from qcompiler.targets.c.selftest import answers, selftest
from qcompiler.targets.shared.lower import check_operators
from qcompiler.targets.shared.program import Program

NAME = "model"
_MAKEFILE = """# make test: the program proves its bits on this machine, which are those of the circuit.
CC ?= cc
CFLAGS ?= -std=c99 -O2

test: selftest
\t@./selftest && echo PASS

selftest: $(wildcard *.c *.h)
\t$(CC) $(CFLAGS) -I. -o $@ $(wildcard *.c)

.PHONY: test
"""


def twin_program(graph: Graph) -> Program:
    """Its kernels. graph: without its boundary. Raises UnsupportedError for operators without a lowering."""
    check_operators(graph, "c")
    return plan(graph, SCALAR, {})


def twin(graph: Graph, program: Program, vectors: int) -> dict[str, str]:
    """Files by path."""
    sources = Sources(graph, program, NAME, False)
    kernels = sources.kernels()
    files = {
        f"{NAME}.h": header(sources),
        f"{NAME}.c": sources.model(),
        f"{NAME}_kernels.h": sources.kernels_header(),
        f"{NAME}_kernels.c": kernels,
        **{name: (TEMPLATES / name).read_text() for name in ("qc_tensor.h", "qc_dsp.h", *HELPERS)},
        "selftest.c": selftest(sources, answers(graph, vectors)),
        "Makefile": _MAKEFILE,
    }
    return {f"model_c/{name}": text for name, text in files.items()}
