"""PyTorch CPU training step of AMDANet (release, forward_masked + losses + AdamW), median.
usage: cpu_train_peer.py MIT BATCH H W     Environment: THREADS (2), RUNS (5), WARMUP (2)"""
import os, sys, time, resource
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import torch, amdanet_ref as R
torch.set_num_threads(int(os.environ.get("THREADS", 2)))
RUNS, WARMUP = int(os.environ.get("RUNS", 5)), int(os.environ.get("WARMUP", 2))
name, b, h, w = sys.argv[1], *map(int, sys.argv[2:5])
torch.manual_seed(0)
m = R.AMDANet(R.Config.mit(name)).train()
opt = torch.optim.AdamW(m.parameters(), lr=6e-5)
vi, ir = torch.rand(b, 3, h, w), torch.rand(b, 3, h, w); y = torch.randint(0, 9, (b, h, w)); valid = torch.ones(b, 3, h, w)
shapes = [(b, d, -(-h // (4 * 2**i)), -(-w // (4 * 2**i))) for i, d in enumerate(m.c.dims)]
ts = []
for i in range(WARMUP + RUNS):
    t = time.perf_counter()
    masks = [(torch.rand(s) > .15).float() for s in shapes]
    l = R.losses(m.forward_masked(vi, ir, 0, masks), vi, ir, valid, y, "release")["total"]
    opt.zero_grad(); l.backward(); opt.step(); ts.append(time.perf_counter() - t)
ts = sorted(ts[WARMUP:]); median = ts[len(ts) // 2]
print("torch %s %s batch %d %dx%d: %.3f s/step, %.2f img/s, peak RSS %.2f GB" % (torch.__version__, name, b, h, w, median, b / median, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9))
