"""CPU peers of AMDANet inference, one after the other in one run: MiT-B4, float32, batch 1.
usage: cpu_peers.py [H W] [name ...]   names: eager compile ort openvino
Environment: THREADS (2), MIT (b4), ARCH (release), RUNS (5), WARMUP (2); prints the median.
"""
import os, resource, sys, tempfile, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import numpy as np, torch, amdanet_ref as R
torch.set_num_threads(int(os.environ.get("THREADS", 2)))
H, W = (int(a) for a in sys.argv[1:3]) if len(sys.argv) > 2 else (480, 640)
names = sys.argv[3:] or ["eager", "compile", "ort", "openvino"]
torch.manual_seed(0)
arch = os.environ.get("ARCH", "release")
m = R.AMDANet(R.Config.mit(os.environ.get("MIT", "b4"), num_classes=15, arch=arch)).eval()
x, y = torch.rand(1, 3, H, W), torch.rand(1, 3, H, W)
THREADS, RUNS, WARMUP = (int(os.environ.get(k, d)) for k, d in (("THREADS", 2), ("RUNS", 5), ("WARMUP", 2)))
def bench(f, n=RUNS, warmup=WARMUP):
    for _ in range(warmup): f()
    ts = []
    for _ in range(n):
        t = time.perf_counter(); f(); ts.append(time.perf_counter() - t)
    return sorted(ts)[n // 2]
a = torch.rand(2048, 2048)
t = bench(lambda: a @ a, 5, 2); print("sgemm GFLOP/s %.1f" % (2 * 2048**3 / t / 1e9), flush=True)
with torch.no_grad():
    if "eager" in names: print("eager %.3f s" % bench(lambda: m(x, y)), flush=True)
    if "compile" in names:
        c = torch.compile(m); print("compile %.3f s" % bench(lambda: c(x, y)), flush=True)
    if "ort" in names or "openvino" in names:
        p = os.path.join(tempfile.gettempdir(), "amdanet_%s_%s_%s.onnx" % (os.environ.get("MIT", "b4"), H, W))
        if not os.path.exists(p):
            # The gate's `any()` is data-dependent: the exported graph takes the branch that always runs in practice.
            import torch.nn.functional as F
            def sci(self, first, second):
                mm = torch.sigmoid(self.mlp(torch.cat((first, second), -1)))
                step = self.lambda_param * mm * (second - first)
                return second - step, first + step
            if arch == "release": R.SemanticConsistencyInference.forward = sci
            torch.onnx.export(m, (x, y), p, opset_version=17, input_names=["vi", "ir"], output_names=["logits", "image"], dynamo=False)
        f = {"vi": x.numpy(), "ir": y.numpy()}
    if "ort" in names:
        import onnxruntime as ort
        so = ort.SessionOptions(); so.intra_op_num_threads = THREADS
        s = ort.InferenceSession(p, so, providers=["CPUExecutionProvider"])
        print("onnxruntime %s %.3f s" % (ort.__version__, bench(lambda: s.run(None, f))), flush=True)
    if "openvino" in names:
        import openvino as ov
        core = ov.Core(); cm = core.compile_model(p, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS})
        print("openvino %s f32 %.3f s" % (ov.__version__, bench(lambda: cm([x.numpy(), y.numpy()]))), flush=True)
print("peak RSS %.2f GB" % (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9))
