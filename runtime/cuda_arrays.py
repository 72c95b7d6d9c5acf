"""Arrays on the card, as torch, cupy and others show them: __cuda_array_interface__ and DLPack, without a copy.

Copied into bundles beside cuda_loader.py.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_void_p
from importlib import import_module
from math import prod
from typing import Any

import numpy as np

_home = __package__ or ""
BundleLoadError = import_module(f"{_home}.loader" if _home else "loader").BundleLoadError


class DeviceArray:
    """An output on the card: torch.as_tensor(a, device="cuda") and cupy.asarray(a) take it without a copy.

    It is the session's memory: the next run writes it anew.
    """

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: np.dtype, stream: int, owner: Any) -> None:
        self.pointer, self.shape, self.dtype = pointer, shape, dtype
        self._owner = owner
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": dtype.str, "data": (pointer, False), "version": 3, "strides": None,
            "stream": stream or 1,
        }  # fmt: skip


def pointer_of(array: Any, wanted: tuple[int, ...], kind: np.dtype, where: str) -> tuple[int, Any]:
    """(address, what keeps it alive) of a dense array on the card. Raises BundleLoadError."""
    if hasattr(array, "__cuda_array_interface__"):
        about = array.__cuda_array_interface__
        shape, strides = tuple(about["shape"]), about.get("strides")
        dtype, pointer, owner = np.dtype(about["typestr"]), int(about["data"][0]), array
    elif hasattr(array, "__dlpack__"):
        pointer, shape, strides, dtype, owner = _from_dlpack(array, where)
    else:
        raise BundleLoadError(f"{where} is no array on the card. Call run for numpy arrays.")
    if shape != wanted:
        raise BundleLoadError(f"{where} has shape {shape}, not {wanted}.")
    if dtype != kind:
        raise BundleLoadError(f"{where} is {dtype}, not {kind}.")
    dense = tuple(prod(shape[d + 1 :]) * kind.itemsize for d in range(len(shape)))
    if strides is not None and any(e > 1 and s != w for e, s, w in zip(shape, strides, dense, strict=True)):
        raise BundleLoadError(f"{where} is not contiguous. Call .contiguous() first.")
    return pointer, owner


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p), ("device_type", c_int32), ("device_id", c_int32), ("ndim", c_int32),
        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


def _from_dlpack(array: Any, where: str) -> tuple[int, tuple[int, ...], tuple[int, ...] | None, np.dtype, Any]:
    """(address, shape, strides in bytes, dtype, owner) of an array that has __dlpack__."""
    capsule = array.__dlpack__()
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _DLTensor.from_address(get(capsule, b"dltensor"))
    if tensor.device_type != 2:
        raise BundleLoadError(f"{where} is not on a CUDA device. Call run for arrays of the host.")
    shape = tuple(tensor.shape[d] for d in range(tensor.ndim))
    kinds = {0: "i", 1: "u", 2: "f", 6: "b"}
    if tensor.code not in kinds or tensor.bits % 8:
        raise BundleLoadError(
            f"{where} has a type that numpy does not know (DLPack {tensor.code}, {tensor.bits} bits)."
        )
    dtype = np.dtype(f"{kinds[tensor.code]}{tensor.bits // 8}")
    strides = tuple(tensor.strides[d] * dtype.itemsize for d in range(tensor.ndim)) if tensor.strides else None
    return int(tensor.data or 0) + int(tensor.byte_offset), shape, strides, dtype, capsule
