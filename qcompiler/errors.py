"""Every error that a user can cause.

QCompilerError
 +-- ModelError        the model file or graph is damaged, incomplete or not ONNX        exit 2
 +-- CalibrationError  calibration or evaluation data is missing or does not fit         exit 2
 +-- RecipeError       options or a recipe contradict each other or name unknown things  exit 2
 +-- UnsupportedError  the model is fine, this target cannot do it                       exit 3
 +-- BudgetError       no assignment meets the budget                                    exit 3
 +-- BundleError       a bundle is damaged, or does not fit this machine                 exit 2

Each carries `where` (file, node or key), `why` and `hint` (a way out). Only the CLI prints.
"""

from __future__ import annotations


class QCompilerError(Exception):
    """Base of all errors. `str()` is one paragraph: where: why. hint."""

    exit_code = 1

    def __init__(self, why: str, *, where: str = "", hint: str = "") -> None:
        self.where, self.why, self.hint = where, why, hint
        text = f"{where}: {why}" if where else why
        super().__init__(f"{text} {hint}".strip())


class ModelError(QCompilerError):
    """The model file or graph is damaged, incomplete or not ONNX."""

    exit_code = 2


class CalibrationError(QCompilerError):
    """Calibration or evaluation data is missing or does not fit the model."""

    exit_code = 2


class RecipeError(QCompilerError):
    """Options or a recipe contradict each other or name unknown things."""

    exit_code = 2


class UnsupportedError(QCompilerError):
    """The model is sound, but this target cannot do what it asks."""

    exit_code = 3


class BudgetError(QCompilerError):
    """No assignment of formats meets the budget."""

    exit_code = 3


class BundleError(QCompilerError):
    """A bundle is damaged, exists already, or does not fit this machine."""

    exit_code = 2
