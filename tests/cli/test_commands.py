"""verify, eval, bench, targets, inspect: figures, documents and refusals."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT

ONE = ("--dim", "N=1")


@pytest.fixture
def wrong_bundle(digits_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose weights, and their hash, were changed."""
    copy = Path(shutil.copytree(digits_bundle, tmp_path / "wrong"))
    manifest = json.loads((copy / "manifest.json").read_text())
    name = manifest["cpu"]["variants"][0]["weights"]
    weights = bytearray((copy / name).read_bytes())
    for i in range(0, len(weights), 97):
        weights[i] ^= 1
    (copy / name).write_bytes(weights)
    manifest["files"][name] = hashlib.sha256(weights).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_verify_says_bit_exact(qcompile, digits_bundle: Path, digits_data: Path):
    done = qcompile("verify", digits_bundle, "--data", digits_data / "test.npz", "--threads", "1,2,3", "--json")
    assert done.code == 0 and done.err == ""
    assert done.document == {"bit_exact": True, "samples": 60, "mismatches": 0}
    done = qcompile("verify", "--data", digits_data / "test.npz", "--samples", "5", digits_bundle)
    assert done.code == 0 and "bit-exact on 5 samples (1 thread)" in done.out


def test_verify_exits_with_1_on_a_mismatch(qcompile, wrong_bundle: Path, digits_data: Path):
    done = qcompile("verify", wrong_bundle, "--data", digits_data / "test.npz", "--json")
    assert done.code == 1 and done.err == ""
    document = done.document
    assert document["bit_exact"] is False and document["samples"] == 60 and 0 < document["mismatches"] <= 60
    done = qcompile("verify", wrong_bundle, "--data", digits_data / "test.npz")
    assert done.code == 1 and "NOT bit-exact" in done.out and "sample " in done.out


def test_eval_measures_files_of_every_stage_and_bundles(qcompile, digits, digits_bundle: Path, digits_data: Path):
    data = ("--data", digits_data / "test.npz", "--labels", "y", "--json")
    for source in (digits.cnn, digits_bundle / "qdq.onnx", digits_bundle / "integer.onnx", digits_bundle):
        done = qcompile("eval", source, *data, *(ONE if source == digits.cnn else ()))
        assert done.code == 0 and done.err == "", done.err
        assert set(done.document) == {"metric", "value", "samples"}
        assert done.document["metric"] == "top1" and done.document["samples"] == 60
        assert 0.9 < done.document["value"] <= 1
    done = qcompile("eval", digits_bundle, *data, "--samples", "7", "--threads", "2")
    assert done.document["samples"] == 7


@pytest.mark.parametrize(
    ("metric", "low", "high"),
    [("top1", 0.9, 1), ("mse", 0, 0.1), ("cosine", 0.99, 1), ("sqnr", 20, 60), ("psnr", -20, 60)],
)
def test_eval_against_another_model(qcompile, digits, digits_bundle: Path, digits_data: Path, metric, low, high):
    against = ("--against", digits.cnn, *ONE)
    done = qcompile("eval", digits_bundle, "--data", digits_data / "test.npz", "--metric", metric, "--json", *against)
    assert done.code == 0 and done.document["metric"] == metric and low < done.document["value"] <= high


def test_eval_with_a_metric_and_labels_of_ones_own(qcompile, digits_bundle: Path, digits_data: Path, digits):
    Path("own_metric.py").write_text("def rights(outputs, labels):\n    return (outputs.argmax(1) == labels).sum()\n")
    np.save("labels.npy", digits.data["y_test"][:60])
    done = qcompile(
        *("eval", digits_bundle, "--data", digits_data / "test.npz", "--labels", "labels.npy"),
        *("--metric", "own_metric:rights", "--json"),
    )
    assert done.code == 0 and done.document["value"] > 50 and isinstance(done.document["value"], float)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere.npz"], "nowhere.npz: no such file"),
        ([], "--data"),
        (["--data", "{test}"], "--labels KEY"),
        (["--data", "{test}", "--labels", "z"], "no key `z`; it has `x`, `y`"),
        (["--data", "{test}", "--labels", "y", "--metric", "top3"], "`top3` is no metric"),
        (["--data", "{test}", "--labels", "y", "--metric", "mse"], "labels have shape (60,), outputs (60, 10)"),
        (["--data", "{test}", "--labels", "y", "--metric", "no_module_x:f"], "cannot import it"),
        (["--data", "{test}", "--labels", "y", "--threads", "0"], "threads must be at least 1"),
        (["--data", "{test}", "--labels", "y", "--samples", "-1"], "at least one sample"),
        (["--data", "{test}", "--against", "nowhere.onnx"], "nowhere.onnx: cannot be read"),
    ],
)
def test_eval_refusals(qcompile, digits_bundle: Path, digits_data: Path, arguments, said):
    test = str(digits_data / "test.npz")
    qcompile("eval", digits_bundle, *(a.format(test=test) for a in arguments)).failed(2, said)


def test_what_is_not_a_bundle(qcompile, digits, digits_data: Path):
    data = digits_data / "test.npz"
    Path("empty").mkdir()
    Path("text.onnx").write_text("this is not a model")
    qcompile("verify", "empty", "--data", data).failed(2, "empty: not a bundle (no manifest.json)")
    qcompile("verify", "nowhere", "--data", data).failed(2, "nowhere: not a bundle")
    qcompile("bench", digits.cnn).failed(2, "not a bundle")
    qcompile("eval", "empty", "--data", data).failed(2, "not a bundle")
    qcompile("eval", "text.onnx", "--data", data).failed(2, "text.onnx: is not an ONNX model")
    qcompile("inspect", "text.onnx").failed(2, "text.onnx: is not an ONNX model")
    qcompile("text.onnx", "--calib", data).failed(2, "text.onnx: is not an ONNX model")


def test_a_damaged_bundle_is_refused_by_every_command(qcompile, digits_bundle: Path, digits_data: Path):
    shutil.copytree(digits_bundle, "copy")
    Path("copy/selftest.npz").write_bytes(b"")
    for command in (["verify", "copy"], ["eval", "copy"]):
        qcompile(*command, "--data", digits_data / "test.npz").failed(2, "copy: `selftest.npz` is damaged")
    qcompile("bench", "copy").failed(2, "copy: `selftest.npz` is damaged")


def test_bench_measures_peers_side_by_side(qcompile, digits_bundle: Path):
    done = qcompile("bench", digits_bundle, "--against", "onnxruntime", "--seconds", "0.05", "--threads", "2", "--json")
    assert done.code == 0 and done.err == "" and set(done.document) == {"threads", "results"}
    assert done.document["threads"] == 2
    assert [(row["runtime"], row["precision"]) for row in done.document["results"]] == [
        ("qcompiler", "w8a8"),
        ("onnxruntime", "float32"),
        ("onnxruntime", "int8"),
    ]
    for row in done.document["results"]:
        assert set(row) == {"runtime", "precision", "median_ms", "min_ms"} and 0 < row["min_ms"] <= row["median_ms"]
    done = qcompile("bench", digits_bundle, "--seconds", "0.05")
    assert done.code == 0 and "qcompiler" in done.out and "onnxruntime" not in done.out
    qcompile("bench", digits_bundle, "--against", "tflite").failed(2, "`tflite` is no peer", "onnxruntime, openvino")
    qcompile("bench", digits_bundle, "--threads", "0").failed(2, "threads must be at least 1")


def test_targets_are_listed(qcompile):
    done = qcompile("targets", "--json")
    cpu = next(row for row in done.document["targets"] if row["target"] == "cpu")
    assert 8 in cpu["weight_bits"] and cpu["arithmetic"] == ["float", "fixed"] and "cpu" in cpu["options"]
    assert "cpu" in qcompile("targets").out


def test_inspect_lists_nodes(qcompile, digits):
    done = qcompile("inspect", digits.cnn, *ONE, "--json")
    assert done.code == 0 and len(done.document["nodes"]) > 20 and done.document["macs"] == 361344
    done = qcompile("inspect", *ONE, digits.cnn)
    assert done.code == 0 and "0.36 M MACs" in done.out and "Conv" in done.out
    qcompile("inspect", digits.cnn).failed(2, "--dim N=1")


@pytest.mark.parametrize("command", ["compile", "verify", "eval", "bench", "inspect"])
def test_without_arguments_a_command_says_what_it_needs(qcompile, command: str):
    done = qcompile(command)
    done.failed(2, "requires an argument", "--help")
    assert qcompile(command, "--json").document["exit_code"] == 2


@pytest.mark.parametrize("command", [(), ("compile",), ("verify",), ("eval",), ("bench",), ("targets",), ("inspect",)])
def test_help_explains_every_option(qcompile, command: tuple[str, ...]):
    done = qcompile(*command, "--help")
    assert done.code == 0 and done.err == "" and "Usage: qcompile" in done.out
    lines = [line for line in done.out.splitlines() if line.startswith("│")]
    options = [line for line in lines if line.lstrip("│* ").startswith("--") and not line.rstrip("│ ").endswith("STR")]
    assert len(options) >= 3
    for line in options:
        words = line.strip("│* ").split("  ")
        assert len([word for word in words if word.strip()]) >= 2, f"no explanation: {line}"


def test_version(qcompile):
    import qcompiler

    assert qcompile("--version").out.strip() == qcompiler.__version__


def python(code: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, timeout=60, **options
    )


def test_help_imports_nothing_heavy(tmp_path: Path):
    code = (
        "import sys; from qcompiler.cli import main; code = main(['--help']);"
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'tvm', 'torch', 'scipy', 'networkx'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    heavy = "import sys, qcompiler; sys.exit(any(name in sys.modules for name in ('numpy', 'onnx', 'tvm')))"
    assert python(heavy, cwd=tmp_path).returncode == 0


def test_a_reader_that_goes_away_is_no_error(digits, tmp_path: Path):
    command = f"{sys.executable} -m qcompiler inspect {digits.cnn} --dim N=1 --json | true"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr


def test_progress_goes_to_a_terminals_stderr_alone(capsys, monkeypatch):
    from qcompiler.cli.console import Console

    for quiet, terminal in ((False, False), (True, True)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        with Console(as_json=True, quiet=quiet) as console:
            console.progress("calibrate", 1, 2)
        assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Console(as_json=True, quiet=False) as console:
        for done in range(3):
            console.progress("calibrate", done, 2)
        console.result({"a": 1}, "text")
    found = capsys.readouterr()
    assert json.loads(found.out) == {"a": 1} and "calibrate" in found.err
