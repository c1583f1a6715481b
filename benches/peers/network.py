"""The reference network as the peers run it, and the files that it is handed around in.

    python network.py ENCODER ARCH CLASSES WEIGHTS.pth [--onnx FILE.onnx --pictures BATCH HEIGHT WIDTH]

writes a network whose weights are the formula of the golden files, in the published format, and what the peers compute of
it as ONNX: labels and the 8-bit fused picture.
"""
import argparse

import torch
from torch import Tensor, nn

import amdanet_ref as ref
from first_steps import fill

SEED = 2025


def always_suppress(self: ref.SemanticConsistencyInference, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The release's gate without its condition, which always holds: 0.1 times a mean cosine is below 0.4.

    A condition on values breaks the graphs of torch.compile, cannot be exported, and makes a GPU wait.
    """
    m = torch.sigmoid(self.mlp(torch.cat((first, second), -1)))
    step = self.lambda_param * m * (second - first)
    return second - step, first + step


class Predict(nn.Module):
    """What `amdanet` gives of two pictures (B, 3, H, W) in [0, 1]: labels (B, H, W), fused (B, 3, H, W), both uint8."""

    def __init__(self, network: ref.AMDANet):
        super().__init__()
        self.network = network

    def forward(self, visible: Tensor, infrared: Tensor) -> tuple[Tensor, Tensor]:
        logits, image = self.network(visible, infrared)
        return logits.argmax(1).to(torch.uint8), (255 * image.float()).round().to(torch.uint8)


def load(path: str) -> ref.AMDANet:
    """A network in the published format; architecture and sizes are read from its names and shapes."""
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
    network = ref.AMDANet(config)
    network.load_state_dict(state)
    return network.eval()


def peer(path: str) -> ref.AMDANet:
    """[`load`] for a measurement: without the condition of the release's gate."""
    network = load(path)
    if network.c.arch == "release":
        ref.SemanticConsistencyInference.forward = always_suppress
    return network


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("encoder")
    args.add_argument("arch")
    args.add_argument("classes", type=int)
    args.add_argument("weights")
    args.add_argument("--onnx")
    args.add_argument("--pictures", type=int, nargs=3, default=(1, 480, 640))
    o = args.parse_args()
    network = ref.AMDANet(ref.Config.mit(o.encoder, arch=o.arch, num_classes=o.classes))
    fill(network, SEED)
    torch.save({"model": network.state_dict()}, o.weights)
    if o.onnx:
        batch, height, width = o.pictures
        pictures = tuple(torch.rand(batch, 3, height, width) for _ in range(2))
        torch.onnx.export(Predict(peer(o.weights)), pictures, o.onnx, opset_version=17, dynamo=False,
                          input_names=["visible", "infrared"], output_names=["labels", "fused"])


if __name__ == "__main__":
    main()
