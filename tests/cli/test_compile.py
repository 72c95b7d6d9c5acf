"""`qcompile MODEL`: every option reaches its place, goals set the exit code, failures leave nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qcompiler.bundle import Bundle
from tests.conftest import ROOT


@pytest.fixture
def model(digits, digits_data: Path) -> list:
    """The arguments of a plain compilation."""
    return [digits.cnn, "--dim", "N=1", "--calib", digits_data / "calib.npz", "-o", "out"]


def test_one_document_with_the_keys_that_others_rely_on(qcompile, model):
    done = qcompile(*model, "--json")
    assert done.code == 0 and done.err == ""
    document = done.document
    assert document["bundle"] == "out" and document["exit_code"] == 0
    assert {"float_bytes", "weight_bytes", "arena_bytes"} <= document["size"].keys()
    assert document["quality"]["sqnr_db"] > 25 and sum(document["seconds"].values()) > 0
    report = json.loads(Path("out/report.json").read_text())
    assert {key: document[key] for key in report} == report
    assert Bundle.open("out").target == "cpu"


def test_people_get_a_summary_with_the_path_of_the_report(qcompile, model):
    done = qcompile("compile", *model)
    assert done.code == 0 and done.err == ""
    for text in ("w8a8 on cpu", "bit-exact", "bundle   out", "SQNR", "weights", "arena", "out/report.html"):
        assert text in done.out
    assert Path("out/report.html").is_file()


def test_options_may_come_first_and_the_output_has_a_default(qcompile, digits, digits_data: Path):
    data = f"--calib={digits_data / 'calib.npz'}"
    done = qcompile(
        "--json", "--precision", "w4a8", "--dim", "N=1", data, "--samples", 8, "--target", "cpu", digits.cnn
    )
    assert done.code == 0 and done.document["bundle"] == "cnn.cpu" and done.document["precision"] == "w4+8a8"
    assert done.document["calibration"]["samples"] == 8


def test_every_quantization_option_arrives(qcompile, digits, digits_data: Path):
    Path("mine.toml").write_text('[recipe]\nname = "mine"\nbase = "minmax"\n')
    done = qcompile(
        *(digits.cnn, "--shape", "x=1,1,8,8", "--calib", digits_data / "calib.npz", "-o", "out", "--json"),
        *("--recipe", "mine.toml", "--precision", "w4a8", "--exclude", "block1", "--exclude", "logits"),
        *("--arithmetic", "fixed", "--seed", "3", "--cpu", "x86-64-v3", "--bench"),
    )
    assert done.code == 0
    document = done.document
    assert (document["recipe"], document["arithmetic"]) == ("mine", "fixed")
    assert [v["level"] for v in Bundle.open("out").manifest["cpu"]["variants"]] == ["x86-64-v3"]
    assert 'exclude = ["block1", "logits"]' in Path("out/recipe.toml").read_text()
    rows = [(row["runtime"], row["precision"]) for row in document["latency"]]
    assert rows == [("qcompiler", "w4+8a8"), ("onnxruntime", "float32"), ("onnxruntime", "int8")]


def test_a_folder_of_images_with_preprocessing(qcompile, digits):
    image = pytest.importorskip("PIL.Image", reason="Pillow is missing")
    Path("images").mkdir()
    for i, pixels in enumerate(digits.data["x_calib"][:6]):
        image.fromarray((pixels[0] * 255).astype(np.uint8)).resize((12, 10)).save(f"images/{i}.png")
    keys = ["--resize", "8", "--crop", "8,8", "--scale", "0.00392157", "--mean", "0.0", "--std", "1.0"]
    keys += ["--layout", "NCHW", "--colour", "RGB"]
    done = qcompile(digits.cnn, "--dim", "N=1", "--calib", "images", "-o", "out", "--json", *keys)
    assert done.code == 0 and done.document["calibration"] == {"source": "images", "samples": 6}


def test_a_function_in_the_working_directory_gives_the_data(qcompile, digits):
    Path("own_calibration.py").write_text(
        "import numpy as np\n"
        "def samples(graph):\n"
        "    rng = np.random.default_rng(0)\n"
        "    return [rng.random(graph.shape(graph.inputs[0]), np.float32) for _ in range(5)]\n"
    )
    done = qcompile(digits.cnn, "--dim", "N=1", "--calib", "own_calibration:samples", "-o", "out", "--json")
    assert done.code == 0 and done.document["calibration"] == {"source": "own_calibration:samples", "samples": 5}


def test_random_calibration_stands_everywhere(qcompile, digits):
    done = qcompile(digits.cnn, "--dim", "N=1", "--calib", "random", "--samples", "2", "-o", "out")
    assert done.code == 0 and "RANDOM" in done.out
    assert "RANDOM" in Path("out/report.html").read_text() and "RANDOM" in Path("out/report.json").read_text()


def test_missed_goals_exit_with_4_and_leave_the_bundle(qcompile, model, digits_data: Path):
    test = ["--eval-data", digits_data / "test.npz", "--labels", "y"]
    done = qcompile(*model, "--json", "--min-sqnr", "99", "--max-drop", "2", *test)
    assert done.code == 4 and done.err == "" and done.document["exit_code"] == 4
    assert [goal["met"] for goal in done.document["goals"]] == [False, True]
    assert Bundle.open("out").load().level
    done = qcompile(*model, "--overwrite", "--min-sqnr", "20", "--max-drop", "-1", *test)
    assert done.code == 4 and "MISSED" in done.out and "20.0 dB" in done.out
    done = qcompile(
        *model, "--overwrite", "--min-sqnr", "20", "--max-drop", "2", "--eval-data", digits_data / "test.npz"
    )
    assert done.code == 0 and "MISSED" not in done.out


@pytest.mark.parametrize(("ours", "code"), [(2.0, 5), (0.5, 0)])
def test_required_speedup(qcompile, model, monkeypatch, ours: float, code: int):
    times = {"qcompiler": ours, "onnxruntime": 1.0}

    def measured(contenders, **options):
        from qcompiler.latency import Latency

        return [Latency(name, precision, times[name], times[name]) for name, precision, _ in contenders]

    monkeypatch.setattr("qcompiler.latency.measure", measured)
    done = qcompile(*model, "--require-speedup")
    assert done.code == code and Path("out/manifest.json").is_file()
    assert f"{1 / ours:.1f}x the speed of onnxruntime float32" in done.out
    assert qcompile("bench", "out", "--require-speedup", "--json").code == code
    if code:
        assert (
            qcompile(*model, "--overwrite", "--require-speedup", "--min-sqnr", "99").code == 4
        )  # accuracy counts first


def test_goals_that_cannot_be_measured_are_refused_before_any_work(qcompile, model, digits_data: Path):
    data = ["--eval-data", digits_data / "test.npz"]
    for options, said in (
        (["--max-drop", "1"], "--max-drop: needs data to measure on"),
        (["--max-drop", "1", *data, "--labels", "z"], "no key `z`; it has `x`, `y`"),
        (["--max-drop", "1", *data, "--metric", "topp1"], "`topp1` is no metric"),
        (["--max-drop", "1", *data, "--metric", "mse"], "metric mse needs references"),
        (["--max-drop", "1", "--eval-data", "nowhere.npz"], "nowhere.npz: no such file"),
    ):
        qcompile(*model, *options).failed(2, said)
        assert os.listdir() == []


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--target", "tpu"], 2, "no target `tpu`. Choose from"),
        (["--recipe", "fsat"], 2, "Did you mean `fast`?"),
        (["--precision", "w9a8"], 2, "`w9a8` is not a precision"),
        (["--precision", "w16a8"], 3, "target `cpu`: it has no 16-bit weights"),
        (["--exclude", "("], 2, "`(` is not a regular expression"),
        (["--arithmetic", "double"], 2, "`double` is not a requantization. Choose float or fixed"),
        (["--cpu", "pentium"], 2, "--cpu: `pentium` is no instruction set"),
        (["--samples", "0"], 2, "at least one sample"),
        (["--samples", "many"], 2, "--samples"),
        (["--shape", "x"], 2, "`x` is not NAME=VALUE. For example --shape x=1,3,48,192"),
        (["--shape", "x=2,3"], 2, "contradicts the model, which has [N,1,8,8]"),
        (["--dim", "M=1"], 2, "no dimension `M`; it has `N`"),
        (["--dim", "N=one"], 2, "--dim N: `one` is not a list of whole numbers"),
        (["--dim", "N=1,2"], 2, "--dim N: `1,2` is not one number"),
        (["--mean", "a,b"], 2, "--mean: `a,b` is not a list of numbers"),
        (["--layout", "NCWH"], 2, "`NCWH` is not one of NCHW, NHWC, none"),
        (["--output", "twice"], 2, "specified multiple times"),
        (["--no-such-option"], 2, "--no-such-option"),
        (["another.onnx"], 2, "another.onnx"),
    ],
)
def test_bad_usage_is_one_paragraph_and_leaves_nothing(qcompile, model, options, code, said):
    qcompile(*model, *options).failed(code, said)
    assert os.listdir() == []


def test_without_dimensions_or_data_it_says_what_to_pass(qcompile, digits, digits_data: Path):
    data = digits_data / "calib.npz"
    qcompile(digits.cnn, "--calib", data).failed(2, "cnn.onnx", "`x` [N,1,8,8]", "--dim N=1")
    qcompile(digits.cnn, "--dim", "N=1").failed(2, "Pass --calib", ".npz", "module:function", "--calib random")
    qcompile(digits.cnn, "--dim", "N=1", "--calib", "nowhere.npz").failed(2, "nowhere.npz: no such file")
    qcompile(digits.cnn, "--dim", "N=1", "--calib", data, "-o", "nowhere/out").failed(2, "nowhere", "Create it first")
    np.savez("bad.npz", image=np.zeros((2, 1, 8, 8), np.float32))
    qcompile(digits.cnn, "--dim", "N=1", "--calib", "bad.npz").failed(2, "bad.npz", "`x`", "`image`")
    np.savez("bad.npz", x=np.zeros((2, 8, 8, 3), np.float32))
    qcompile(digits.cnn, "--dim", "N=1", "--calib", "bad.npz").failed(
        2, "bad.npz, sample 0", "[8, 8, 3]", "[1, 1, 8, 8]"
    )
    assert os.listdir() == ["bad.npz"]


def test_existing_output_stays_without_overwrite(qcompile, model):
    Path("out").mkdir()
    Path("out/mine").write_text("mine")
    qcompile(*model).failed(2, "out: exists already", "--overwrite")
    qcompile(*model, "--overwrite").failed(2, "out: exists and is no bundle")
    assert os.listdir("out") == ["mine"]


def test_errors_are_json_too_and_debug_shows_where(qcompile, model):
    done = qcompile(*model, "--json", "--precision", "w16a8")
    assert done.code == 3 and done.document["exit_code"] == 3 and "16-bit weights" in done.document["error"]
    done = qcompile(*model, "--json", "--no-such-option")
    assert done.code == 2 and done.document["exit_code"] == 2
    done = qcompile(*model, "--debug", "--precision", "w16a8")
    assert done.code == 3 and "Traceback" in done.err and done.err.splitlines()[-1].startswith("error: ")


def test_bugs_and_full_disks_are_told_apart(qcompile, model, monkeypatch):
    def bug(*arguments):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("qcompiler.driver.manifest_of", bug)
    qcompile(*model).failed(1, "internal error (ZeroDivisionError: division by zero)", "--debug")

    def full(*arguments):
        raise OSError(28, "No space left on device", "/tmp/x")

    monkeypatch.setattr("qcompiler.driver.manifest_of", full)
    qcompile(*model).failed(2, "/tmp/x: No space left on device")
    assert os.listdir() == []


def test_ctrl_c_that_an_import_swallows_is_still_an_interruption(qcompile, model, monkeypatch):
    def swallow(*arguments):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr("qcompiler.driver.manifest_of", swallow)
    before = signal.getsignal(signal.SIGINT)
    qcompile(*model).failed(130, "interrupted")
    assert os.listdir() == [] and signal.getsignal(signal.SIGINT) is before


INTERRUPTING = """
import os, signal, time
def samples(graph):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
    return []
"""


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_ctrl_c_leaves_nothing_and_exits_with_130(digits, tmp_path: Path, json_option):
    (tmp_path / "interrupting.py").write_text(INTERRUPTING)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "qcompiler",
            str(digits.cnn),
            "--dim",
            "N=1",
            "--calib",
            "interrupting:samples",
            "-o",
            "out",
        ]
        + json_option,
        capture_output=True,
        text=True,
        cwd=tmp_path / "work",
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "TMPDIR": str(tmp_path / "tmp")},
        timeout=60,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == "error: interrupted; no half bundle is left.\n"
    assert bool(done.stdout) == bool(json_option)
    if json_option:
        assert json.loads(done.stdout)["exit_code"] == 130
    assert os.listdir(tmp_path / "work") == []
    assert not list((tmp_path / "tmp").glob("*qcompiler*"))  # onnxruntime leaves a file of its own there


def test_samples_are_chosen_and_named_in_report_and_recipe(qcompile, model):
    done = qcompile(*model, "--json", "--recipe", "fast", "--samples", 10, "--select", "kmeans", "--seed", 5)
    assert done.code == 0
    calibration = done.document["calibration"]
    assert calibration["samples"] == 10 and calibration["source"].endswith("(10 chosen by kmeans)")
    assert calibration["selection"]["pool"] == 64 and len(calibration["selection"]["indices"]) == 10
    text = "10 of 64 samples chosen by kmeans, seed 5"
    assert {"pass": "select", "where": "calibration", "text": text} in done.document["notes"]
    assert Path("out/recipe.toml").read_text().startswith(f"# calibration: {text}\n[recipe]")
    qcompile(*model, "--select", "kmeans", "--overwrite").failed(2, "--samples N")
    qcompile(*model, "--select", "means", "--samples", 4, "--overwrite").failed(2, "`means`", "kmeans")
