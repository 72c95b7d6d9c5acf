"""Run a command line in this process and look at all that it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qcompiler.cli import main


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """stdout as the one JSON document that it must be."""
        return json.loads(self.out)

    def failed(self, code: int, *said: str) -> None:
        """Exit code and one paragraph on stderr, nothing else, that says all of `said`."""
        assert self.code == code, self.err
        assert self.out == "" and "Traceback" not in self.err
        assert self.err.startswith("error: ") and self.err.count("\n") == 1 and len(self.err) < 800
        for text in said:
            assert text in self.err, self.err


@pytest.fixture
def qcompile(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Done]:
    """Runs `qcompile ARGUMENTS` in an empty working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        found = capsys.readouterr()
        return Done(code, found.out, found.err)

    return run
