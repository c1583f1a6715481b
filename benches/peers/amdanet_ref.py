"""PyTorch oracle for AMDANet: small, slow, and meant only to be compared against.

Two architectures share one set of parameter names (those of the published checkpoints):

* ``release``  what the authors' published checkpoints were trained with.
* ``paper``    equations 1-13 of the ICCV 2025 paper as printed, the ambiguous spots settled as below.

Layouts: images are NCHW float32 in [0, 1]; token tensors are (B, N, C) with N = H*W, row-major.
Random choices (feature masks, drop path, dropout) are never drawn here: masks come in as arguments,
and drop path and dropout are off, so every output is a pure function of weights and inputs.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass(frozen=True)
class Config:
    arch: str = "release"                 # "release" | "paper"
    num_classes: int = 9
    dims: tuple = (64, 128, 320, 512)     # channels of the four levels
    heads: tuple = (1, 2, 5, 8)
    depths: tuple = (3, 8, 27, 3)         # MiT-B4
    sr: tuple = (8, 4, 2, 1)              # spatial reduction of keys and values, by level
    mlp_ratio: int = 4
    decoder_dim: int = 512
    fusion_dim: int = 16
    tau: float = 0.4                      # SCI similarity threshold (eq. 1)
    bn_eps: float = 1e-5

    @staticmethod
    def mit(name, **kw):
        depths = {"b0": (2, 2, 2, 2), "b1": (2, 2, 2, 2), "b2": (3, 4, 6, 3), "b3": (3, 4, 18, 3),
                  "b4": (3, 8, 27, 3), "b5": (3, 6, 40, 3)}
        if name == "nano":                # for tests only
            return Config(dims=(16, 32, 64, 128), heads=(1, 2, 4, 8), depths=(1, 1, 2, 1),
                          mlp_ratio=2, decoder_dim=32, **kw)
        dims = (32, 64, 160, 256) if name == "b0" else (64, 128, 320, 512)
        return Config(dims=dims, depths=depths[name], **kw)


def to_map(tokens, h, w):
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, h, w)


def to_tokens(fmap):
    return fmap.flatten(2).transpose(1, 2)


class ReducedAttention(nn.Module):
    """Multi-head attention whose keys and values come from a spatially reduced map.

    ``query`` and ``source`` are (B, N, C) over the same h x w grid; returns softmax(QK'/sqrt(d))V, (B, N, C).
    """

    def __init__(self, dim, heads, sr, bias, q_name, kv_name):
        super().__init__()
        self.heads, self.names = heads, (q_name, kv_name)
        setattr(self, q_name, nn.Linear(dim, dim, bias=bias))
        setattr(self, kv_name, nn.Linear(dim, 2 * dim, bias=bias))
        self.proj = nn.Linear(dim, dim)
        self.reduces = sr > 1
        if self.reduces:
            self.sr = nn.Conv2d(dim, dim, sr, stride=sr)
            self.norm = nn.LayerNorm(dim, eps=1e-5)

    def attend(self, query, source, h, w):
        b, n, c = query.shape
        if self.reduces:
            source = self.norm(to_tokens(self.sr(to_map(source, h, w))))
        split = lambda t: t.reshape(b, -1, self.heads, c // self.heads).transpose(1, 2)
        q = split(getattr(self, self.names[0])(query))
        k, v = map(split, getattr(self, self.names[1])(source).chunk(2, dim=-1))
        scores = (q @ k.transpose(-2, -1)) * (c // self.heads) ** -0.5
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)


class SelfAttention(ReducedAttention):
    def __init__(self, dim, heads, sr, bias=True):
        super().__init__(dim, heads, sr, bias, "q", "kv")

    def forward(self, x, h, w):
        return self.proj(self.attend(x, x, h, w))


class SalientEnhancement(SelfAttention):
    def __init__(self, dim, heads, sr):
        super().__init__(dim, heads, sr, bias=False)

    def forward(self, x, h, w):
        return self.proj(self.attend(x, x, h, w) + x)


class CrossModalAttention(ReducedAttention):
    def __init__(self, dim, heads, sr):
        super().__init__(dim, heads, sr, False, "q1", "kv2")

    def forward(self, x, other, h, w):
        return self.proj(self.attend(x, other, h, w) + x)


class DepthwiseConv(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x, h, w):
        return to_tokens(self.dwconv(to_map(x, h, w)))


class MixFfn(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = nn.Linear(dim, hidden), DepthwiseConv(hidden), nn.Linear(hidden, dim)

    def forward(self, x, h, w):
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), h, w)))


class Block(nn.Module):
    def __init__(self, dim, heads, mlp_ratio, sr):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = SelfAttention(dim, heads, sr), MixFfn(dim, dim * mlp_ratio)

    def forward(self, x, h, w):
        x = x + self.attn(self.norm1(x), h, w)
        return x + self.mlp(self.norm2(x), h, w)


class PatchEmbed(nn.Module):
    def __init__(self, cin, dim, kernel, stride):
        super().__init__()
        self.proj = nn.Conv2d(cin, dim, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x):
        x = self.proj(x)
        return self.norm(to_tokens(x)), x.shape[2], x.shape[3]


class SemanticConsistencyInference(nn.Module):
    """Eqs. 1-5. ``release`` gates the whole batch on 0.1 * mean similarity; ``paper`` gates each token."""

    def __init__(self, dim, arch, tau):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, 1))
        self.lambda_param = nn.Parameter(torch.tensor(0.5))
        self.arch, self.tau = arch, tau

    def forward(self, first, second):
        """(B, N, C) twice -> the same two, bias suppressed, in the order given (release swaps them; see below)."""
        similarity = F.cosine_similarity(first, second, dim=-1)
        m = torch.sigmoid(self.mlp(torch.cat((first, second), -1)))
        if self.arch == "release":
            # The checkpoints were trained with the outputs exchanged: (second', first').
            if not bool((0.1 * similarity.mean(-1) < self.tau).any()):
                return second, first
            step = self.lambda_param * m * (second - first)
            return second - step, first + step
        gate = (similarity < self.tau).to(first.dtype).unsqueeze(-1)
        step = gate * self.lambda_param * m * (first - second)
        return first - step, second + step


class ChannelPool(nn.Module):
    def __init__(self, dim, reduction=4):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * dim, 2 * dim // reduction), nn.ReLU(),
                                 nn.Linear(2 * dim // reduction, 2 * dim))

    def forward(self, a, b):
        """Two (B, C, H, W) -> two (B, C, 1, 1) weights in (0, 1)."""
        x = torch.cat((a, b), 1)
        w = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))
        return w[..., None, None].chunk(2, 1)


class SpatialPool(nn.Module):
    def __init__(self, arch, reduction=4):
        super().__init__()
        if arch == "release":
            self.mlp = nn.Sequential(nn.Conv2d(4, 4 * reduction, 1), nn.ReLU(),
                                     nn.Conv2d(4 * reduction, 2, 1), nn.Sigmoid())
        else:
            self.mlp = nn.Sequential(nn.Conv2d(4, 2, 7, padding=3), nn.Sigmoid())

    def forward(self, a, b):
        """Two (B, C, H, W) -> two (B, 1, H, W) weights in (0, 1)."""
        stats = [f(t) for t in (a, b) for f in (lambda t: t.mean(1, True), lambda t: t.amax(1, True))]
        return self.mlp(torch.cat(stats, 1)).chunk(2, 1)


class PoolingWeights(nn.Module):
    def __init__(self, dim, arch):
        super().__init__()
        self.cha, self.sap = ChannelPool(dim), SpatialPool(arch)


class LocalAlignment(nn.Module):
    """Pooling attention. ``release`` is the published gate; ``paper`` is eqs. 6-9 and their sum."""

    def __init__(self, dim, arch, reduction=4):
        super().__init__()
        self.arch = arch
        self.fuse_sc = PoolingWeights(dim, arch)
        if arch == "release":
            self.gate = nn.Sequential(nn.Linear(2 * dim, 2 * dim // reduction), nn.ReLU(),
                                      nn.Linear(2 * dim // reduction, dim), nn.Sigmoid())

    def forward(self, a, b):
        cha, sap = self.fuse_sc.cha(a, b), self.fuse_sc.sap(a, b)
        if self.arch == "paper":
            realign = lambda x, w: torch.sigmoid(w * x - x) * x + x
            return tuple(realign(x, c) + realign(x, s) for x, c, s in zip((a, b), cha, sap))
        h, w = a.shape[2:]
        gate = to_map(self.gate(torch.cat((to_tokens(a), to_tokens(b)), -1)), h, w)
        wa, wb = gate * cha[0] * sap[0], gate * cha[1] * sap[1]
        a2, b2 = a + wa * b, b + wb * a
        finish = lambda x, w: torch.sigmoid(x * w - x) * x + x * w
        return finish(a2, wa), finish(b2, wb)


class GlobalAlignment(nn.Module):
    """Salient enhancement of each modality, then cross-modal attention twice (eqs. 10-11)."""

    def __init__(self, dim, heads, sr):
        super().__init__()
        self.SE_x1, self.SE_x2 = SalientEnhancement(dim, heads, sr), SalientEnhancement(dim, heads, sr)
        self.CM_x1toX2, self.CM_x2toX1 = CrossModalAttention(dim, heads, sr), CrossModalAttention(dim, heads, sr)
        self.proj = nn.Linear(dim, dim)

    def forward(self, a, b):
        h, w = a.shape[2:]
        a, b = self.SE_x1(to_tokens(a), h, w), self.SE_x2(to_tokens(b), h, w)
        mid = self.CM_x1toX2(a, b, h, w)
        return to_map(self.proj(self.CM_x2toX1(b, mid, h, w)), h, w)


class Backbone(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        cin = (3,) + c.dims[:3]
        for i in range(4):
            for prefix in ("", "extra_"):
                setattr(self, f"{prefix}patch_embed{i+1}",
                        PatchEmbed(cin[i], c.dims[i], 7 if i == 0 else 3, 4 if i == 0 else 2))
                setattr(self, f"{prefix}block{i+1}",
                        nn.ModuleList(Block(c.dims[i], c.heads[i], c.mlp_ratio, c.sr[i]) for _ in range(c.depths[i])))
                setattr(self, f"{prefix}norm{i+1}", nn.LayerNorm(c.dims[i], eps=1e-6))
            setattr(self, f"sci_{i+1}", SemanticConsistencyInference(c.dims[i], c.arch, c.tau))
        self.LEs = nn.ModuleList(LocalAlignment(d, c.arch) for d in c.dims)
        self.GEs = nn.ModuleList(GlobalAlignment(d, hd, s) for d, hd, s in zip(c.dims, c.heads, c.sr))

    def level(self, i):
        g = lambda n: getattr(self, n)
        return [(g(f"{p}patch_embed{i+1}"), g(f"{p}block{i+1}"), g(f"{p}norm{i+1}")) for p in ("", "extra_")]

    def forward(self, vi, ir, feature_masks=None):
        """-> vision: 8 maps (vi, ir by level); fused: 4 maps; with ``feature_masks`` (paper) also masked fused maps.

        ``feature_masks`` = (modality, [four masks]) with modality 0 for visible, 1 for infrared, each mask of
        the shape of that level's features, values 0 or 1.
        """
        vision, fused, fused_masked = [], [], []
        streams = [vi, ir]
        for i in range(4):
            (tokens0, h, w), (tokens1, _, _) = (stage[0](x) for stage, x in zip(self.level(i), streams))
            tokens = [tokens0, tokens1]
            if self.c.arch == "release":
                tokens = list(getattr(self, f"sci_{i+1}")(*tokens))
            for s, (_, blocks, norm) in enumerate(self.level(i)):
                for block in blocks:
                    tokens[s] = block(tokens[s], h, w)
                tokens[s] = norm(tokens[s])
            if self.c.arch == "paper":
                tokens = list(getattr(self, f"sci_{i+1}")(*tokens))
            aligned = [to_map(t, h, w) for t in tokens]
            local = self.LEs[i](*aligned)
            vision += local
            fused.append(self.GEs[i](*local))
            if feature_masks is not None:
                which, masks = feature_masks
                masked = list(aligned)
                masked[which] = masked[which] * masks[i]
                fused_masked.append(self.GEs[i](*self.LEs[i](*masked)))
            streams = list(local) if self.c.arch == "release" else aligned
        return (vision, fused) if feature_masks is None else (vision, fused, fused_masked)


class LinearEmbed(nn.Module):
    def __init__(self, cin, dim):
        super().__init__()
        self.proj = nn.Linear(cin, dim)

    def forward(self, x):
        return to_map(self.proj(to_tokens(x)), *x.shape[2:])


def upsample(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class SegHead(nn.Module):
    def __init__(self, c):
        super().__init__()
        for i in range(4):
            setattr(self, f"linear_c{i+1}", LinearEmbed(c.dims[i], c.decoder_dim))
        self.linear_fuse = nn.Sequential(nn.Conv2d(4 * c.decoder_dim, c.decoder_dim, 1),
                                         nn.BatchNorm2d(c.decoder_dim, eps=c.bn_eps), nn.ReLU())
        self.linear_pred = nn.Conv2d(c.decoder_dim, c.num_classes, 1)

    def forward(self, maps):
        size = maps[0].shape[2:]
        up = [upsample(getattr(self, f"linear_c{i+1}")(maps[i]), size) for i in (3, 2, 1, 0)]
        return self.linear_pred(self.linear_fuse(torch.cat(up, 1)))


class PointConv(nn.Module):
    def __init__(self, cin, dim, eps):
        super().__init__()
        self.pconv = nn.Sequential(nn.Conv2d(cin, dim, 1), nn.BatchNorm2d(dim, eps=eps), nn.ReLU())

    def forward(self, x):
        return self.pconv(x)


class FusionHead(nn.Module):
    def __init__(self, c):
        super().__init__()
        for i in range(4):
            for m in ("rgb", "ir"):
                setattr(self, f"PointConv_{i+1}_{m}", PointConv(c.dims[i], c.fusion_dim, c.bn_eps))
        self.CNN_fuse = nn.Sequential(nn.Conv2d(8 * c.fusion_dim + 6, c.fusion_dim, 3, padding=1),
                                      nn.BatchNorm2d(c.fusion_dim, eps=c.bn_eps), nn.ReLU(),
                                      nn.Conv2d(c.fusion_dim, 3, 1), nn.Sigmoid())

    def forward(self, vision, vi, ir):
        names = [f"PointConv_{i+1}_{m}" for i in range(4) for m in ("rgb", "ir")]
        up = [upsample(getattr(self, n)(x), vi.shape[2:]) for n, x in zip(names, vision)]
        return self.CNN_fuse(torch.cat(up + [vi, ir], 1))


class AMDANet(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c = config
        self.backbone = Backbone(config)
        self.decode_head = SegHead(config)
        self.aux_head = FusionHead(config)

    def forward(self, vi, ir):
        """(B, 3, H, W) twice -> logits (B, classes, H, W), fused image (B, 3, H, W) in (0, 1)."""
        vision, fused = self.backbone(vi, ir)
        return upsample(self.decode_head(fused), vi.shape[2:]), self.aux_head(vision, vi, ir)

    def forward_masked(self, vi, ir, choice, masks):
        """The training pass: logits, masked logits, fused image, masked fused image.

        release: choice 0 masks the 4 fused maps, 1 masks the 8 vision maps. paper: choice is the modality masked.
        """
        size = vi.shape[2:]
        if self.c.arch == "paper":
            vision, fused, fused_m = self.backbone(vi, ir, (choice, masks))
            image = self.aux_head(vision, vi, ir)
            logits, logits_m = (upsample(self.decode_head(f), size) for f in (fused, fused_m))
            return logits, logits_m, image, image
        vision, fused = self.backbone(vi, ir)
        masked = [x * m for x, m in zip(fused if choice == 0 else vision, masks)]
        # The order matters to the running statistics of batch normalisation: masked logits first, then plain.
        logits_m = upsample(self.decode_head(masked if choice == 0 else fused), size)
        logits = upsample(self.decode_head(fused), size)
        image = self.aux_head(vision, vi, ir)
        image_m = self.aux_head(vision if choice == 0 else masked, vi, ir)
        return logits, logits_m, image, image_m


# ---------------------------------------------------------------------------------------------- losses

def chroma(x):
    """RGB (B, 3, H, W) -> Cr, Cb as the published code defines them."""
    r, g, b = x.unbind(1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return (r - y) * 0.713 + 0.5, (b - y) * 0.564 + 0.5


def sobel(x):
    k = torch.tensor([[-1., 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=x.dtype)
    kernels = torch.stack((k, -k.t()))[:, None]
    c = x.shape[1]
    g = F.conv2d(x, kernels.repeat(c, 1, 1, 1), padding=1, groups=c)
    return g[:, 0::2], g[:, 1::2]


def fusion_loss(image, vi, ir, valid, arch):
    """``valid`` (B, 3, H, W) is 1 inside the picture and 0 in the padding the crop added."""
    image = image * valid
    vi = vi.clamp(0, 1) ** 0.8
    mae = lambda a, b: (a - b).abs().mean()
    color = sum(mae(a, b) for a, b in zip(chroma(image), chroma(vi)))
    peak = torch.maximum(vi, ir)
    if arch == "paper":
        # The gradient of the brighter source. S(.) of eq. 15 is the gamma of 0.8 above, in both terms.
        gx, gy = sobel(image - peak)
        return 0.5 * (gx.abs().mean() + gy.abs().mean()) + color
    (fx, fy), (vx, vy), (ix, iy) = sobel(image), sobel(vi), sobel(ir)
    gradient = 0.5 * mae(fx, torch.maximum(vx, ix)) + 0.5 * mae(fy, torch.maximum(vy, iy))
    return 0.5 * mae(image, peak) + gradient + color


def dice_loss(logits, target, ignore, smooth=1e-5):
    """As published: ignored pixels are relabelled class 0 and still count (the later mask is always true)."""
    p = logits.softmax(1)
    target = torch.where(target == ignore, torch.zeros_like(target), target)
    onehot = F.one_hot(target, logits.shape[1]).permute(0, 3, 1, 2).to(p.dtype)
    inter, total = (p * onehot).sum((0, 2, 3)), (p + onehot).sum((0, 2, 3))
    return 1 - ((2 * inter + smooth) / (total + smooth)).mean()


def losses(outputs, vi, ir, valid, target, arch, ignore=255):
    """-> dict of the terms and their weighted ``total`` (eq. 16; release adds dice and splits the mask term)."""
    logits, logits_m, image, image_m = outputs
    t = {"seg": F.cross_entropy(logits, target, ignore_index=ignore), "fus": fusion_loss(image, vi, ir, valid, arch)}
    if arch == "paper":
        soft = logits.detach().softmax(1)
        keep = (target != ignore).to(soft.dtype)
        ce = -(soft * logits_m.log_softmax(1)).sum(1)
        t["cr"] = (ce * keep).sum() / keep.sum()
        t["total"] = t["seg"] + 0.5 * t["fus"] + 0.5 * t["cr"]
        return t
    t["seg_masked"] = F.cross_entropy(logits_m, target, ignore_index=ignore)
    t["fus_masked"] = fusion_loss(image_m, vi, ir, valid, arch)
    t["dice"], t["dice_masked"] = dice_loss(logits, target, ignore), dice_loss(logits_m, target, ignore)
    t["total"] = (t["seg"] + 0.5 * t["fus"] + 0.25 * t["seg_masked"] + 0.25 * t["fus_masked"]
                  + 2 * t["dice"] + 0.5 * t["dice_masked"])
    return t
