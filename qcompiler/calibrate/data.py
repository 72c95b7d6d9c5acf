"""Calibration and evaluation data as a stream that can be read again."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.calibrate.preprocess import Preprocess, pillow
from qcompiler.errors import CalibrationError
from qcompiler.graph.model import Graph

Sample = dict[str, NDArray]
"""Input name -> array of the model's static shape."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp", ".gif", ".tif", ".tiff")
RANDOM_COUNT = 32


@dataclass(frozen=True)
class _Input:
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True, eq=False)
class Samples:
    """A re-iterable stream of samples; every iteration gives the same ones in the same order.

    source: where they come from, in words. digest: identifies the content, None when it cannot be known without
    reading everything (then statistics are not cached). count: how many, None when unknown.
    """

    source: str
    open: Callable[[], Iterator[Sample]]
    digest: str | None = None
    count: int | None = None

    def __iter__(self) -> Iterator[Sample]:
        return self.open()

    def __len__(self) -> int:
        if self.count is None:
            return sum(1 for _ in self)
        return self.count


def load_samples(
    spec: str | Path | Mapping[str, NDArray] | Iterable[Any],
    graph: Graph,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Samples:
    """Open calibration data for the inputs of `graph`.

    spec: `.npz` keyed by input name (other keys, such as labels, are not read) or `.npy` for a single input (first
    axis = samples), a directory of images, `module:function` (called with the Graph, gives an iterable of dicts or
    arrays), `random` (seeded standard normal; `random:uniform` for 0..1), a mapping input name -> array, or an
    iterable of dicts or arrays.
    preprocess: applied to every item of a single-input model; without it arrays are fed as stored.
    limit: read at most so many items. Leading dimension B > 1 of the model groups B items into a sample.
    Raises CalibrationError: missing file, missing or extra keys, shapes that do not fit, NaN or infinity, no samples.
    """
    if limit is not None and limit < 1:
        raise CalibrationError(f"at least one sample is needed, not {limit}.", where="samples")
    inputs = [_Input(v.name or "", graph.shape(v), v.dtype.numpy()) for v in graph.inputs if v.dtype is not None]
    if isinstance(spec, str | Path):
        source, items, count, digest = _open_text(str(spec), inputs, graph, seed)
    elif isinstance(spec, Mapping):
        arrays = {name: np.asarray(array) for name, array in spec.items()}
        source, (items, count) = "arrays", _open_arrays(arrays, inputs, "arrays")
        digest = digest_of(*(part for name in sorted(arrays) for part in (name, arrays[name])))
    else:
        if iter(spec) is spec:
            raise CalibrationError(
                "a generator can be read only once, calibration reads several times.",
                where="calibration data",
                hint="Pass a list, an object whose __iter__ starts anew, or `module:function`.",
            )
        source, items, count, digest = "iterable", lambda: iter(spec), None, None
    count = min(count, limit) if count is not None and limit is not None else count
    if count == 0:
        raise CalibrationError("there are no samples.", where=source)
    batch = _batch(inputs)
    if digest is not None:
        digest = digest_of(digest, json.dumps(preprocess.describe() if preprocess else None), str(limit))

    def stream() -> Iterator[Sample]:
        group: list[Sample] = []
        found = False
        for index, item in enumerate(items()):
            if limit is not None and index >= limit:
                break
            group.append(_conform(item, inputs, preprocess, f"{source}, sample {index}", batch))
            if len(group) == batch:
                found = True
                yield group[0] if batch == 1 else {k: np.concatenate([one[k] for one in group]) for k in group[0]}
                group = []
        if not found:
            raise CalibrationError(
                "there are no samples." if batch == 1 else f"fewer samples than the model's batch of {batch}.",
                where=source,
            )

    return Samples(source, stream, digest, None if count is None else count // batch)


def _batch(inputs: list[_Input]) -> int:
    """The leading dimension that all inputs share, else 1 (inputs then come whole)."""
    leading = {one.shape[0] if one.shape else 1 for one in inputs}
    return leading.pop() if len(leading) == 1 else 1


def _conform(item: Any, inputs: list[_Input], preprocess: Preprocess | None, where: str, batch: int) -> Sample:
    """One item -> arrays [1, ...] (or whole when the inputs' leading dimensions differ), checked."""
    if not isinstance(item, Mapping):
        if len(inputs) != 1:
            names = ", ".join(one.name for one in inputs)
            raise CalibrationError(f"the model has the inputs {names}, so a sample is a dict of them.", where=where)
        item = {inputs[0].name: item}
    _check_keys(item, inputs, where)
    sample = {}
    for one in inputs:
        array = np.asarray(item[one.name])
        if preprocess is not None and len(inputs) == 1:
            array = preprocess(array[0] if array.ndim == 4 and array.shape[0] == 1 else array)
        shape = (1, *one.shape[1:]) if batch > 1 else one.shape
        if array.shape == shape[1:] and shape[:1] == (1,):
            array = array[None]
        if array.shape != shape:
            raise CalibrationError(
                f"input `{one.name}` has shape {list(array.shape)}, the model expects {list(shape)}.",
                where=where,
                hint="" if preprocess else "Preprocessing keys (resize, crop, layout, ...) can change it.",
            )
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            raise CalibrationError(f"input `{one.name}` holds NaN or infinity.", where=where)
        sample[one.name] = np.ascontiguousarray(array, one.dtype)
    return sample


def _check_keys(found: Iterable[str], inputs: list[_Input], where: str) -> None:
    found, wanted = set(found), {one.name for one in inputs}
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing:
        also = f"; it has {', '.join(f'`{key}`' for key in extra)}, which the model does not read" if extra else ""
        raise CalibrationError(
            f"no data for the input {', '.join(f'`{key}`' for key in missing)}{also}.",
            where=where,
            hint=f"Keys are input names: {', '.join(one.name for one in inputs)}.",
        )
    if extra:
        raise CalibrationError(
            f"the model has no input {', '.join(f'`{key}`' for key in extra)}.",
            where=where,
            hint=f"Its inputs are {', '.join(one.name for one in inputs)}.",
        )


Opened = tuple[str, Callable[[], Iterator[Any]], "int | None", "str | None"]


def _open_text(spec: str, inputs: list[_Input], graph: Graph, seed: int) -> Opened:
    kind, _, variant = spec.partition(":")
    path = Path(spec)
    if kind == "random" and variant in ("", "normal", "uniform"):
        items = _random(inputs, seed, variant)
        return spec, items, RANDOM_COUNT * _batch(inputs), digest_of(spec, str(seed))
    if path.is_dir():
        return _open_images(path)
    if path.suffix in (".npz", ".npy"):
        return _open_numpy(path, inputs)
    if variant and not path.exists() and kind.replace(".", "").isidentifier():
        return _open_function(spec, kind, variant, graph)
    if not path.exists():
        raise CalibrationError("no such file or directory.", where=spec)
    raise CalibrationError(
        "this is not calibration data.",
        where=spec,
        hint="Pass .npz, .npy, a directory of images, module:function or random.",
    )


def _open_numpy(path: Path, inputs: list[_Input]) -> Opened:
    if not path.is_file():
        raise CalibrationError("no such file.", where=str(path))
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        # An npz member is decompressed once here and not once a sample.
        arrays = {key: loaded[key] for key in loaded.files} if path.suffix == ".npz" else None
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise CalibrationError(f"not a readable {path.suffix} file ({error}).", where=str(path)) from error
    except Exception as error:
        if type(error).__name__ != "BadZipFile":
            raise
        raise CalibrationError(f"not a readable .npz file ({error}).", where=str(path)) from error
    if arrays is None:
        if len(inputs) != 1:
            raise CalibrationError(
                f"an .npy file holds one array, the model has {len(inputs)} inputs.",
                where=str(path),
                hint=f"Save an .npz with the keys {', '.join(one.name for one in inputs)}.",
            )
        arrays = {inputs[0].name: loaded}
    unread = sorted(set(arrays) - {one.name for one in inputs})
    if len(arrays) - len(unread) == len(inputs):  # labels and the like may lie in the same file
        arrays = {one.name: arrays[one.name] for one in inputs}
    items, count = _open_arrays(arrays, inputs, str(path))
    source = str(path) + (f" (not read: {', '.join(f'`{key}`' for key in unread)})" if unread else "")
    return source, items, count, digest_of(path)


def _open_arrays(
    arrays: Mapping[str, NDArray], inputs: list[_Input], where: str
) -> tuple[Callable[[], Iterator[Sample]], int]:
    _check_keys(arrays, inputs, where)
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        text = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise CalibrationError(f"the arrays have different numbers of samples: {text}.", where=where)
    count = next(iter(counts.values()))
    return lambda: ({name: array[i] for name, array in arrays.items()} for i in range(count)), count


def _open_images(path: Path) -> Opened:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise CalibrationError(f"no images ({', '.join(IMAGE_SUFFIXES)}) in it.", where=str(path))
    module = pillow()

    def items() -> Iterator[NDArray]:
        for file in files:
            try:
                with module.open(file) as image:
                    yield np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
            except OSError as error:
                raise CalibrationError(f"not a readable image ({error}).", where=str(file)) from error

    return str(path), items, len(files), digest_of(*(part for file in files for part in (file.name, file)))


def _open_function(spec: str, module_name: str, name: str, graph: Graph) -> Opened:
    try:
        function = getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise CalibrationError(f"cannot import `{module_name}`: {error}.", where=spec) from error
    except AttributeError as error:
        raise CalibrationError(f"module `{module_name}` has no `{name}`.", where=spec) from error
    return spec, lambda: iter(function(graph)), None, None


def _random(inputs: list[_Input], seed: int, variant: str) -> Callable[[], Iterator[Sample]]:
    def items() -> Iterator[Sample]:
        rng = np.random.default_rng(seed)
        batch = _batch(inputs)
        for _ in range(RANDOM_COUNT * batch):
            sample = {}
            for one in inputs:
                shape = (1, *one.shape[1:]) if batch > 1 else one.shape
                if one.dtype.kind in "iub":
                    sample[one.name] = np.zeros(shape, one.dtype)
                elif variant == "uniform":
                    sample[one.name] = rng.random(shape, np.float32)
                else:
                    sample[one.name] = rng.standard_normal(shape, np.float32)
            yield sample

    return items


def digest_of(*parts: str | Path | NDArray) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with open(part, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        elif isinstance(part, str):
            digest.update(part.encode())
        else:
            digest.update(repr((part.shape, str(part.dtype))).encode() + np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
