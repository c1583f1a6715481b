"""One peer in a process of its own. `benches/compare` starts it, and asks it for times; in between it does nothing.

Lines of JSON come by standard input and go by standard output. The first has the fields of `Settings`; the answer is the
peer's version and, for a forward pass, how far its outputs agree with amdanet's. Each further line asks for a number of
runs; the answer is their seconds, and the most memory that this process has held.

The environment: a peer that is not ready after PEER_SECONDS gives up; PEER_COMPILE_MODE replaces torch.compile's
`max-autotune` on a GPU, which may take many minutes, by another mode, as `reduce-overhead`.
"""
import json
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any, Callable

import cv2
import numpy as np


@dataclass(frozen=True)
class Settings:
    peer: str          # a key of FORWARD or TRAINING
    training: bool
    device: str        # cpu or cuda
    precision: str     # f32, tf32, f16 or bf16
    threads: int
    batch: int
    height: int
    width: int
    weights: str       # .pth in the published format
    onnx: str          # the same network
    visible: str       # the pair, as PNG
    infrared: str
    labels: str        # what amdanet made of it, as PNG
    fused: str


Run = Callable[[], Any]


def read(path: str) -> np.ndarray:
    """(1, 3, H, W) in [0, 1]: RGB, grey repeated, 16 bits by their full range."""
    picture = cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if picture is None:
        sys.exit(f"{path}: cannot be read")
    rgb = picture[..., ::-1].astype(np.float32) / np.float32(np.iinfo(picture.dtype).max)
    return np.ascontiguousarray(rgb.transpose(2, 0, 1))[None]


def pictures(s: Settings) -> tuple[np.ndarray, np.ndarray]:
    """The pair, as often as the batch has pairs."""
    repeat = lambda path: np.repeat(read(path), s.batch, axis=0)
    return repeat(s.visible), repeat(s.infrared)


# ---------------------------------------------------------------------------------------------- PyTorch

def set_up_torch(s: Settings) -> Any:
    """Threads and the type of products; returns the context of a forward pass."""
    import torch
    torch.set_num_threads(s.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = s.precision != "f32"
    torch.backends.cudnn.benchmark = True
    half = {"f16": torch.float16, "bf16": torch.bfloat16}.get(s.precision)
    return lambda: torch.autocast(s.device, half or torch.bfloat16, enabled=half is not None)


def on_host(s: Settings) -> list[Any]:
    """The pictures in the host's memory, pinned if they go to a GPU."""
    import torch
    tensors = [torch.from_numpy(x) for x in pictures(s)]
    return [x.pin_memory() for x in tensors] if s.device == "cuda" else tensors


def in_torch(s: Settings, prepare: Callable[[Any], Any]) -> tuple[str, Run]:
    import torch
    import network
    autocast = set_up_torch(s)
    model = prepare(network.Predict(network.peer(s.weights)).eval().to(s.device))
    host = on_host(s)

    def run() -> tuple[Any, Any]:
        # From the host's memory and back, which is what amdanet's time has in it; `cpu` waits for the device.
        inputs = [picture.to(s.device) for picture in host]
        with torch.inference_mode(), autocast():
            outputs = model(*inputs)
        return tuple(output.cpu() for output in outputs)

    return f"PyTorch {torch.__version__}", run


def eager(s: Settings) -> tuple[str, Run]:
    return in_torch(s, lambda model: model)


def compiled(s: Settings) -> tuple[str, Run]:
    """On a GPU with the search for kernels, and in CUDA graphs, which it brings."""
    import torch
    if s.device == "cpu":
        return in_torch(s, torch.compile)
    mode = os.environ.get("PEER_COMPILE_MODE", "max-autotune")
    version, run = in_torch(s, lambda model: torch.compile(model, mode=mode))
    return f"{version},{mode}", run


# ---------------------------------------------------------------------------------------------- runtimes of ONNX

def onnx_runtime(s: Settings) -> tuple[str, Run]:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = s.threads
    session = onnxruntime.InferenceSession(s.onnx, options, providers=["CPUExecutionProvider"])
    inputs = dict(zip(("visible", "infrared"), pictures(s)))
    return f"ONNX Runtime {onnxruntime.__version__}", lambda: session.run(["labels", "fused"], inputs)


def open_vino(s: Settings) -> tuple[str, Run]:
    import openvino
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": s.threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(s.onnx, "CPU", hints).create_infer_request()
    inputs = list(pictures(s))

    def run() -> tuple[Any, Any]:
        found = request.infer(inputs, share_inputs=True, share_outputs=True)
        return found["labels"], found["fused"]

    return f"OpenVINO {openvino.__version__.split('-')[0]}", run


def tensor_rt(s: Settings) -> tuple[str, Run]:
    import tensorrt as trt
    import torch
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    definition, config = builder.create_network(0), builder.create_builder_config()
    parser = trt.OnnxParser(definition, logger)
    if not parser.parse_from_file(s.onnx):
        raise RuntimeError(parser.get_error(0).desc())
    config.clear_flag(trt.BuilderFlag.TF32)
    if s.precision != "f32":
        config.set_flag(getattr(trt.BuilderFlag, {"tf32": "TF32", "f16": "FP16", "bf16": "BF16"}[s.precision]))
    engine = trt.Runtime(logger).deserialize_cuda_engine(builder.build_serialized_network(definition, config))
    context, stream = engine.create_execution_context(), torch.cuda.Stream()
    host = dict(zip(("visible", "infrared"), on_host(s)))
    tensors = {name: picture.cuda() for name, picture in host.items()}
    for name in ("labels", "fused"):
        tensors[name] = torch.empty(tuple(engine.get_tensor_shape(name)), dtype=torch.uint8, device="cuda")
    for name, tensor in tensors.items():
        context.set_tensor_address(name, tensor.data_ptr())
    torch.cuda.synchronize()

    def run() -> tuple[Any, Any]:
        with torch.cuda.stream(stream):
            for name, picture in host.items():
                tensors[name].copy_(picture)
            context.execute_async_v3(stream.cuda_stream)
            return tensors["labels"].cpu(), tensors["fused"].cpu()

    return f"TensorRT {trt.__version__}", run


# ---------------------------------------------------------------------------------------------- training

def training_step(s: Settings) -> tuple[str, Run]:
    """Two predictions, one from masked fused maps, all losses, gradients, AdamW; without drop path and dropout."""
    import torch
    import amdanet_ref as ref
    import network
    autocast = set_up_torch(s)
    if s.device == "cuda":
        # The losses make their kernels on the default device.
        torch.set_default_device(s.device)
    torch.manual_seed(0)
    model = network.peer(s.weights).to(s.device).train()
    arch, classes = model.c.arch, model.c.num_classes
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-5)
    scaler = torch.amp.GradScaler(s.device, enabled=s.precision == "f16")
    visible, infrared = (torch.from_numpy(x).to(s.device) for x in pictures(s))
    labels = torch.randint(0, classes, (s.batch, s.height, s.width))
    valid = torch.ones_like(visible)
    sides = [(-(-s.height // (4 << level)), -(-s.width // (4 << level))) for level in range(4)]

    def run() -> None:
        masks = [(torch.rand(s.batch, dim, *side) > 0.15).float() for dim, side in zip(model.c.dims, sides)]
        with autocast():
            outputs = model.forward_masked(visible, infrared, 0, masks)
        outputs = tuple(output.float() for output in outputs)
        loss = ref.losses(outputs, visible, infrared, valid, labels, arch)["total"]
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if s.device == "cuda":
            torch.cuda.synchronize()

    return f"PyTorch {torch.__version__}", run


FORWARD = {"eager": eager, "compile": compiled, "onnxruntime": onnx_runtime, "openvino": open_vino,
           "tensorrt": tensor_rt}
TRAINING = {"eager": training_step}


# ---------------------------------------------------------------------------------------------- answers

def agreement(s: Settings, outputs: tuple[Any, Any]) -> dict[str, float]:
    """Shares of the pixels whose labels are equal, and of the fused numbers that differ by 1 of 255 at most."""
    labels, fused = map(np.asarray, outputs)
    ours = cv2.imread(s.labels, cv2.IMREAD_UNCHANGED), cv2.imread(s.fused)[..., ::-1].transpose(2, 0, 1)
    off = np.abs(fused.astype(int) - ours[1].astype(int))
    return {"labels_equal": float((labels == ours[0]).mean()), "fused_close": float((off <= 1).mean())}


def memory(s: Settings) -> dict[str, int | None]:
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    on_device = None
    if s.device == "cuda" and s.peer != "tensorrt":
        import torch
        on_device = torch.cuda.max_memory_reserved()
    return {"peak_bytes": held, "device_peak_bytes": on_device}


class TooLong(BaseException):
    """No Exception, so that no library takes it for a failure of its own."""


def give_up_after(seconds: int) -> None:
    """Raises TooLong then, and each second again in case it was caught; 0: never."""
    def give_up(*_) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)


def main() -> None:
    # What libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = lambda value: print(json.dumps(value), file=answers, flush=True)

    s = Settings(**json.loads(sys.stdin.readline()))
    patience = int(os.environ.get("PEER_SECONDS", "0"))
    try:
        give_up_after(patience)
        version, run = (TRAINING if s.training else FORWARD)[s.peer](s)
        outputs = run()
        give_up_after(0)
        answer({"version": version} | ({} if s.training else agreement(s, outputs)))
    except TooLong:
        give_up_after(0)
        answer({"error": f"it was not ready after {patience} s"})
        # Without waiting for what it may have left under way.
        os._exit(1)
    except Exception as error:  # Whatever a peer meets is a reason in the table, not the end of the measurement.
        answer({"error": f"{type(error).__name__}: {error}".split("\n")[0]})
        return
    for line in sys.stdin:
        asked = json.loads(line)
        seconds = []
        for index in range(asked["warmup"] + asked["runs"]):
            start = time.perf_counter()
            run()
            if index >= asked["warmup"]:
                seconds.append(time.perf_counter() - start)
        answer({"seconds": seconds} | memory(s))


if __name__ == "__main__":
    main()
