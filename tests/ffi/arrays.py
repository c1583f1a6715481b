"""Arrays of any layout through examples/python/amdanet.py. Called with the folder that tests/ffi.rs has prepared."""

import sys
from pathlib import Path

import numpy as np

import amdanet

FOLDER, WIDTH, HEIGHT, CLASSES = Path(sys.argv[1]), 48, 40, 5


def contents(name, shape, kind=np.uint8):
    return np.fromfile(FOLDER / name, kind).reshape(shape)


visible, infrared = contents("visible", (HEIGHT, WIDTH, 3)), contents("infrared", (HEIGHT, WIDTH))
fused, labels = contents("fused", (HEIGHT, WIDTH, 3)), contents("labels", (HEIGHT, WIDTH))
probabilities = contents("probabilities", (HEIGHT, WIDTH, CLASSES), np.float32)
WEIGHTS = FOLDER / "network.safetensors"
# What the results are compared with was made on the CPU.
network = amdanet.Network(WEIGHTS, threads=1, device="cpu", precision="f32")
assert (network.arch, network.encoder, len(network.class_names)) == ("release", "nano", CLASSES)
assert network.parameters > 0 and network.smallest_side == 32 and network.colors.shape == (CLASSES, 3)
assert network.class_names[0] == "background", network.class_names


def same(results, order=slice(None)):
    assert np.array_equal(results[0][..., order], fused) and np.array_equal(results[1], labels)


# Rows that are whole, in an array that is not; the right part of a wider one; columns and rows that are not as they lie.
same(network.run(visible, infrared))
wide = np.zeros((HEIGHT, WIDTH + 7, 3), np.uint8)
wide[:, 5:-2] = visible
assert not wide[:, 5:-2].flags.c_contiguous
same(network.run(wide[:, 5:-2], np.repeat(infrared, 2, axis=0)[::2]))
same(network.run(visible[:, ::-1].copy()[:, ::-1], infrared[::-1].copy()[::-1]))
same(network.run(np.asfortranarray(visible), np.asfortranarray(infrared)))
same(network.run(visible[..., ::-1], infrared[..., None], order="bgr"), slice(None, None, -1))
same(network.run(np.dstack([visible, infrared]), np.dstack([infrared] * 3)))
# A row for all rows has a stride of 0.
flat = np.broadcast_to(infrared[0], infrared.shape)
assert np.array_equal(network.run(visible, flat)[0], network.run(visible, flat.copy())[0])
# 16 bits of another range than the type's, and floats.
same(network.run(visible, infrared.astype(np.uint16) + 7000, infrared_range=(7000, 7255)))
same(network.run(visible / np.float32(255), infrared))
assert np.array_equal(network.run(visible, infrared, probabilities=True)[2], probabilities)


def fails(kind, words, call):
    try:
        call()
    except kind as error:
        assert words in str(error), error
        return error
    raise AssertionError(f"no {kind.__name__} with {words}")


fails(TypeError, "float64", lambda: network.run(visible / 255, infrared))
fails(TypeError, "(40, 48, 2)", lambda: network.run(visible[..., :2], infrared))
fails(ValueError, "one size", lambda: network.run(visible, infrared[1:]))
fails(ValueError, "'rbg'", lambda: network.run(visible, infrared, order="rbg"))
assert fails(amdanet.Error, "width", lambda: network.run(visible[:, :9], infrared[:, :9])).status == 1
fails(amdanet.Error, "width", lambda: network.run(visible[:, :0], infrared[:, :0]))
fails(amdanet.Error, "height", lambda: network.run(visible[:0], infrared[:0]))
fails(TypeError, "(1, 40, 48, 3)", lambda: network.run(visible[None], infrared))
fails(TypeError, ">u2", lambda: network.run(visible.astype(">u2"), infrared))
assert fails(amdanet.Error, "absent", lambda: amdanet.Network("absent")).status == 2
assert fails(amdanet.Error, "damaged", lambda: amdanet.Network(FOLDER / "damaged")).status == 3
assert fails(amdanet.Error, "threads", lambda: amdanet.Network(WEIGHTS, threads=5000)).status == 1

# Devices and precisions that this library or machine does not have, and words that are none.
fails(amdanet.Error, "cuda:9999", lambda: amdanet.Network(WEIGHTS, device="cuda:9999"))
assert fails(amdanet.Error, "ordinal: 1", lambda: amdanet.Network(WEIGHTS, device="cpu:1")).status == 1
for precision in ("tf32", "f16", "bf16"):
    assert fails(amdanet.Error, "F32", lambda: amdanet.Network(WEIGHTS, device="cpu", precision=precision)).status == 4
for device in ("gpu", "CPU", "cuda:", "cuda:one", "cuda:-1", "cuda 1", "", None):
    fails(ValueError, f"{device!r}: must be one of auto, cpu, cuda", lambda: amdanet.Network(WEIGHTS, device=device))
fails(ValueError, "'fp16': must be one of f32, tf32, f16, bf16", lambda: amdanet.Network(WEIGHTS, precision="fp16"))
