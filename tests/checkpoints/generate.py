"""Writes the sample checkpoints of tests/checkpoint.rs beside itself; needs PyTorch.

Every tensor counts up from a start of its own, so the test knows all values without a second file.
"""
import os

import torch

here = os.path.dirname(os.path.abspath(__file__))


def count(start, *shape, dtype=torch.float32):
    n = torch.Size(shape).numel()
    return (start + torch.arange(n, dtype=torch.float32)).reshape(shape).to(dtype)


shared = count(40, 4)
state = {
    "module.backbone.LEs.0.gate.0.weight": torch.nn.Parameter(count(0, 2, 3)),
    "module.backbone.sci_1.lambda_param": torch.tensor(0.5),
    "module.aux_head.half": count(10, 2, 2, dtype=torch.float16),
    "module.aux_head.brain": count(20, 3, dtype=torch.bfloat16),
    "module.aux_head.double": count(30, 2, dtype=torch.float64),
    "module.aux_head.transposed": count(0, 3, 2).t(),          # 0 2 4 / 1 3 5
    "module.aux_head.inner": count(0, 4, 4)[1:3, 1:3],         # 5 6 / 9 10
    "module.aux_head.shared": shared,
    "module.aux_head.tied": shared[2:],
    "module.aux_head.empty": torch.zeros(0, 3),
    "module.aux_head.num_batches_tracked": torch.tensor(7),
}
ordered = torch.nn.Module().state_dict()  # an OrderedDict with _metadata
ordered.update(state)
optimizer = torch.optim.AdamW([state["module.backbone.LEs.0.gate.0.weight"]], lr=1e-3)
saved = {"epoch": 7, "best": 0.25, "name": "sample", "device": torch.device("cpu"), "size": torch.Size([480, 640]),
         "optimizer": optimizer.state_dict(), "model": ordered}
at = lambda name: os.path.join(here, name)
torch.save(saved, at("sample.pth"))
torch.save(saved, at("sample_legacy.pth"), _use_new_zipfile_serialization=False)
torch.save({**saved, "model": dict(ordered)}, at("sample_protocol4.pth"), pickle_protocol=4)
