"""`python -m qcompiler` is `qcompile`."""

from qcompiler.cli import main

main()
