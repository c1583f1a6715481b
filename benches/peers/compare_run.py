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

import amdanet_ref as ref

FUSED_MOST, LABELS_LEAST = 1, 0.999
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def load(path):
    saved = torch.load(path, map_location="cpu", weights_only=True)
    state = next((saved[k] for k in ("model", "state_dict") if k in saved), saved)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    at = lambda name: state[name].shape[0]
    dims = tuple(at(f"backbone.patch_embed{i}.proj.weight") for i in range(1, 5))
    blocks = lambda i: len({n.split(".")[2] for n in state if n.startswith(f"backbone.block{i}.")})
    config = ref.Config(
        arch="release" if "backbone.LEs.0.gate.0.weight" in state else "paper",
        num_classes=at("decode_head.linear_pred.weight"), dims=dims, depths=tuple(map(blocks, range(1, 5))),
        heads=(1, 2, 4, 8) if dims[0] == 16 else (1, 2, 5, 8),
        mlp_ratio=at("backbone.block1.0.mlp.fc1.weight") // dims[0], decoder_dim=at("decode_head.linear_fuse.0.weight"),
        fusion_dim=at("aux_head.CNN_fuse.0.weight"))
    model = ref.AMDANet(config)
    model.load_state_dict(state)
    return model.eval()


def read(path):
    """(1, 3, H, W) in [0, 1]: RGB, grey repeated, 16 bits by their full range."""
    picture = cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if picture is None:
        sys.exit(f"{path}: cannot be read")
    most = np.iinfo(picture.dtype).max
    rgb = np.ascontiguousarray(picture[..., ::-1]).astype(np.float32) / np.float32(most)
    return torch.from_numpy(rgb).permute(2, 0, 1)[None]


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
        vi, ir = read(visible[name]), read(infrared[name])
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
