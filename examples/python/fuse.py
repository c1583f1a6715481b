"""Fuses a pair of pictures and labels every pixel: binary PPM and PGM files in and out, of 8 bits.

    python3 fuse.py WEIGHTS VISIBLE.ppm INFRARED.pgm FUSED.ppm LABELS.pgm
"""

import re
import sys

import numpy as np

import amdanet

# White space and comments, which are allowed between the numbers of a header.
GAP = rb"(?:\s|#[^\n]*\n)+"


def read_image(path, kind):
    with open(path, "rb") as file:
        data = file.read()
    header = re.match(kind + GAP + rb"(\d+)" + GAP + rb"(\d+)" + GAP + rb"255\s", data)
    if header is None:
        raise ValueError(f"{path}: must be a binary {'PPM (P6)' if kind == b'P6' else 'PGM (P5)'} with numbers to 255")
    width, height = int(header[1]), int(header[2])
    shape = (height, width, 3) if kind == b"P6" else (height, width)
    length = height * width * (3 if kind == b"P6" else 1)
    if len(data) - header.end() < length:
        raise ValueError(f"{path}: ends before its last pixel")
    return np.frombuffer(data, np.uint8, length, header.end()).reshape(shape)


def write_image(path, kind, image):
    with open(path, "wb") as file:
        file.write(b"%s\n%d %d\n255\n" % (kind, image.shape[1], image.shape[0]))
        file.write(image.tobytes())


def main(arguments):
    if len(arguments) != 5:
        sys.exit("fuse: usage: fuse.py WEIGHTS VISIBLE.ppm INFRARED.pgm FUSED.ppm LABELS.pgm")
    weights, visible, infrared, fused_path, labels_path = arguments
    try:
        network = amdanet.Network(weights)
        fused, labels = network.run(read_image(visible, b"P6"), read_image(infrared, b"P5"))
        write_image(fused_path, b"P6", fused)
        write_image(labels_path, b"P5", labels)
    except (amdanet.Error, OSError, ValueError) as error:
        sys.exit(f"fuse: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
