"""The Python API: what it takes, what comes back, and what it says before and after work is done."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import qcompiler
from qcompiler.calibrate.preprocess import Preprocess
from qcompiler.errors import (
    BundleError,
    CalibrationError,
    ModelError,
    QCompilerError,
    RecipeError,
    UnsupportedError,
)
from qcompiler.graph.model import Graph

ONE = {"N": 1}
QDQ_ONLY = """
[recipe]
name = "until-qdq"
passes = ["canonicalize", "fold_batchnorm", "calibrate", "decide", "set_ranges", "insert_qdq"]
"""


@pytest.fixture
def x(digits) -> dict[str, np.ndarray]:
    return {"x": digits.data["x_calib"][:16]}


def codes(result: qcompiler.Result) -> bytes:
    assert result.integer_graph is not None
    return result.integer_graph.to_proto().SerializeToString(deterministic=True)


def test_path_proto_and_ir_model_are_the_same_model(digits, x):
    proto = onnx.load(digits.cnn)
    untouched = proto.SerializeToString()
    found = [qcompiler.quantize(m, x, dims=ONE) for m in (digits.cnn, str(digits.cnn), proto, ir.from_proto(proto))]
    assert len({codes(result) for result in found}) == 1
    assert proto.SerializeToString() == untouched


def test_result_saves_a_qdq_file_that_others_read(digits, x, tmp_path: Path):
    proto = onnx.load(digits.cnn)
    proto.metadata_props.add(key="owner", value="somebody")
    result = qcompiler.quantize(proto, x, dims=ONE)
    result.save(tmp_path / "qdq.onnx")
    onnx.checker.check_model(str(tmp_path / "qdq.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "qdq.onnx"), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["x"]
    assert [value.name for value in session.get_outputs()] == [proto.graph.output[0].name]
    assert session.get_modelmeta().custom_metadata_map["owner"] == "somebody"
    images, labels = digits.data["x_test"][:50], digits.data["y_test"][:50]
    right = [
        session.run(None, {"x": image[None]})[0].argmax() == label for image, label in zip(images, labels, strict=True)
    ]
    assert np.mean(right) > 0.9
    kept = {node.name for node in onnx.load(tmp_path / "qdq.onnx").graph.node}
    assert {node.name for node in proto.graph.node if node.op_type == "Conv"} <= kept


def test_compile_gives_a_bundle_and_options_reach_the_recipe(digits, x, tmp_path: Path):
    bundle = qcompiler.compile(
        digits.cnn,
        target="cpu",
        calibration=x,
        recipe="minmax",
        output=tmp_path / "out",
        dims=ONE,
        options={"precision": "w4a8"},
        arithmetic="fixed",
    )
    assert isinstance(bundle, qcompiler.Bundle) and bundle.path == tmp_path / "out"
    report = bundle.report()
    assert (report["recipe"], report["precision"], report["arithmetic"]) == ("minmax", "w4+8a8", "fixed")
    assert report["verification"]["bit_exact"] and bundle.manifest["arithmetic"] == "fixed"
    with bundle.load() as session:
        session.self_test()
    assert 'precision = "w4a8"' in (bundle.path / "recipe.toml").read_text()


def test_images_are_preprocessed(digits, tmp_path: Path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is missing")
    (tmp_path / "images").mkdir()
    for i, pixels in enumerate(digits.data["x_calib"][:4]):
        image.fromarray((pixels[0] * 255).astype(np.uint8)).save(tmp_path / "images" / f"{i}.png")
    for how in ({"scale": 1 / 255, "resize": 8}, Preprocess(scale=1 / 255, crop=8)):
        result = qcompiler.quantize(digits.cnn, tmp_path / "images", dims=ONE, preprocess=how)
        assert len(result.samples) == 4
    with pytest.raises(RecipeError, match="no key `sacle`"):
        qcompiler.quantize(digits.cnn, tmp_path / "images", dims=ONE, preprocess={"sacle": 1.0})


def test_a_recipe_that_ends_early_quantizes_and_does_not_compile(digits, x, tmp_path: Path):
    recipe = tmp_path / "until-qdq.toml"
    recipe.write_text(QDQ_ONLY)
    result = qcompiler.quantize(digits.cnn, x, recipe, dims=ONE)
    assert result.qdq_graph is not None and result.integer_graph is None
    result.save(tmp_path / "qdq.onnx")
    with pytest.raises(RecipeError, match="it makes no integer graph. Let it end with integerize"):
        qcompiler.compile(digits.cnn, "cpu", x, recipe, output=tmp_path / "out", dims=ONE)
    recipe.write_text('[recipe]\npasses = ["canonicalize"]\n')
    result = qcompiler.quantize(digits.cnn, x, recipe, dims=ONE)
    with pytest.raises(RecipeError, match="it makes no QDQ graph"):
        result.save(tmp_path / "qdq.onnx")


def test_inputs_that_nothing_reads_and_several_outputs(tmp_path: Path):
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[1,4] x, float[1,3] unread) => (float[1,4] y, float[4] z)
    { y = Relu(x)  shape = Constant <value_ints = [4]> ()  z = Reshape(x, shape) }"""
    bundle = qcompiler.compile(Graph.parse(text).model, "cpu", "random", output=tmp_path / "out", samples=4)
    assert [(v["name"], "format" in v) for v in bundle.manifest["inputs"]] == [("x", True), ("unread", False)]
    with bundle.load() as session:
        session.self_test()
        x = np.float32([[-0.5, 0, 0.5, 1]])
        y, z = session.run({"x": x, "unread": np.zeros((1, 3), np.float32)})
    assert y.shape == (1, 4) and z.shape == (4,)
    np.testing.assert_allclose(y[0], [0, 0, 0.5, 1], atol=0.03)
    np.testing.assert_allclose(z, x[0], atol=0.03)


def no_work(stage: str, done: int, total: int) -> None:
    raise AssertionError(f"work was done: {stage}")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"target": "tpu"}, RecipeError, "no target `tpu`. Choose from"),
        ({"recipe": "defualt"}, RecipeError, "Did you mean `default`"),
        ({"options": {"precision": "w9a8"}}, RecipeError, "`w9a8` is not a precision"),
        ({"options": {"precision": "w16a8"}}, UnsupportedError, "`cpu`: it has no 16-bit weights. It has 2, 3"),
        ({"options": {"precisoin": "w8a8"}}, RecipeError, "Did you mean `precision`"),
        ({"arithmetic": "flaot"}, RecipeError, "`flaot` is not a requantization"),
        ({"target_options": {"cpu": "pentium"}}, RecipeError, "`pentium` is no instruction set"),
        ({"target_options": {"gpu": "1"}}, RecipeError, "`cpu`: it has no option `gpu`. It has cpu"),
        ({"samples": 0}, CalibrationError, "at least one sample"),
        ({"calibration": None}, CalibrationError, "calibration data is missing. Pass --calib"),
        ({"calibration": {"y": np.zeros(3)}}, CalibrationError, "no data for the input `x`; it has `y`"),
        ({"dims": {}}, ModelError, r"dynamic dimensions: `x` \[N,1,8,8\]. Fix them, for example with --dim N=1"),
        ({"dims": {"M": 1}}, RecipeError, "no dimension `M`; it has `N`"),
        ({"shapes": {"z": (1,)}, "dims": {}}, RecipeError, "no input `z`; it has `x`"),
        ({"output": "nowhere/out"}, BundleError, "does not exist"),
    ],
)
def test_wrong_requests_are_refused_before_any_work(digits, x, tmp_path: Path, monkeypatch, options, error, said):
    monkeypatch.chdir(tmp_path)
    request = {"calibration": x, "dims": ONE, "output": "out", **options}
    with pytest.raises(error, match=said) as raised:
        qcompiler.compile(digits.cnn, progress=no_work, **request)
    assert "\n" not in str(raised.value) and os.listdir(tmp_path) == []


def text_model(body: str, **constants) -> Graph:
    declared = "".join(f", float{list(array.shape)} {name}" for name, array in constants.items())
    head = '<ir_version: 10, opset_import: ["": 21]>'
    return Graph.parse(f"{head} g (float[1,4,6,6] x{declared}) => (float[1,4,6,6] y) {{ {body} }}", **constants)


WEIGHT = np.random.default_rng(0).standard_normal((4, 4, 1, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("body", "weight", "data", "error", "said"),
    [
        ("[coin] y = Bernoulli (x)", WEIGHT, None, UnsupportedError, "Bernoulli.*`coin`.*qcompile inspect"),
        ("[c] y = Conv (x, w)", WEIGHT * np.nan, None, ModelError, "initializer `w` holds 16 values that are NaN"),
        (
            "[c] y = Conv (x, w)",
            WEIGHT * np.inf,
            None,
            ModelError,
            "initializer `w` holds 16 values that are NaN or inf",
        ),
        ("[c] y = Conv (x, w)", WEIGHT, "nan", CalibrationError, "sample 2: input `x` holds NaN or infinity"),
        ("[c] y = Conv (x, w)", WEIGHT, "shape", CalibrationError, r"has shape \[4, 6, 5\], the model expects \[1, 4"),
        ("[c] y = Conv (x, w)", WEIGHT * 1e30, "large", CalibrationError, "`y` becomes NaN or infinite.*preprocessing"),
    ],
)
def test_models_and_data_that_cannot_be_are_named(tmp_path: Path, body, weight, data, error, said):
    samples = np.random.default_rng(1).standard_normal((3, 4, 6, 6)).astype(np.float32)
    if data == "nan":
        samples[2, 0, 0, 0] = np.nan
    elif data == "shape":
        samples = samples[..., :5]
    elif data == "large":
        samples = samples * np.float32(1e30)
    model = text_model(body, w=weight.astype(np.float32)).model
    with pytest.raises(error, match=said) as raised:
        qcompiler.compile(model, "cpu", {"x": samples}, output=tmp_path / "out")
    assert "\n" not in str(raised.value) and os.listdir(tmp_path) == []


def test_a_model_cut_anywhere_is_a_model_error(digits, x, tmp_path: Path):
    whole = digits.cnn.read_bytes()
    for size in [*range(0, len(whole), 4096), len(whole) - 1]:
        (tmp_path / "cut.onnx").write_bytes(whole[:size])
        with pytest.raises(QCompilerError, match="cut.onnx") as raised:
            qcompiler.compile(tmp_path / "cut.onnx", "cpu", x, output=tmp_path / "out", dims=ONE)
        assert raised.value.exit_code in (2, 3)
    assert os.listdir(tmp_path) == ["cut.onnx"]


@pytest.mark.parametrize("stage", ["calibrate", "lower", "generate code", "evaluate bundle", "evaluate layers"])
def test_an_interruption_at_any_stage_leaves_nothing(digits, x, tmp_path: Path, monkeypatch, stage: str):
    monkeypatch.setenv("QCOMPILER_CACHE", "off")  # else there may be nothing to calibrate
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()

    def interrupt(now: str, done: int, total: int) -> None:
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qcompiler.compile(digits.cnn, "cpu", x, output=tmp_path / "out", dims=ONE, progress=interrupt)
    assert os.listdir(tmp_path) == ["tmp"] and os.listdir(tmp_path / "tmp") == []


def test_an_existing_bundle_survives_a_failed_compile(digits, x, tmp_path: Path):
    bundle = qcompiler.compile(digits.cnn, "cpu", x, output=tmp_path / "out", dims=ONE)
    before = bundle.manifest
    with pytest.raises(BundleError, match="exists already"):
        qcompiler.compile(digits.cnn, "cpu", x, output=tmp_path / "out", dims=ONE)
    with pytest.raises(CalibrationError):
        qcompiler.compile(digits.cnn, "cpu", {"y": x["x"]}, output=tmp_path / "out", dims=ONE, overwrite=True)
    assert qcompiler.Bundle.open(tmp_path / "out").manifest == before
    again = qcompiler.compile(
        digits.cnn, "cpu", x, output=tmp_path / "out", dims=ONE, overwrite=True, options={"precision": "w4a8"}
    )
    assert again.manifest["files"] != before["files"] and os.listdir(tmp_path) == ["out"]


def test_the_package_tells_its_names_and_its_version():
    assert qcompiler.__version__.count(".") == 2
    for name in qcompiler.__all__:
        assert getattr(qcompiler, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        qcompiler.quantise  # noqa: B018
