"""The losses of the first training steps on files of a data set, computed by the reference in float64.

    python first_steps.py DATA HEIGHT WIDTH STEPS

Everything that amdanet draws is drawn here too (Philox4x32-10 by counting: the order of an epoch, augmentation, masks),
pictures are scaled by OpenCV, weights are the formula of golden.py with seed 2025. Prints, for both architectures and
both recipes, each term of each step's loss, as the table in tests/first_steps.rs has them.
"""
import sys

import cv2
import numpy as np
import torch

import amdanet_ref as ref

SEED, BATCH, CLASSES, KEEP, SCALES, TOTAL, WARMUP = 3, 2, 9, np.float32(0.85), [0.5, 0.75, 1.0, 1.25, 1.5, 1.75], 100, 2
ORDER, AUGMENT, MASK = 1 << 40, 2 << 40, 3 << 40
M32 = np.uint64(0xFFFFFFFF)


def philox(seed, stream, count):
    """Words 0 … count - 1 of a stream."""
    index = np.arange(-(-count // 4), dtype=np.uint64)
    full = lambda x: np.full(len(index), x, np.uint64)
    c = [index & M32, index >> np.uint64(32), full(stream & 0xFFFFFFFF), full(stream >> 32)]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(key[0]), p1 & M32,
             (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(key[1]), p0 & M32]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c, 1).ravel()[:count]


def unit(words):
    return ((words >> np.uint64(8)).astype(np.float64) / 2**24).astype(np.float32)


class Draw:
    def __init__(self, seed, stream, count=4096):
        self.words, self.next = [int(w) for w in philox(seed, stream, count)], 0

    def u64(self):
        low, high = self.words[self.next:self.next + 2]
        self.next += 2
        return low | high << 32

    def range(self, n):
        return self.u64() * n >> 64


def read(data, name):
    visible, infrared = (cv2.imread(f"{data}/{folder}/{name}.png")[:, :, ::-1] for folder in ("Visible", "Infrared"))
    label = cv2.imread(f"{data}/Label/{name}.png", cv2.IMREAD_UNCHANGED)
    return visible.astype(np.float32) / np.float32(255), infrared.astype(np.float32) / np.float32(255), label


def example(data, name, n, height, width):
    mirror, scale, row, column = (float(u) for u in unit(philox(SEED + AUGMENT, n, 4)))
    pick = lambda u, count: min(int(u * count), count - 1)
    pictures = read(data, name)
    if mirror < 0.5:
        pictures = [np.ascontiguousarray(p[:, ::-1]) for p in pictures]
    factor = SCALES[pick(scale, len(SCALES))]
    h, w = (int(side * factor) for side in pictures[2].shape)
    interpolation = (cv2.INTER_LINEAR, cv2.INTER_LINEAR, cv2.INTER_NEAREST)
    pictures = [cv2.resize(p, (w, h), interpolation=i) for p, i in zip(pictures, interpolation)]
    y, x = pick(row, max(h - height, 0) + 1), pick(column, max(w - width, 0) + 1)
    pictures = [p[y:y + height, x:x + width] for p in pictures]
    h, w = pictures[2].shape
    top, left = (height - h) // 2, (width - w) // 2
    pad = lambda p, value: cv2.copyMakeBorder(p, top, height - h - top, left, width - w - left, cv2.BORDER_CONSTANT,
                                              value=value)
    visible, infrared = (pad(p, 0).transpose(2, 0, 1) for p in pictures[:2])
    return visible, infrared, pad(pictures[2], 255), pad(np.ones((h, w), np.uint8), 0)


def batch(data, names, step, height, width):
    examples = []
    for n in range(step * BATCH, (step + 1) * BATCH):
        epoch, order = n // len(names), list(range(len(names)))
        draw = Draw(SEED + ORDER, epoch)
        for i in range(len(names) - 1, 0, -1):
            j = draw.range(i + 1)
            order[i], order[j] = order[j], order[i]
        examples.append(example(data, names[order[n % len(names)]], n, height, width))
    visible, infrared, label, valid = (torch.from_numpy(np.stack(t)) for t in zip(*examples))
    return visible.double(), infrared.double(), label.long(), valid[:, None].expand(-1, 3, -1, -1).double()


def masks(model, arch, step, height, width):
    draw = Draw(SEED + MASK, step, 8)
    choice, seed = draw.range(2), draw.u64()
    streams = 2 if arch == "release" and choice == 1 else 1
    h, w, out = -(-height // 4), -(-width // 4), []
    for level, dim in enumerate(model.c.dims):
        words = philox(seed, level, streams * BATCH * h * w * dim)
        mask = (unit(words) < KEEP).reshape(streams, BATCH, h, w, dim).transpose(0, 1, 4, 2, 3)
        out += [torch.from_numpy(m.astype(np.float64)) for m in mask]
        h, w = -(-h // 2), -(-w // 2)
    return choice, out


def fnv1a64(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & (1 << 64) - 1
    return h


def uniform(name, shape, seed):
    n = int(np.prod(shape)) if len(shape) else 1
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a64(name) ^ seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy(((z >> np.uint64(40)).astype(np.float64) / 2**24).reshape(shape))


def fill(model, seed):
    for name, t in list(model.named_parameters()) + list(model.named_buffers()):
        if name.endswith("num_batches_tracked"):
            continue
        s = 2 * uniform(name, tuple(t.shape), seed) - 1
        if t.dim() >= 2:
            v = s * (3 / np.prod(t.shape[1:])) ** 0.5
        else:
            scale = {"running_mean": (0, 0.1), "running_var": (1, 0.2), "lambda_param": (0.5, 0.1), "weight": (1, 0.1)}
            start, width = scale.get(name.rsplit(".", 1)[-1], (0, 0.05))
            v = start + width * s
        t.data.copy_(v.float().double())


def main():
    data, height, width, steps = sys.argv[1], *map(int, sys.argv[2:5])
    names = open(f"{data}/train.txt").read().split()
    for arch in ("release", "paper"):
        for recipe, lr in (("release", 6.3e-5), ("paper", 6e-5)):
            model = ref.AMDANet(ref.Config.mit("nano", arch=arch, num_classes=CLASSES)).double()
            fill(model, 2025)
            model.train()
            weights = {id(m.weight) for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
            groups = [{"params": [p for p in model.parameters() if (id(p) in weights) == decays],
                       "weight_decay": 0.01 * decays} for decays in (True, False)]
            optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8)
            for step in range(steps):
                visible, infrared, label, valid = batch(data, names, step, height, width)
                outputs = model.forward_masked(visible, infrared, *masks(model, arch, step, height, width))
                terms = ref.losses(outputs, visible, infrared, valid, label, arch)
                for group in optimizer.param_groups:
                    group["lr"] = lr * min(1, (step + 1) / WARMUP) * (1 - step / TOTAL) ** 0.9
                optimizer.zero_grad()
                terms["total"].backward()
                optimizer.step()
                values = ", ".join(f'("{k}", {float(v.detach()):.8f})' for k, v in sorted(terms.items()))
                print(f"({arch}, {recipe}, {step}, &[{values}]),", flush=True)


if __name__ == "__main__":
    main()
