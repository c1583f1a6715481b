"""amdanet for Python: fuses NumPy pictures and labels every pixel.

    network = amdanet.Network("network.safetensors")
    fused, labels = network.run(visible, infrared)

Needs NumPy and the C library (`scripts/install`). AMDANET_LIBRARY names the library if the system does not find it.
"""

import ctypes
import os
import re
import weakref
from ctypes import byref, c_char_p, c_float, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p, sizeof

import numpy as np


def _structure(*fields):
    fields = [(name, kind) for kind, names in fields for name in names.split()]
    return type("_Structure", (ctypes.Structure,), {"_fields_": fields})


# As in amdanet.h, but for what comes last and is not used here: the library takes it as 0.
_Picture = _structure(
    (c_void_p, "data"), (c_size_t, "length stride"), (c_uint32, "channels type memory reserved"), (c_float, "black white"))
_Buffer = _structure((c_void_p, "data"), (c_size_t, "length stride"), (c_uint32, "memory reserved"))
_Frame = _structure(
    (c_size_t, "struct_size"), (c_uint32, "width height"), (_Picture, "visible infrared"),
    (_Buffer, "fused labels probabilities"), (c_uint32, "fused_channels"))
_Info = _structure(
    (c_size_t, "struct_size"), (c_uint64, "parameters"), (c_char_p, "arch encoder"),
    (c_uint32, "classes smallest_side largest_side"))
_Class = _structure((c_size_t, "struct_size"), (c_char_p, "name"), (c_uint8 * 4, "color"))
_Params = _structure(
    (c_size_t, "struct_size"), (c_void_p, "progress progress_user"), (c_uint64, "memory_limit"),
    (c_uint32, "device ordinal precision threads"))
# The enumerations: the place of a word is its number.
_CHANNELS, _TYPES = ["rgb", "bgr", "rgba", "bgra", "gray"], ["uint8", "uint16", "float32"]
_DEVICES, _PRECISIONS = ["auto", "cpu", "cuda"], ["f32", "tf32", "f16", "bf16"]

_library = ctypes.CDLL(os.environ.get("AMDANET_LIBRARY", "libamdanet.so.0"))


class Error(Exception):
    """What the library says; `status` is the number of amdanet_status."""


def _call(name, *arguments):
    """Calls a function that returns a status. Arguments are of ctypes' types, so that no function needs a declaration."""
    status = getattr(_library, "amdanet_" + name)(*arguments)
    if status != 0:
        message = ctypes.create_string_buffer(8192)
        _library.amdanet_last_error(message, c_size_t(len(message)))
        error = Error(message.value.decode(errors="replace"))
        error.status = status
        raise error


class Network:
    """A network that is ready to run. One thread at a time; others need a Network of their own."""

    def __init__(self, path, threads=0, device="auto", precision="f32"):
        """`threads`: threads of its own, or 0 for one for each processor, shared by all networks of the process.
        `device`: "auto", "cpu", "cuda" or "cuda:1". `precision`: "f32"; with CUDA also "tf32", "f16" and "bf16".
        """
        parts = re.fullmatch("(auto|cpu|cuda)(?::([0-9]{1,4}))?", str(device))
        if parts is None:
            raise ValueError(f"device is {device!r}: must be one of auto, cpu, cuda, and cuda:1 or another number")
        if precision not in _PRECISIONS:
            raise ValueError(f"precision is {precision!r}: must be one of {', '.join(_PRECISIONS)}")
        params = _Params(
            sizeof(_Params), device=_DEVICES.index(parts[1]), ordinal=int(parts[2] or 0),
            precision=_PRECISIONS.index(precision), threads=threads)
        model, info, self._session = c_void_p(), _Info(sizeof(_Info)), c_void_p()
        _call("model_load", os.fsencode(path), None, byref(model))
        try:
            _call("model_get_info", model, byref(info))
            classes = [_Class(sizeof(_Class)) for _ in range(info.classes)]
            for index, one in enumerate(classes):
                _call("model_get_class", model, c_uint32(index), byref(one))
            self.class_names = [one.name.decode() for one in classes]
            self.colors = np.array([one.color[:3] for one in classes], np.uint8)
            self.arch, self.encoder, self.parameters = info.arch.decode(), info.encoder.decode(), info.parameters
            self.smallest_side, self.largest_side = info.smallest_side, info.largest_side
            _call("session_create", model, byref(params), byref(self._session))
        finally:
            _library.amdanet_model_free(model)
        weakref.finalize(self, _library.amdanet_session_free, self._session)

    def run(self, visible, infrared, order="rgb", visible_range=(0, 0), infrared_range=(0, 0), probabilities=False):
        """The fused picture (height, width, 3) and the labels (height, width), both uint8; with `probabilities` those of
        each class too (height, width, classes), float32.

        Pictures are (height, width) or (height, width, 1, 3 or 4) arrays of uint8, uint16 or float32 from 0 to 1. Views
        with whole pixels side by side in their rows are read where they are; others are copied. `order`: "rgb" or "bgr",
        of both pictures and the fused one. The ranges: what is black and white, if not the whole range of the type.
        """
        if order not in ("rgb", "bgr"):
            raise ValueError(f"order is {order!r}: must be 'rgb' or 'bgr'")
        visible, visible_picture = _picture("visible", visible, order, visible_range)
        infrared, infrared_picture = _picture("infrared", infrared, order, infrared_range)
        height, width = size = visible.shape[:2]
        if infrared.shape[:2] != size:
            raise ValueError(f"infrared is {infrared.shape[:2]}, visible {size}: both must be of one size")
        results = [np.empty((*size, 3), np.uint8), np.empty(size, np.uint8)]
        if probabilities:
            results.append(np.empty((*size, len(self.class_names)), np.float32))
        frame = _Frame(
            sizeof(_Frame), width, height, visible_picture, infrared_picture,
            *(_Buffer(result.ctypes.data, result.nbytes) for result in results), fused_channels=_CHANNELS.index(order))
        _call("session_run", self._session, byref(frame))
        return tuple(results)


def _picture(name, array, order, limits):
    """The array, with whole pixels side by side in its rows, and how the library sees it."""
    array = np.asarray(array)
    channels = {(): "gray", (1,): "gray", (3,): order, (4,): order + "a"}.get(array.shape[2:])
    if array.dtype not in _TYPES or array.ndim < 2 or channels is None:
        raise TypeError(f"{name} is {array.dtype} of shape {array.shape}: must be uint8, uint16 or float32 of shape "
                        "(height, width) or (height, width, 1, 3 or 4)")
    if not array[:1].flags.c_contiguous or array.strides[0] < array[:1].nbytes:
        array = np.ascontiguousarray(array)
    stride, row = array.strides[0], array[:1].nbytes
    return array, _Picture(
        array.ctypes.data, stride * (len(array) - 1) + row, stride, _CHANNELS.index(channels), _TYPES.index(array.dtype),
        black=limits[0], white=limits[1])
