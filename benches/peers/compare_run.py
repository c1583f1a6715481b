"""Holds the pictures that `amdanet run` wrote against the PyTorch oracle, pair by pair.

    amdanet run --weights W.pth --visible VI --infrared IR --out OUT
    python benches/peers/compare_run.py W.pth VI IR OUT

W.pth is in the published format; architecture and sizes are read from its names and shapes. A grey picture is
repeated to three channels. For each pair: the largest difference of the 8-bit fused pictures (1 is allowed, where
two roundings of almost the same number part) and the share of equal labels (99.9 % is asked for). Decoders of JPEG
differ by a few grey levels, so those pairs are reported and not judged. Exit code 1 when a pair fails.
"""
import argparse
import os
import sys

import cv2
import numpy as np
import torch

from network import load
from worker import read

FUSED_MOST, LABELS_LEAST = 1, 0.999
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def pictures(folder):
    names = (os.path.splitext(f) for f in sorted(os.listdir(folder)))
    return {stem: os.path.join(folder, stem + ext) for stem, ext in names if ext.lower() in PICTURES}


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("weights", "visible", "infrared", "out"):
        args.add_argument(name)
    args.add_argument("--threads", type=int, default=2)
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    model = load(args.weights)
    visible, infrared = pictures(args.visible), pictures(args.infrared)
    failed = 0
    print(f"{'pair':<14} {'size':>9} {'kind':>5} {'fused: max':>10} {'pixels off':>10} {'labels equal':>13}")
    for name in (n for n in visible if n in infrared):
        vi, ir = (torch.from_numpy(read(files[name])) for files in (visible, infrared))
        with torch.no_grad():
            logits, image = model(vi, ir)
        want = (255 * image[0].permute(1, 2, 0)).round().to(torch.uint8).numpy()
        want_labels = logits[0].argmax(0).to(torch.uint8).numpy()
        got = cv2.imread(os.path.join(args.out, "fused", name + ".png"), cv2.IMREAD_COLOR)[..., ::-1]
        got_labels = cv2.imread(os.path.join(args.out, "labels", name + ".png"), cv2.IMREAD_UNCHANGED)
        if got.shape != want.shape or got_labels.shape != want_labels.shape:
            sys.exit(f"{name}: the sizes differ: {got.shape} and {want.shape}")
        off = np.abs(got.astype(int) - want.astype(int))
        equal = (got_labels == want_labels).mean()
        jpeg = any(p.lower().endswith((".jpg", ".jpeg")) for p in (visible[name], infrared[name]))
        bad = not jpeg and (off.max() > FUSED_MOST or equal < LABELS_LEAST)
        failed += bad
        print(f"{name:<14} {want.shape[1]:>4}x{want.shape[0]:<4} {'JPEG' if jpeg else 'exact':>5} {off.max():>10} "
              f"{(off > 0).mean():>9.3%} {equal:>12.4%}{'  <- too far' if bad else ''}")
    print("FAILED" if failed else "ok")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
