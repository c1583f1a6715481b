"""amdanet for Python: fuses NumPy pictures and labels every pixel.

    network = amdanet.Network("network.safetensors")
    fused, labels = network.run(visible, infrared)

Needs NumPy and the C library (`scripts/install`). AMDANET_LIBRARY names the library if the system does not find it.
"""

import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p

import numpy as np


def _structure(name, *fields):
    return type(name, (ctypes.Structure,), {"_fields_": [(word, kind) for kind, words in fields for word in words.split()]})


# As in amdanet.h.
_Picture = _structure(
    "amdanet_picture", (c_void_p, "data"), (c_size_t, "length stride"), (c_uint32, "channels type memory reserved"),
    (c_float, "black white"))
_Buffer = _structure("amdanet_buffer", (c_void_p, "data"), (c_size_t, "length stride"), (c_uint32, "memory reserved"))
_Frame = _structure(
    "amdanet_frame", (c_size_t, "struct_size"), (c_uint32, "width height"), (_Picture, "visible infrared"),
    (_Buffer, "fused labels probabilities"), (c_uint32, "fused_channels fused_type"), (c_void_p, "stream"))
_Info = _structure(
    "amdanet_model_info", (c_size_t, "struct_size"), (c_uint64, "parameters"), (c_char_p, "arch encoder"),
    (c_uint32, "classes smallest_side largest_side reserved"))
_Class = _structure(
    "amdanet_class", (c_size_t, "struct_size"), (c_char_p, "name"), (c_uint8 * 4, "color"), (c_uint32, "reserved"))
_Params = _structure(
    "amdanet_session_params", (c_size_t, "struct_size"), (c_void_p, "progress progress_user"), (c_uint64, "memory_limit"),
    (c_uint32, "device ordinal precision threads width height queue timing"))

_TYPES = {np.dtype(np.uint8): 0, np.dtype(np.uint16): 1, np.dtype(np.float32): 2}
_CHANNELS = {"rgb": 0, "bgr": 1, "rgba": 2, "bgra": 3, "gray": 4}

_library = ctypes.CDLL(os.environ.get("AMDANET_LIBRARY", "libamdanet.so.0"))
_library.amdanet_last_error.argtypes, _library.amdanet_last_error.restype = [c_char_p, c_size_t], c_size_t
_library.amdanet_status_name.argtypes, _library.amdanet_status_name.restype = [c_int32], c_char_p
for _name, *_arguments in [
        ("model_load", c_char_p, c_void_p, POINTER(c_void_p)), ("model_get_info", c_void_p, POINTER(_Info)),
        ("model_get_class", c_void_p, c_uint32, POINTER(_Class)), ("model_free", c_void_p),
        ("session_create", c_void_p, POINTER(_Params), POINTER(c_void_p)),
        ("session_run", c_void_p, POINTER(_Frame)), ("session_free", c_void_p)]:
    _function = getattr(_library, "amdanet_" + _name)
    _function.argtypes, _function.restype = _arguments, None if _name.endswith("free") else c_int32


class Error(Exception):
    """What the library says; `status` is the number of amdanet_status."""

    def __init__(self, status):
        message = ctypes.create_string_buffer(_library.amdanet_last_error(None, 0) + 1)
        _library.amdanet_last_error(message, len(message))
        name = _library.amdanet_status_name(status).decode()
        super().__init__(f"{name}: {message.value.decode(errors='replace')}")
        self.status = status


def _check(status):
    if status != 0:
        raise Error(status)


def _new(structure, **fields):
    return structure(struct_size=ctypes.sizeof(structure), **fields)


class Network:
    """A network that is ready to run. One thread at a time; others need a Network of their own."""

    def __init__(self, path, threads=0):
        """`threads`: threads of its own, or 0 for one for each processor, shared by all networks of the process."""
        self._session, model = c_void_p(), c_void_p()
        _check(_library.amdanet_model_load(os.fsencode(path), None, byref(model)))
        try:
            info = _new(_Info)
            _check(_library.amdanet_model_get_info(model, byref(info)))
            self.arch, self.encoder = info.arch.decode(), info.encoder.decode()
            self.parameters, self.smallest_side, self.largest_side = info.parameters, info.smallest_side, info.largest_side
            self.class_names, self.colors = [], np.zeros((info.classes, 3), np.uint8)
            for index in range(info.classes):
                one = _new(_Class)
                _check(_library.amdanet_model_get_class(model, index, byref(one)))
                self.class_names.append(one.name.decode())
                self.colors[index] = one.color[:3]
            _check(_library.amdanet_session_create(model, byref(_new(_Params, threads=threads)), byref(self._session)))
        finally:
            _library.amdanet_model_free(model)

    def __del__(self):
        _library.amdanet_session_free(self._session)

    def run(self, visible, infrared, order="rgb", visible_range=(0, 0), infrared_range=(0, 0), probabilities=False):
        """The fused picture (height, width, 3) and the labels (height, width), both uint8; with `probabilities` those of
        each class too (height, width, classes), float32.

        Pictures are (height, width) or (height, width, 1, 3 or 4) arrays of uint8, uint16 or float32 from 0 to 1. Views
        with whole pixels side by side in their rows are read where they are; others are copied. `order`: "rgb" or "bgr",
        of both pictures and the fused one. The ranges: what is black and white, if not the whole range of the type.
        """
        if order not in ("rgb", "bgr"):
            raise ValueError(f"order is {order!r}: must be 'rgb' or 'bgr'")
        visible, infrared = _rows("visible", visible), _rows("infrared", infrared)
        height, width = visible.shape[:2]
        if infrared.shape[:2] != (height, width):
            raise ValueError(f"infrared is {infrared.shape[:2]}, visible {(height, width)}: both must be of one size")
        fused, labels = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.uint8)
        results = [fused, labels]
        frame = _new(
            _Frame, width=width, height=height, visible=_picture(visible, order, visible_range),
            infrared=_picture(infrared, order, infrared_range), fused=_buffer(fused), labels=_buffer(labels),
            fused_channels=_CHANNELS[order])
        if probabilities:
            results.append(np.empty((height, width, len(self.class_names)), np.float32))
            frame.probabilities = _buffer(results[-1])
        _check(_library.amdanet_session_run(self._session, byref(frame)))
        return tuple(results)


def _rows(name, array):
    """The array, with whole pixels side by side in its rows."""
    array = np.asarray(array)
    if array.dtype not in _TYPES or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)):
        raise TypeError(f"{name} is {array.dtype} of shape {array.shape}: must be uint8, uint16 or float32 of shape "
                        "(height, width) or (height, width, 1, 3 or 4)")
    array = array.reshape(array.shape[:2]) if array.shape[2:] == (1,) else array
    packed = array[:1].flags.c_contiguous and array.strides[0] >= array[:1].nbytes
    return array if packed else np.ascontiguousarray(array)


def _picture(array, order, limits):
    channels = {(): "gray", (3,): order, (4,): order + "a"}[array.shape[2:]]
    stride, row = array.strides[0], array[:1].nbytes
    return _Picture(
        data=array.ctypes.data, length=(len(array) - 1) * stride + row if len(array) else 0, stride=stride,
        channels=_CHANNELS[channels], type=_TYPES[array.dtype], black=limits[0], white=limits[1])


def _buffer(array):
    return _Buffer(data=array.ctypes.data, length=array.nbytes)
