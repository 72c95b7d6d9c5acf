"""The CUDA driver's interface, as far as bundles need it, by ctypes: no package, no toolkit, only the driver.

Copied into bundles beside cuda_loader.py. Another library with the same functions can stand in for libcuda (the
emulator of qcompiler's cuda target does).
"""

from __future__ import annotations

import ctypes
import glob
import os
import site
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any

SHARED_OPTIN = 97
"""CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN."""
MAJOR, MINOR = 75, 76
MAX_DYNAMIC_SHARED = 8
OUT_OF_MEMORY = 2


class CudaError(Exception):
    """What the driver or NVRTC said. `code`: its number."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


_ARGUMENTS: dict[str, list[Any]] = {
    "cuInit": [c_uint],
    "cuDriverGetVersion": [c_void_p],
    "cuDeviceGetCount": [c_void_p],
    "cuDeviceGet": [c_void_p, c_int],
    "cuDeviceGetName": [c_char_p, c_int, c_int],
    "cuDeviceGetAttribute": [c_void_p, c_int, c_int],
    "cuDevicePrimaryCtxRetain": [c_void_p, c_int],
    "cuDevicePrimaryCtxRelease_v2": [c_int],
    "cuCtxSetCurrent": [c_void_p],
    "cuMemGetInfo_v2": [c_void_p, c_void_p],
    "cuMemAlloc_v2": [c_void_p, c_size_t],
    "cuMemFree_v2": [c_void_p],
    "cuMemHostAlloc": [c_void_p, c_size_t, c_uint],
    "cuMemFreeHost": [c_void_p],
    "cuMemcpyHtoDAsync_v2": [c_void_p, c_void_p, c_size_t, c_void_p],
    "cuMemcpyDtoHAsync_v2": [c_void_p, c_void_p, c_size_t, c_void_p],
    "cuMemcpyDtoDAsync_v2": [c_void_p, c_void_p, c_size_t, c_void_p],
    "cuMemsetD8Async": [c_void_p, ctypes.c_ubyte, c_size_t, c_void_p],
    "cuStreamCreate": [c_void_p, c_uint],
    "cuStreamDestroy_v2": [c_void_p],
    "cuStreamSynchronize": [c_void_p],
    "cuStreamBeginCapture_v2": [c_void_p, c_int],
    "cuStreamEndCapture": [c_void_p, c_void_p],
    "cuModuleLoadData": [c_void_p, c_void_p],
    "cuModuleUnload": [c_void_p],
    "cuModuleGetFunction": [c_void_p, c_void_p, c_char_p],
    "cuFuncSetAttribute": [c_void_p, c_int, c_int],
    "cuLaunchKernel": [c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p],
    "cuLaunchKernelEx": [c_void_p, c_void_p, c_void_p, c_void_p],
    "cuGraphInstantiateWithFlags": [c_void_p, c_void_p, c_ulonglong],
    "cuGraphLaunch": [c_void_p, c_void_p],
    "cuGraphDestroy": [c_void_p],
    "cuGraphExecDestroy": [c_void_p],
    "cuEventCreate": [c_void_p, c_uint],
    "cuEventRecord": [c_void_p, c_void_p],
    "cuEventSynchronize": [c_void_p],
    "cuEventElapsedTime": [c_void_p, c_void_p, c_void_p],
    "cuEventDestroy_v2": [c_void_p],
    "cuGetErrorName": [c_int, c_void_p],
    "cuGetErrorString": [c_int, c_void_p],
}


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: a number and, at its eighth byte, a value."""

    _fields_ = [("id", c_int), ("pad", c_int), ("value", c_int * 16)]


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint), ("stream", c_void_p),
        ("attributes", c_void_p), ("count", c_uint),
    ]  # fmt: skip


PROGRAMMATIC = LaunchAttribute(6, 0, (1,))
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION: the kernel waits itself for those before it."""


class Driver:
    """libcuda, or the library at `path`. Methods raise CudaError with the driver's words."""

    def __init__(self, path: str | None = None) -> None:
        names = [path] if path else ["libcuda.so.1", "libcuda.so", "nvcuda.dll"]
        self._library = _first(names)
        if self._library is None:
            raise CudaError("no CUDA driver is installed (libcuda.so.1 is not found)")
        for name, arguments in _ARGUMENTS.items():
            try:
                getattr(self._library, name).argtypes = arguments
            except AttributeError as error:
                raise CudaError(f"the CUDA driver is too old: it has no {name}; 12.0 or newer is needed") from error
        self.has_kernels = hasattr(self._library, "qc_has_kernels")
        """Whether kernels are in the library itself, which is then no driver but its stand-in."""
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """One function, by its name in the driver's manual."""
        code = getattr(self._library, name)(*arguments)
        if code:
            raise CudaError(f"{name}: {self._text('cuGetErrorString', code)} ({code})", code)

    def _text(self, name: str, code: int) -> str:
        found = c_char_p()
        failed = getattr(self._library, name)(code, byref(found))
        return "an unknown error" if failed or found.value is None else found.value.decode(errors="replace")

    def launch(
        self, function: int, grid: Sequence[int], threads: int, shared: int, stream: int, arguments: Any, early: bool
    ) -> None:
        """A kernel. early: it may begin before those before it end, for which it waits itself."""
        if not early:
            self.call("cuLaunchKernel", function, *grid, threads, 1, 1, shared, stream, arguments, None)
            return
        attributes = c_void_p(ctypes.addressof(PROGRAMMATIC))
        config = LaunchConfig((c_uint * 3)(*grid), (c_uint * 3)(threads, 1, 1), shared, stream, attributes, 1)
        self.call("cuLaunchKernelEx", byref(config), function, arguments, None)

    # -- devices -----------------------------------------------------------------------------------------------

    def device(self, ordinal: int) -> tuple[int, str, int, int]:
        """(handle, name, architecture as 10 * major + minor, most shared memory of a block)."""
        count, handle, name = c_int(), c_int(), ctypes.create_string_buffer(128)
        self.call("cuDeviceGetCount", byref(count))
        if not 0 <= ordinal < count.value:
            raise CudaError(f"there is no CUDA device {ordinal}: this machine has {count.value}")
        self.call("cuDeviceGet", byref(handle), ordinal)
        self.call("cuDeviceGetName", name, len(name), handle)
        major, minor, shared = (self._attribute(a, handle.value) for a in (MAJOR, MINOR, SHARED_OPTIN))
        return handle.value, name.value.decode(errors="replace"), 10 * major + minor, shared

    def _attribute(self, attribute: int, device: int) -> int:
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), attribute, device)
        return value.value

    def handle(self, name: str, *arguments: Any) -> int:
        """What a function puts into its first argument: a context, stream, module, address, ..."""
        found = c_void_p()
        self.call(name, byref(found), *arguments)
        return found.value or 0

    def handle_of_capture(self, stream: int) -> int:
        """The graph that was captured on a stream."""
        found = c_void_p()
        self.call("cuStreamEndCapture", stream, byref(found))
        return found.value or 0

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the current device."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def milliseconds(self, start: int, end: int) -> float:
        """Between two recorded events."""
        found = c_float()
        self.call("cuEventElapsedTime", byref(found), start, end)
        return found.value


def _first(names: Sequence[str]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _nvrtc_names() -> list[str]:
    """Where NVRTC may be: beside the system's libraries, or in the packages that pip installs."""
    versions = ("13", "12", "11.2")
    names = [f"libnvrtc.so.{version}" for version in versions]
    roots = [*site.getsitepackages(), site.getusersitepackages()]
    for root in roots:
        names += sorted(glob.glob(os.path.join(root, "nvidia", "*", "lib", "libnvrtc.so.*")))
    names += sorted(glob.glob("/usr/local/cuda*/lib64/libnvrtc.so.*"))
    return [name for name in names if "builtins" not in name]


def _nvrtc() -> ctypes.CDLL | None:
    for name in _nvrtc_names():
        # NVRTC looks for its builtins by name alone, so outside the system's folders they have to be there already.
        for builtins in sorted(glob.glob(os.path.join(os.path.dirname(name), "libnvrtc-builtins.so.*"))):
            if os.path.isabs(builtins):
                _first([builtins])
        if (library := _first([name])) is not None:
            return library
    return None


def nvrtc_compile(source: str, headers: dict[str, str], arch: str) -> bytes:
    """A cubin for `arch`, such as sm_80. Raises CudaError, with the compiler's words where it fails."""
    library = _nvrtc()
    if library is None:
        raise CudaError("NVRTC is not installed (libnvrtc.so is not found)")
    program = c_void_p()
    texts = (c_char_p * len(headers))(*(text.encode() for text in headers.values()))
    names = (c_char_p * len(headers))(*(name.encode() for name in headers))
    if library.nvrtcCreateProgram(byref(program), source.encode(), b"kernels.cu", len(headers), texts, names):
        raise CudaError("NVRTC could not begin")
    try:
        options = [f"--gpu-architecture={arch}", "--fmad=false", "-std=c++17", "-default-device"]
        spelled = (c_char_p * len(options))(*(option.encode() for option in options))
        failed = library.nvrtcCompileProgram(program, len(options), spelled)
        size = c_size_t()
        if failed:
            library.nvrtcGetProgramLogSize(program, byref(size))
            log = ctypes.create_string_buffer(max(size.value, 1))
            library.nvrtcGetProgramLog(program, log)
            raise CudaError(f"NVRTC does not compile for {arch}: {log.value.decode(errors='replace')[:600]}")
        library.nvrtcGetCUBINSize(program, byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        library.nvrtcGetCUBIN(program, cubin)
        return cubin.raw
    finally:
        library.nvrtcDestroyProgram(byref(program))


def variant_for(variants: Sequence[dict[str, Any]], arch: int, card: str) -> dict[str, Any]:
    """The newest variant of a bundle that the card runs. Raises CudaError."""
    found = [v for v in variants if (arch == v["arch"] if v["only"] else arch >= v["arch"])]
    if not found:
        have = ", ".join(f"{v['level']}{'' if v['only'] else ' and newer'}" for v in variants)
        raise CudaError(f"{card} is sm_{arch}, and the bundle is for {have}")
    return found[-1]


def code_for(bundle: Path, variant: dict[str, Any], headers: Sequence[Path], arch: int) -> tuple[bytes, str]:
    """The cubin of the newest architecture that the card runs, else one that NVRTC makes now; and what it is. Raises
    CudaError."""
    cubins = variant["cubins"]
    own = {int(name.strip("sm_a")): name for name in cubins}
    fitting = [one for one in own if one // 10 == arch // 10 and one <= arch]
    if fitting:
        name = own[max(fitting)]
        return (bundle / cubins[name]).read_bytes(), f"cubin {name}"
    source = (bundle / variant["source"]).read_text()
    full = f"sm_{arch}{'a' if variant['only'] else ''}"
    try:
        return nvrtc_compile(source, {path.name: path.read_text() for path in headers}, full), f"NVRTC {full}"
    except CudaError as error:
        raise CudaError(
            f"no cubin fits sm_{arch} (there are: {', '.join(cubins) or 'none'}), and {error}"
        ) from error
