"""Bundles: whole or not at all, equal byte for byte, and honest about damage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from qcompiler.bundle import Bundle, report_files, write_bundle
from qcompiler.driver import compile
from qcompiler.errors import BundleError
from qcompiler.runtime import load

FILES = {"a.bin": b"1", "lib/b.bin": b"22", "lib/deep/c.bin": b""}
REPORT = {"report.json": b"{}", "report.html": b"<html>"}
MANIFEST = {"schema": 1, "files": {}}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


class Failing:
    """Lets n-1 calls of the patched functions pass and fails the n-th."""

    def __init__(self, error: BaseException, at: int) -> None:
        self.error, self.left = error, at

    def wrap(self, function: Callable) -> Callable:
        def call(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                raise self.error
            return function(*args, **kwargs)

        return call

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Path, "write_bytes", self.wrap(Path.write_bytes))
        monkeypatch.setattr(Path, "mkdir", self.wrap(Path.mkdir))
        monkeypatch.setattr(Path, "chmod", self.wrap(Path.chmod))
        monkeypatch.setattr(os, "rename", self.wrap(os.rename))


@pytest.mark.parametrize("old", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_when_any_write_fails_there_is_the_old_bundle_or_none(tmp_path: Path, monkeypatch, error, old: bool):
    out = tmp_path / "out"
    if old:
        write_bundle(out, {"old": b"x"}, MANIFEST, overwrite=False)
    before = tree(tmp_path)
    for at in range(1, 100):
        failing = Failing(error, at)
        with monkeypatch.context() as patched:
            failing.patch(patched)
            try:
                write_bundle(out, FILES, MANIFEST, overwrite=old, report=REPORT)
            except (BundleError, KeyboardInterrupt) as raised:
                if isinstance(error, OSError):
                    assert "No space left on device" in str(raised) and str(out) in str(raised)
            else:
                break
        assert tree(tmp_path) == before and os.listdir(tmp_path) == (["out"] if old else [])
    assert at > 8, "not every write was failed"
    assert set(tree(out)) == {*FILES, *REPORT, "manifest.json"} and os.listdir(tmp_path) == ["out"]


def test_a_bundle_is_readable_for_others_and_holds_nothing_old(tmp_path: Path):
    out = tmp_path / "out"
    write_bundle(out, {"old": b"x"}, MANIFEST, overwrite=False)
    write_bundle(out, FILES, MANIFEST, overwrite=True)
    assert out.stat().st_mode & 0o777 == 0o755
    assert "old" not in tree(out)


def test_what_may_not_be_written_to(tmp_path: Path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_bytes(b"mine")
    folder.mkdir()
    (folder / "mine").write_bytes(b"mine")
    before = tree(tmp_path)
    for path in (file, folder):
        with pytest.raises(BundleError, match="exists already.*--overwrite"):
            write_bundle(path, FILES, MANIFEST, overwrite=False)
        with pytest.raises(BundleError, match="is no bundle, so it is not overwritten"):
            write_bundle(path, FILES, MANIFEST, overwrite=True)
    with pytest.raises(BundleError, match="`.*nowhere` does not exist"):
        write_bundle(tmp_path / "nowhere" / "out", FILES, MANIFEST, overwrite=False)
    with pytest.raises(BundleError, match="`.*file` does not exist"):
        write_bundle(file / "out", FILES, MANIFEST, overwrite=False)
    assert tree(tmp_path) == before


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)  # root may write anywhere
    with pytest.raises(BundleError, match="is not writable"):
        write_bundle(tmp_path / "out", FILES, MANIFEST, overwrite=False)
    assert os.listdir(tmp_path) == []


def test_a_link_to_a_bundle_is_replaced_and_its_target_kept(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    write_bundle(tmp_path / "elsewhere" / "real", {"old": b"x"}, MANIFEST, overwrite=False)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "real")
    write_bundle(tmp_path / "link", FILES, MANIFEST, overwrite=True)
    assert set(tree(tmp_path / "link")) == {*FILES, "manifest.json"}
    assert "old" in tree(tmp_path / "elsewhere" / "real") and sorted(os.listdir(tmp_path)) == ["elsewhere", "link"]


def test_report_is_text_for_machines_and_people():
    files = report_files({"a": "ü"}, "<p>ü")
    assert files == {"report.json": '{\n "a": "ü"\n}\n'.encode(), "report.html": "<p>ü".encode()}


def test_two_compiles_are_equal_byte_for_byte(
    digits, digits_data: Path, digits_bundle: Path, tmp_path: Path, monkeypatch
):
    """From elsewhere, from a ModelProto, without the cache of statistics."""
    monkeypatch.setenv("QCOMPILER_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    again = compile(onnx.load(digits.cnn), calibration=digits_data / "calib.npz", dims={"N": 1})
    assert again.path == Path("model.cpu")
    first, second = tree(digits_bundle), tree(again.path)
    assert first.keys() == second.keys()
    different = {name for name in first if first[name] != second[name]}
    assert different == {"report.json", "report.html"}


def test_the_manifest_says_what_a_reader_needs(digits_bundle: Path):
    manifest = Bundle.open(digits_bundle).manifest
    assert manifest["schema"] == 1 and manifest["target"] == "cpu" and manifest["arithmetic"] == "float"
    (x,), (y,) = manifest["inputs"], manifest["outputs"]
    assert (x["name"], x["shape"], x["dtype"]) == ("x", [1, 1, 8, 8], "float32")
    assert (y["name"], y["shape"], y["dtype"]) == ("logits", [1, 10], "float32")
    assert x["format"] == y["format"] == "uint8" and x["scale"] > 0 and isinstance(x["zero_point"], int)
    assert {"weight_bytes", "arena_bytes", "arena_lower_bound"} <= manifest["size"].keys()
    assert {"qcompiler", "apache-tvm", "onnx", "numpy"} <= manifest["versions"].keys()
    listed = set(manifest["files"]) | {"manifest.json", "report.json", "report.html"}
    assert listed == set(tree(digits_bundle))
    assert manifest["self_test"] in manifest["files"]


def test_damage_is_a_bundle_error_that_names_the_file(digits_bundle: Path, tmp_path: Path):
    copy = Path(shutil.copytree(digits_bundle, tmp_path / "copy"))
    (copy / "qdq.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="`qdq.onnx` is damaged"):
        Bundle.open(copy)
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(tmp_path)


def test_a_bundle_opens_runs_and_tests_itself(digits, digits_bundle: Path):
    bundle = Bundle.open(digits_bundle)
    assert bundle.target == "cpu"
    with bundle.load(threads=2) as session, load(digits_bundle) as plain:
        session.self_test()
        x = {"x": digits.data["x_test"][:1]}
        assert session.run(x)[0].tobytes() == plain.run(x)[0].tobytes()
    assert bundle.integer_graph().nodes() and bundle.qdq_graph().nodes("QuantizeLinear")
    assert bundle.report()["bundle"] == str(digits_bundle)
