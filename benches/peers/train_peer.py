"""The reference trained in PyTorch on a data set in the flat layout, with PyTorch's data loader, on the CPU.

    python train_peer.py DATA ENCODER STEPS BATCH HEIGHT WIDTH LR [--arch release] [--warmup 50] [--seed 1]
        [--scales 0.5,0.75,1] [--workers 1] [--denormals]

Prints the mean loss and the median seconds a step, waiting for the loader included, of each hundred steps, then the
IoU on the test list. The recipe is amdanet's, but for drop path and dropout, which the reference does not have. Denormal
numbers are flushed unless told otherwise. THREADS is the number of threads that compute (2).
"""
import argparse
import os
import random
import resource
import statistics
import time

import cv2
import numpy as np
import torch
from torch import nn

import amdanet_ref as ref


class Pairs(torch.utils.data.Dataset):
    def __init__(self, o, names):
        self.o, self.names = o, names

    def __len__(self):
        return len(self.names)

    def read(self, name):
        read = lambda folder: cv2.imread(f"{self.o.data}/{folder}/{name}.png")[:, :, ::-1].astype(np.float32) / 255
        return read("Visible"), read("Infrared"), cv2.imread(f"{self.o.data}/Label/{name}.png", cv2.IMREAD_UNCHANGED)

    def __getitem__(self, index):
        parts, (h, w) = self.read(self.names[index]), (self.o.height, self.o.width)
        if random.random() < 0.5:
            parts = [np.ascontiguousarray(p[:, ::-1]) for p in parts]
        scale = random.choice(self.o.scales)
        size = tuple(int(side * scale) for side in parts[2].shape[::-1])
        modes = (cv2.INTER_LINEAR, cv2.INTER_LINEAR, cv2.INTER_NEAREST)
        parts = [cv2.resize(p, size, interpolation=mode) for p, mode in zip(parts, modes)]
        y, x = (random.randint(0, max(a - b, 0)) for a, b in zip(parts[2].shape, (h, w)))
        parts = [p[y:y + h, x:x + w] for p in parts]
        rows, columns = h - parts[2].shape[0], w - parts[2].shape[1]
        pad = lambda p, value: cv2.copyMakeBorder(p, rows // 2, rows - rows // 2, columns // 2, columns - columns // 2,
                                                  cv2.BORDER_CONSTANT, value=value)
        valid = pad(np.ones_like(parts[2]), 0)
        picture = lambda p: torch.from_numpy(pad(p, 0).transpose(2, 0, 1).copy())
        label = torch.from_numpy(pad(parts[2], 255).astype(np.int64))
        return picture(parts[0]), picture(parts[1]), label, torch.from_numpy(valid).float().expand(3, h, w)


def seed_worker(_):
    random.seed(torch.initial_seed() % 2**32)
    cv2.setNumThreads(1)


def initialise(model):
    for m in model.modules():
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
        if isinstance(m, nn.Conv2d):
            outputs = m.kernel_size[0] * m.kernel_size[1] * m.out_channels // m.groups
            nn.init.normal_(m.weight, 0, (2 / outputs) ** 0.5)
        if isinstance(m, (nn.Linear, nn.Conv2d)) and m.bias is not None:
            nn.init.zeros_(m.bias)
    for head in (model.decode_head, model.aux_head):
        for m in head.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_in", nonlinearity="relu")


def iou(model, pairs, classes):
    model.eval()
    counts = np.zeros((classes, classes))
    with torch.no_grad():
        for name in pairs.names:
            visible, infrared, label = pairs.read(name)
            picture = lambda p: torch.from_numpy(p.transpose(2, 0, 1).copy())[None]
            found = model(picture(visible), picture(infrared))[0].argmax(1)[0].numpy()
            known = label != 255
            counts += np.bincount(classes * label[known].astype(int) + found[known], minlength=classes**2).reshape(
                classes, classes)
    model.train()
    both = np.diag(counts)
    with np.errstate(invalid="ignore"):
        return both / (counts.sum(0) + counts.sum(1) - both)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("data")
    args.add_argument("encoder")
    for name in ("steps", "batch", "height", "width"):
        args.add_argument(name, type=int)
    args.add_argument("lr", type=float)
    args.add_argument("--arch", default="release")
    args.add_argument("--classes", type=int, default=9)
    args.add_argument("--warmup", type=int, default=50)
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--scales", type=lambda text: [float(x) for x in text.split(",")], default=[0.5, 0.75, 1.0])
    args.add_argument("--workers", type=int, default=1)
    args.add_argument("--denormals", action="store_true")
    o = args.parse_args()
    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    torch.set_flush_denormal(not o.denormals)
    torch.manual_seed(o.seed)
    names = lambda split: open(f"{o.data}/{split}.txt").read().split()
    train, test = Pairs(o, names("train")), Pairs(o, names("test"))
    sampler = torch.utils.data.RandomSampler(train, num_samples=o.steps * o.batch)
    loader = torch.utils.data.DataLoader(train, o.batch, sampler=sampler, num_workers=o.workers,
                                         worker_init_fn=seed_worker)
    model = ref.AMDANet(ref.Config.mit(o.encoder, arch=o.arch, num_classes=o.classes)).train()
    initialise(model)
    weights = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    groups = [{"params": [p for p in model.parameters() if (id(p) in weights) == decays],
               "weight_decay": 0.01 * decays} for decays in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=o.lr)
    loss_of, seconds_of, start = [], [], time.perf_counter()
    for step, (visible, infrared, label, valid) in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = o.lr * min(1, (step + 1) / o.warmup) * (1 - step / o.steps) ** 0.9
        choice, sides = random.randrange(2), (o.height, o.width)
        maps = [(o.batch, d, *(-(-side // (4 * 2**i)) for side in sides)) for i, d in enumerate(model.c.dims)]
        both = o.arch == "release" and choice == 1
        masks = [(torch.rand(shape) < 0.85).float() for shape in maps for _ in range(2 if both else 1)]
        outputs = model.forward_masked(visible, infrared, choice, masks)
        loss = ref.losses(outputs, visible, infrared, valid, label, o.arch)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_of.append(float(loss.detach()))
        now = time.perf_counter()
        seconds_of.append(now - start)
        start = now
        if (step + 1) % 100 == 0 or step + 1 == o.steps:
            loss, seconds = statistics.mean(loss_of[-100:]), statistics.median(seconds_of[-100:])
            print(f"step {step + 1}: loss {loss:.4f}, {seconds:.4f} s/step", flush=True)
    found = iou(model, test, o.classes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"mIoU {100 * np.nanmean(found):.2f} % {np.round(100 * found, 1)}, peak RSS {peak:.2f} GB")


if __name__ == "__main__":
    main()
