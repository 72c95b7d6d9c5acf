"""Load and run a bundle of the target `cuda` with numpy and ctypes: the driver's own interface, no toolkit.

Copied into every such bundle beside loader.py, which opens it:

    from loader import load
    session = load("bundle")
    outputs = session.run({"x": array})          # numpy in, numpy out
    outputs = session.run_device({"x": tensor})  # arrays on the card (torch, cupy, ...), not copied; arrays out

The whole network is one CUDA graph, captured when it runs first with these addresses.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Mapping
from ctypes import c_int32, c_void_p
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

_home = __package__ or ""
loader = import_module(f"{_home}.loader" if _home else "loader")
driver_module = import_module(f"{_home}.cuda_driver" if _home else "cuda_driver")
arrays_module = import_module(f"{_home}.cuda_arrays" if _home else "cuda_arrays")
BundleLoadError = loader.BundleLoadError
DeviceArray, pointer_of = arrays_module.DeviceArray, arrays_module.pointer_of
GRAPHS = 8
"""Captured graphs that are kept, one for each set of addresses."""
EARLY = 90
"""The architecture from which on kernels may be made ready before the one before them ends."""
ALIGNMENT = 16
"""Bytes at whose multiples arrays on the card have to begin so that they are not copied."""


class CudaSession:
    """A loaded bundle on one device. `run`, `step`, `reset`, `self_test` and `close` as loader.Session has them.

    device: number of the card. driver: path of a library that stands in for libcuda. check: compare every file's
    sha256. early: where the card can (sm_90), make each kernel ready while the one before it runs. It saves a fifth of
    the time at batch 1, and is not the default: compilers read what is only read by loads that the language allows for
    memory that nobody writes meanwhile, though all bits were right wherever it was tried. Raises BundleLoadError.
    """

    def __init__(
        self, path: Any, *, device: int = 0, driver: str | None = None, check: bool = True, early: bool = False
    ) -> None:
        self.early = early
        self._lock = threading.Lock()
        self._open = False
        self._memory: list[int] = []
        self._graphs: dict[tuple[int, ...], int] = {}
        self.path = Path(path)
        self.manifest: dict[str, Any] = loader.read_manifest(path, check=check)
        try:
            facts: dict[str, Any] = self.manifest["cuda"]
            self._variants: list[dict[str, Any]] = facts["variants"]
            self._headers = [self.path / name for name in facts["headers"]]
            self.inputs: list[dict[str, Any]] = self.manifest["inputs"]
            self.outputs: list[dict[str, Any]] = self.manifest["outputs"]
            self._states = loader.state_places(self.inputs, self.outputs)
        except (KeyError, TypeError) as error:
            raise BundleLoadError(
                f"{path}: not a cuda bundle, or damaged ({error}). Compile the model again."
            ) from error
        try:
            self._start(device, driver)
            weights = np.fromfile(self.path / self._variant["weights"], np.uint8)
            self._places = {"weights": self._allocate(len(weights), "weights")}
            self._places["arena"] = self._allocate(int(self._variant["arena_bytes"]), "the arena")
            if counters := int(self._variant.get("counter_bytes", 0)):  # 0 now, and again after every kernel
                self._places["counters"] = self._allocate(counters, "counters")
                self.driver.call("cuMemsetD8Async", self._places["counters"], 0, counters, self.stream)
            self.driver.call(
                "cuMemcpyHtoDAsync_v2", self._places["weights"], weights.ctypes.data, len(weights), self.stream
            )
            self._in = [self._allocate(self._bytes(spec, True) + 256, "an input") for spec in self.inputs]
            self._out = [self._allocate(self._bytes(spec, False) + 256, "an output") for spec in self.outputs]
            self._spare = {i: self._allocate(self._bytes(self.inputs[i], True) + 256, "a state")
                           for i, _ in self._states}  # fmt: skip
            self.driver.call("cuStreamSynchronize", self.stream)
        except driver_module.CudaError as error:
            self.close()
            raise BundleLoadError(f"{path}: {error}. {self._advice(error)}") from error
        self._kept = {i: self._in[i] for i, _ in self._states}
        self._open = True
        self.reset()

    # -- opening -----------------------------------------------------------------------------------------------

    def _start(self, device: int, driver: str | None) -> None:
        self.driver = driver_module.Driver(driver)
        self._device, self.name, self.arch, shared = self.driver.device(device)
        self._context = self.driver.handle("cuDevicePrimaryCtxRetain", self._device)
        self.driver.call("cuCtxSetCurrent", self._context)
        self._variant = driver_module.variant_for(self._variants, self.arch, self.name)
        self.early = self.early and self.arch >= EARLY
        self.launches: list[dict[str, Any]] = json.loads((self.path / self._variant["launches"]).read_text())
        needed = max((int(launch["shared"]) for launch in self.launches), default=0)
        if needed > shared:
            raise driver_module.CudaError(
                f"{self.name} has {shared} bytes of shared memory, and a kernel needs {needed}"
            )
        if self.driver.has_kernels:
            self._image, self.code = b"-", "emulator"
        else:
            self._image, self.code = driver_module.code_for(self.path, self._variant, self._headers, self.arch)
        self._module = self.driver.handle("cuModuleLoadData", ctypes.cast(ctypes.c_char_p(self._image), c_void_p))
        self.stream = self.driver.handle("cuStreamCreate", 1)
        self._functions: dict[str, int] = {}
        for launch in self.launches:
            name = launch["kernel"]
            if name not in self._functions:
                self._functions[name] = self.driver.handle("cuModuleGetFunction", self._module, name.encode())
        most: dict[str, int] = {}
        for launch in self.launches:
            most[launch["kernel"]] = max(most.get(launch["kernel"], 0), int(launch["shared"]))
        for name, amount in most.items():
            if amount > 48 * 1024:
                self.driver.call("cuFuncSetAttribute", self._functions[name], driver_module.MAX_DYNAMIC_SHARED, amount)

    def _advice(self, error: Any) -> str:
        if error.code == driver_module.OUT_OF_MEMORY:
            return "Close other programs that use the card, or compile the model for a smaller batch."
        text = str(error)
        if "cubin" in text or "bundle is for" in text:
            return "Compile it with --arch of this card, or install NVRTC (pip install nvidia-cuda-nvrtc)."
        return "Check the driver with nvidia-smi."

    def _allocate(self, size: int, what: str) -> int:
        try:
            pointer = self.driver.handle("cuMemAlloc_v2", max(size, 1))
        except driver_module.CudaError as error:
            if error.code != driver_module.OUT_OF_MEMORY:
                raise
            free, total = self.driver.memory()
            raise driver_module.CudaError(
                f"{what} needs {size} bytes, and {self.name} has {free} of {total} free", error.code
            ) from error
        self._memory.append(int(pointer))
        return int(pointer)

    def _kind(self, spec: Mapping[str, Any]) -> np.dtype:
        """dtype of an input or output on the card: codes of states, else what the manifest says."""
        return np.dtype(loader.storage(spec["format"]) if "state" in spec else spec["dtype"])

    def _bytes(self, spec: Mapping[str, Any], _: bool) -> int:
        return prod(spec["shape"]) * self._kind(spec).itemsize

    # -- running -----------------------------------------------------------------------------------------------

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs in the order of the manifest, as new arrays. Raises BundleLoadError if inputs do not fit."""
        arrays = loader.checked(self.path, inputs, self._shapes(range(len(self.inputs))))
        results = [np.empty(spec["shape"], self._kind(spec)) for spec in self.outputs]
        for i, _ in self._states:
            arrays[i] = loader.quantize(arrays[i], self.inputs[i])
        with self._lock, self._errors():
            # States that `run` is given lie in the spare memory: those of `step` are left alone.
            pointers = [self._spare.get(i, pointer) for i, pointer in enumerate(self._in)]
            self._copy_in(arrays, pointers)
            self._play(pointers, self._out)
            self._copy_out(results, self._out)
        for _, o in self._states:
            results[o] = loader.dequantize(results[o], self.outputs[o])
        return results

    def reset(self) -> None:
        """Let all states be 0, as before the first step."""
        with self._lock, self._errors():
            for i, _ in self._states:
                spec = self.inputs[i]
                zeros = np.full(spec["shape"], spec["zero_point"], self._kind(spec))
                self.driver.call("cuMemcpyHtoDAsync_v2", self._kept[i], zeros.ctypes.data, zeros.nbytes, self.stream)
                self.driver.call("cuStreamSynchronize", self.stream)

    def step(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """One step: inputs without states, outputs without states. Raises BundleLoadError if inputs do not fit."""
        if not self._states:
            raise BundleLoadError(f"{self.path}: the bundle has no state. Call run, or compile with --state.")
        taken, made = {i for i, _ in self._states}, {o: i for i, o in self._states}
        free = [i for i in range(len(self.inputs)) if i not in taken]
        arrays = loader.checked(self.path, inputs, self._shapes(free))
        shown = [o for o in range(len(self.outputs)) if o not in made]
        results = [np.empty(self.outputs[o]["shape"], self._kind(self.outputs[o])) for o in shown]
        with self._lock, self._errors():
            sources = [self._kept.get(i, pointer) for i, pointer in enumerate(self._in)]
            targets = [self._spare[made[o]] if o in made else pointer for o, pointer in enumerate(self._out)]
            self._copy_in(arrays, [sources[i] for i in free])
            self._play(sources, targets)
            self._copy_out(results, [targets[o] for o in shown])
            self._kept, self._spare = self._spare, self._kept
        return results

    def run_device(self, inputs: Mapping[str, Any], stream: int = 0) -> list[Any]:
        """The same with arrays on the card (`__cuda_array_interface__` or DLPack), dense and of the declared dtype.

        They are read where they lie, on the session's stream once work on `stream` (0: the default stream) that was
        given before is done. Returns arrays on the card, written when this returns. Raises BundleLoadError.
        """
        if self._states:
            raise BundleLoadError(f"{self.path}: run_device is for bundles without state. Call run or step.")
        names = [spec["name"] for spec in self.inputs]
        if set(inputs) != set(names):
            raise BundleLoadError(f"{self.path}: the inputs are {', '.join(names)}; given: {', '.join(inputs)}.")
        with self._lock, self._errors():
            self.driver.call("cuStreamSynchronize", stream)
            pointers, kept = [], []
            for i, spec in enumerate(self.inputs):
                pointer, owner = pointer_of(
                    inputs[spec["name"]], tuple(spec["shape"]), self._kind(spec), f"{self.path}: input `{spec['name']}`"
                )
                kept.append(owner)
                if pointer % ALIGNMENT:
                    size = self._bytes(spec, True)
                    self.driver.call("cuMemcpyDtoDAsync_v2", self._in[i], pointer, size, self.stream)
                    pointer = self._in[i]
                pointers.append(pointer)
            self._play(pointers, self._out)
            self.driver.call("cuStreamSynchronize", self.stream)
        return [
            DeviceArray(pointer, tuple(spec["shape"]), self._kind(spec), self.stream, self)
            for pointer, spec in zip(self._out, self.outputs, strict=True)
        ]

    def _shapes(self, places: Any) -> list[tuple[str, tuple[int, ...], np.dtype]]:
        specs = [self.inputs[i] for i in places]
        return [(spec["name"], tuple(spec["shape"]), np.dtype(spec["dtype"])) for spec in specs]

    def _copy_in(self, arrays: list[np.ndarray], pointers: list[int]) -> None:
        for array, pointer in zip(arrays, pointers, strict=True):
            self.driver.call("cuMemcpyHtoDAsync_v2", pointer, array.ctypes.data, array.nbytes, self.stream)

    def _copy_out(self, arrays: list[np.ndarray], pointers: list[int]) -> None:
        for array, pointer in zip(arrays, pointers, strict=True):
            self.driver.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, pointer, array.nbytes, self.stream)
        self.driver.call("cuStreamSynchronize", self.stream)

    def _play(self, inputs: list[int], outputs: list[int]) -> None:
        """Launch the graph of these addresses."""
        self.driver.call("cuGraphLaunch", self.graph(inputs, outputs), self.stream)

    def graph(self, inputs: list[int] | None = None, outputs: list[int] | None = None) -> int:
        """The CUDA graph (an executable one) that reads and writes these addresses, by default the session's own."""
        inputs, outputs = inputs or self._in, outputs or self._out
        key = (*inputs, *outputs)
        if key not in self._graphs:
            self.driver.call("cuCtxSetCurrent", self._context)
            try:
                made = self._captured(inputs, outputs)
            except driver_module.CudaError:
                if not self.early:
                    raise
                self.early = False  # a driver that does not know such launches in graphs
                made = self._captured(inputs, outputs)
            if len(self._graphs) >= GRAPHS:
                self.driver.call("cuStreamSynchronize", self.stream)
                self.driver.call("cuGraphExecDestroy", self._graphs.pop(next(iter(self._graphs))))
            self._graphs[key] = made
        return self._graphs[key]

    def _captured(self, inputs: list[int], outputs: list[int]) -> int:
        self.driver.call("cuStreamBeginCapture_v2", self.stream, 2)  # relaxed
        try:
            for launch in self.launches:
                self.launch(launch, inputs, outputs)
        finally:
            graph = self.driver.handle_of_capture(self.stream)
        made = self.driver.handle("cuGraphInstantiateWithFlags", graph, 0)
        self.driver.call("cuGraphDestroy", graph)
        return made

    def launch(
        self, launch: Mapping[str, Any], inputs: list[int] | None = None, outputs: list[int] | None = None
    ) -> None:
        """One kernel of the list, on the session's stream."""
        inputs, outputs = inputs or self._in, outputs or self._out
        values: list[Any] = []
        for argument in launch["arguments"]:
            if isinstance(argument, int):
                values.append(c_int32(argument))
            elif argument[0] in self._places:
                values.append(c_void_p(self._places[argument[0]] + argument[1]))
            else:
                group = inputs if argument[0] == "input" else outputs
                values.append(c_void_p(group[argument[1]] + argument[2]))
        pointers = (c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self.driver.launch(
            self._functions[launch["kernel"]], launch["grid"], launch["threads"], launch["shared"], self.stream,
            pointers, self.early,
        )  # fmt: skip

    def _errors(self) -> Any:
        if not self._open:
            raise BundleLoadError(f"{self.path}: the session is closed.")
        return _Errors(self.path, self.driver, self._context)

    def self_test(self) -> None:
        """Run the sample that was packed with the bundle. Raises BundleLoadError unless every bit is right."""
        loader.self_test(self)

    def close(self) -> None:
        """Give all memory back. More calls do nothing."""
        with self._lock:
            self._open = False
            if not hasattr(self, "driver") or not hasattr(self, "_context"):
                return
            try:
                self.driver.call("cuCtxSetCurrent", self._context)
                for made in self._graphs.values():
                    self.driver.call("cuGraphExecDestroy", made)
                for pointer in self._memory:
                    self.driver.call("cuMemFree_v2", pointer)
                if hasattr(self, "_module"):
                    self.driver.call("cuModuleUnload", self._module)
                self.driver.call("cuDevicePrimaryCtxRelease_v2", self._device)
            except driver_module.CudaError:
                pass  # after an error of the card nothing can be given back; the driver does it when the process ends
            finally:
                self._graphs, self._memory = {}, []
                del self._context

    def __enter__(self) -> CudaSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.close()


class _Errors:
    """Makes the context current, and the driver's errors the bundle's."""

    def __init__(self, path: Path, driver: Any, context: int) -> None:
        self.path, self.driver, self.context = path, driver, context

    def __enter__(self) -> None:
        self.driver.call("cuCtxSetCurrent", self.context)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, driver_module.CudaError):
            raise BundleLoadError(f"{self.path}: {error}. Open the bundle again.") from error
