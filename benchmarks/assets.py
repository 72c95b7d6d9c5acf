"""The networks that the benchmarks run on: models, calibration and test arrays, preprocessed.

Most come from the folder of shared test assets (QCOMPILER_ASSETS, or ../shared/assets beside the repository), whose
manifest.json says how each data file is preprocessed. The digits CNN is committed; PP-OCR's classifier is the demo's.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
CALIBRATION = 256
CALIBRATION_LARGE = 64
"""Calibration samples: of 224 x 224 pictures there are fewer."""

GOALS: dict[str, tuple[str, float]] = {
    "mlperf_tiny_kws": ("loss", 0.010),
    "mlperf_tiny_ad": ("none", 0.0),
    "mlperf_tiny_resnet8": ("loss", 0.010),
    "mlperf_tiny_resnet8 (jpeg set)": ("loss", 0.010),
    "resnet20_cifar10_jpeg": ("loss", 0.005),
    "resnet20_cifar10": ("none", 0.0),
    "mobilenetv2_cifar10_jpeg": ("loss", 0.005),
    "mlperf_tiny_vww": ("none", 0.0),
    "espcn_x2 (super-resolution)": ("loss", 0.3),
    "mobilenet_v1_025_224 (ImageNet)": ("least", 0.570),
    "mobilenet_v2_100_224 (ImageNet)": ("least", 0.800),
    "vit_digits": ("loss", 0.010),
    "vit_hybrid_cifar10_jpeg": ("loss", 0.005),
    "ddpm_digits": ("loss", 0.002),
    "stories260k_prefill": ("most", 5.50),
}
"""Evaluation of the assets' manifest -> what W8A8 must hold: largest loss against float, least or largest value."""


@dataclass(frozen=True, eq=False)
class Case:
    """One network with its data. Arrays are [n, ...] as the model takes them, read when first asked for."""

    name: str
    model: Path
    entry: Mapping[str, Any]
    goal: tuple[str, float] = ("none", 0.0)
    draw: tuple[int, int] | None = None
    """(seed, count): calibrate on a random draw from the whole pool instead of on its first samples."""

    @property
    def metric(self) -> str:
        """top1, psnr or spearman (more is better), mse (against the input), mse_to_float or perplexity (less is
        better), agreement (with float)."""
        names = {"mse_to_input": "mse", "mean_max": "agreement", "mse_to_target": "mse_to_float"}
        return names.get(self.entry["metric"], self.entry["metric"])

    @property
    def rises(self) -> bool:
        """Whether less is better."""
        return self.metric in ("mse", "mse_to_float", "perplexity")

    @cached_property
    def inputs(self) -> list[str]:
        """Names of the model's inputs."""
        import onnx

        graph = onnx.load(self.model, load_external_data=False).graph
        constants = {tensor.name for tensor in graph.initializer}
        return [str(value.name) for value in graph.input if value.name not in constants]

    @property
    def input(self) -> str:
        """Name of the model's first input."""
        return self.inputs[0]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Static input shapes, batch 1."""
        return {name: (1, *array.shape[1:]) for name, array in self.feed("calib").items()}

    def feed(self, split: str) -> dict[str, NDArray]:
        """Arrays of all inputs by name: `calib` or `test`."""
        first = self.calibration if split == "calib" else self.test
        if len(self.inputs) == 1:
            return {self.input: first}
        if "others" in self.entry:
            return dict(zip(self.inputs, (first, *self.entry["others"](first)), strict=True))
        with np.load(find_assets() / self.entry["data"]) as stored:
            extra = stored[f"extra_{self.entry['split'] if split == 'test' else split}"]
        if split == "calib" and self.draw is not None:
            extra = extra[self._drawn(len(extra))]
        extra = extra[: len(first)]
        return dict(zip(self.inputs, (first, extra), strict=True))

    @cached_property
    def calibration(self) -> NDArray[np.float32]:
        """Calibration samples."""
        return self._arrays("calib")[0]

    @cached_property
    def test(self) -> NDArray[np.float32]:
        """Test samples."""
        return self._arrays("test")[0]

    @cached_property
    def labels(self) -> NDArray | None:
        """int64 [n], or what the outputs are compared with."""
        return self._arrays("test")[1]

    def score(self, outputs: NDArray, float_outputs: NDArray) -> float:
        """The metric of first outputs [n, ...]."""
        from qcompiler.evaluate import metric

        if self.metric == "mse_to_float":
            return metric("mse", outputs, float_outputs)
        if self.metric == "perplexity":
            return perplexity(outputs, self.test[: len(outputs)])
        if self.metric == "spearman":
            return spearman(outputs, self.labels)
        if self.metric == "agreement":
            return metric("top1", outputs, float_outputs)
        reference = self.test[: len(outputs)] if self.metric == "mse" else self.labels
        return metric(self.metric, outputs, reference)

    def _drawn(self, pool: int) -> NDArray[np.int64]:
        """Indices of the draw, in order; of a small pool, nine tenths at most, so that seeds differ."""
        assert self.draw is not None
        seed, count = self.draw
        count = min(count, max(1, pool * 9 // 10))
        return np.sort(np.random.default_rng(seed).permutation(pool)[:count])

    def _arrays(self, split: str) -> tuple[NDArray, NDArray | None]:
        if "arrays" in self.entry:
            return self.entry["arrays"](split)  # type: ignore[no-any-return]
        data = find_assets() / self.entry["data"]
        x, labels = _read(data, self.entry["split"] if split == "test" else split)
        if split == "calib" and self.draw is None:
            x = x[: CALIBRATION_LARGE if data.stem == "imagenet224" else CALIBRATION]
        elif split == "calib":
            x = x[self._drawn(len(x))]
        return _preprocess(x, self.entry["preprocess"]), labels


def perplexity(logits: NDArray, ids: NDArray) -> float:
    """exp of the mean negative log-likelihood of each next token. logits: [n, T, V]; ids: [n, T]."""
    z = logits[:, :-1].astype(np.float64)
    z -= z.max(-1, keepdims=True)
    likelihood = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return float(np.exp(-np.take_along_axis(likelihood, ids[:, 1:, None], -1).mean()))


def spearman(embeddings: NDArray, scores: NDArray | None) -> float:
    """Rank correlation of the cosines of pairs, rows 2i and 2i + 1, with their scores."""
    from scipy.stats import spearmanr

    assert scores is not None
    pairs = embeddings.reshape(len(embeddings) // 2, 2, -1)
    return float(spearmanr((pairs[:, 0] * pairs[:, 1]).sum(1), scores[: len(pairs)]).statistic)


def find_assets() -> Path:
    """The folder of shared assets; exits with a message when there is none."""
    folder = Path(os.environ.get("QCOMPILER_ASSETS") or ROOT.parent / "shared" / "assets")
    if not (folder / "manifest.json").is_file():
        sys.exit("there are no test assets in ../shared/assets; set QCOMPILER_ASSETS")
    return folder


def cases(only: str = "") -> Iterator[Case]:
    """Cases whose name contains one of the comma-separated parts `only`, roughly from small to large."""
    assets = find_assets()
    entries = {entry["name"]: entry for entry in json.loads((assets / "manifest.json").read_text())["evaluations"]}
    makers: dict[str, Callable[[], Case]] = {"digits cnn": _digits, "PP-OCR cls": _classifier}
    if (assets / "models" / "minilm_l6_v2.onnx").is_file():  # made by fetch_minilm.py of the assets
        makers["MiniLM"] = _minilm
    for name in (*makers, *GOALS):
        if only and not any(part and part in name for part in only.split(",")):
            continue
        if name in makers:
            yield makers[name]()
        else:
            yield Case(name, assets / entries[name]["model"], entries[name], GOALS[name])


def networks(only: str = "") -> Iterator[Case]:
    """As `cases`, one a model."""
    seen = set()
    for case in cases(only):
        if case.model not in seen:
            seen.add(case.model)
            yield case


def arguments(description: str | None, **more: Mapping[str, Any]) -> argparse.Namespace:
    """The command line that all benchmarks share, and `more` options by name."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--only", default="", help="parts of names of networks, separated by commas")
    parser.add_argument("--json", type=Path, default=None, help="write the rows to this file")
    for name, options in more.items():
        parser.add_argument(f"--{name}", **options)
    return parser.parse_args()


def write_json(path: Path | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the machine and the day, if a file was asked for."""
    if path is not None:
        head = {"machine": machine(), "date": date.today().isoformat(), "arguments": sys.argv[1:]}
        path.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


def machine() -> str:
    """Processor, the instruction sets that matter here, and how many cores."""
    from qcompiler.runtime.loader import cpu_flags

    model = platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    flags = [flag for flag in ("avx2", "avx_vnni", "avx512_vnni", "avx512vbmi") if flag in cpu_flags()]
    return f"{model} ({', '.join(flags)}), {os.cpu_count()} cores"


def _read(path: Path, split: str) -> tuple[NDArray, NDArray | None]:
    """Stored inputs and labels (or target pictures as float32 NCHW in 0..1) of one split."""
    with np.load(path) as stored:
        if f"jpeg_{split}" in stored:
            from PIL import Image

            blob, edges = stored[f"jpeg_{split}"], stored[f"offset_{split}"]
            pictures = [io.BytesIO(blob[a:b].tobytes()) for a, b in zip(edges[:-1], edges[1:], strict=True)]
            x = np.stack([np.asarray(Image.open(picture).convert("RGB")) for picture in pictures])
        else:
            x = stored[f"x_{split}" if f"x_{split}" in stored else f"ids_{split}"]
        if "zero_point" in stored:  # kept as codes
            x = (x.astype(np.float32) - np.float32(stored["zero_point"])) * np.float32(stored["scale"])
        if f"y_{split}" in stored:
            return x, stored[f"y_{split}"].astype(np.int64)
        if f"t_{split}" in stored and stored[f"t_{split}"].dtype == np.uint8:
            return x, stored[f"t_{split}"].transpose(0, 3, 1, 2).astype(np.float32) / 255
    return x, None


def _preprocess(x: NDArray, how: Mapping[str, Any]) -> NDArray[np.float32]:
    """What the manifest's preprocessing entry says. x: [n, ...], pictures NHWC."""
    if how["kind"] in ("float", "tokens"):
        return x.astype(np.float32 if how["kind"] == "float" else np.int64)
    if "resize" in how:
        from PIL import Image

        side = (how["resize"], how["resize"])
        x = np.stack([np.asarray(Image.fromarray(one).resize(side, Image.Resampling.BILINEAR)) for one in x])
    scaled = x.astype(np.float32) / np.float32(how.get("divide", 1))
    if "mean" in how:
        scaled = (scaled - np.asarray(how["mean"], np.float32)) / np.asarray(how["std"], np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)) if how["layout"] == "NCHW" else scaled


def _digits() -> Case:
    folder = ROOT / "examples" / "digits"

    def arrays(split: str) -> tuple[NDArray, NDArray]:
        with np.load(folder / "digits.npz") as stored:
            return stored[f"x_{split}"], stored[f"y_{split}"]

    return Case("digits cnn", folder / "cnn.onnx", {"metric": "top1", "arrays": arrays})


def _minilm() -> Case:
    assets = find_assets()

    def arrays(split: str) -> tuple[NDArray, NDArray | None]:
        with np.load(assets / "data" / "stsb_tokens.npz") as stored:
            if split == "calib":
                return stored["ids_calib"][:CALIBRATION_LARGE].astype(np.int64), None
            both = np.stack([stored["ids_test_a"], stored["ids_test_b"]], axis=1)
            return both.reshape(-1, both.shape[-1]).astype(np.int64), stored["score_test"]

    entry = {"metric": "spearman", "arrays": arrays, "others": lambda ids: [(ids > 0).astype(np.float32)]}
    return Case("MiniLM", assets / "models" / "minilm_l6_v2.onnx", entry, ("loss", 0.005))


def _classifier() -> Case:
    from examples.ocr.classify import CALIBRATION, CALIBRATION_SEED, TEST, TEST_SEED, WIDTH
    from examples.ocr.lines import turned
    from examples.ocr.model import DownloadError, fetch

    def arrays(split: str) -> tuple[NDArray, NDArray]:
        return turned(CALIBRATION, CALIBRATION_SEED, WIDTH) if split == "calib" else turned(TEST, TEST_SEED, WIDTH)

    try:
        path = fetch("cls")
    except DownloadError as error:
        sys.exit(str(error))
    return Case("PP-OCR cls", path, {"metric": "top1", "arrays": arrays}, ("loss", 0.005))
