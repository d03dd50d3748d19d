# SPDX-License-Identifier: BSD-3-Clause
"""Whole scripts as a PyTorch user writes them, run under torch and, with only their import lines changed, here.

What they print must agree. `start(model)` is the one thing that is not torch's: it remembers the parameters that torch
draws, and gives pyneuro the same ones. Random data comes from NumPy.
"""

import contextlib
import io
import re
import textwrap

import pytest
from cases import BACKENDS

RTOL = 1e-4
NUMBER = r"-?\d+\.\d+(?:e[-+]\d+)?"

SCRIPTS = {}


def script(name, text):
    SCRIPTS[name] = textwrap.dedent(text)


script("classifier of blobs, with all the trimmings", """
    import numpy as np
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    from torch.optim.lr_scheduler import OneCycleLR

    rng = np.random.default_rng(0)
    centres = rng.normal(0, 2, (4, 10))
    labels = rng.integers(0, 4, 256)
    X = torch.from_numpy((centres[labels] + rng.normal(0, 1.5, (256, 10))).astype(np.float32))
    y = torch.from_numpy(labels)

    class Residual(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.fc1 = nn.Linear(width, width)
            self.bn = nn.BatchNorm1d(width)
            self.fc2 = nn.Linear(width, width)

        def forward(self, x):
            return x + self.fc2(F.relu(self.bn(self.fc1(x))))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(10, 32)
            self.blocks = nn.Sequential(*[Residual(32) for _ in range(2)])
            self.head = nn.Linear(32, 4)

        def forward(self, x):
            return self.head(F.relu(self.blocks(self.stem(x))))

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Net().to(device)
    start(model)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    epochs, batch = 3, 32
    scheduler = OneCycleLR(optimizer, max_lr=5e-3, epochs=epochs, steps_per_epoch=len(X) // batch)

    for epoch in range(epochs):
        model.train()
        total, correct = 0.0, 0
        order = torch.from_numpy(rng.permutation(len(X)))
        for i in range(0, len(X), batch):
            index = order[i:i + batch]
            xb, yb = X[index].to(device), y[index].to(device)
            optimizer.zero_grad()
            out = model(xb)
            loss = criterion(out, yb)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            total += loss.item() * xb.size(0)
            correct += (out.argmax(dim=1) == yb).sum().item()
        print(f"epoch {epoch}: loss {total / len(X):.6f} accuracy {correct / len(X):.4f} norm {norm:.6f} "
              f"lr {scheduler.get_last_lr()[0]:.8f}")

    model.eval()
    with torch.no_grad():
        logits = model(X)
        probs = F.softmax(logits, dim=-1)
        print(f"eval {criterion(logits, y).item():.6f} {(probs.max(dim=1).values).mean().item():.6f}")

    # a round trip of the state
    state = {k: v.clone() for k, v in model.state_dict().items()}
    twin = Net()
    print(twin.load_state_dict(state), list(state)[:3], len(state))
    twin.eval()
    print("same:", torch.allclose(twin(X), model(X)), torch.equal(twin.stem.weight, model.stem.weight))
    print(sum(p.numel() for p in model.parameters() if p.requires_grad), "parameters")
    print(model)
""")

script("saliency, masks and indexing", """
    import numpy as np
    import torch
    from torch import nn

    rng = np.random.default_rng(1)
    x = torch.tensor(rng.normal(size=(16, 6)), dtype=torch.float32)
    model = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 3))
    start(model)
    for p in model.parameters():
        p.requires_grad_(False)
    x.requires_grad = True
    scores = model(x)
    best, which = scores.max(dim=1)
    best.sum().backward()
    saliency = x.grad.abs()
    print(f"{saliency.mean().item():.6f} {saliency.max().item():.6f}", which.tolist())
    print(saliency.mean(dim=0).argmax().item(), saliency.sum(dim=1).argmin().item())

    with torch.no_grad():
        mask = saliency > saliency.mean()
        print(mask.sum().item(), mask.any(dim=1).all().item(), tuple(mask.float().mean(dim=0).shape))
        kept = x[mask]
        print(kept.shape[0], f"{kept.mean():.6f}")
        masked = torch.where(mask, x, torch.zeros_like(x))
        print(f"{masked.sum():.6f} {x.masked_fill(~mask, 0.0).sum():.6f}")
        z = x.clone()
        z[mask] = 0
        z[:, 0] += 1
        z[[0, 2], 1:3] = -1.0
        z[-1] = torch.arange(6).float()
        print(f"{z.sum():.6f} {z[0, 1]:.4f} {z[-1, -1]:.4f}")
        rows = torch.arange(16)
        print(f"{scores[rows, which].sum():.6f} {scores.gather(1, which.unsqueeze(1)).sum():.6f}")
        print(f"{torch.cat([x, z], dim=1).std():.6f} {torch.stack([x, z]).var(dim=0).mean():.6f}")
""")

script("tabular model: embeddings and numbers", """
    import numpy as np
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    import torch.optim as optim

    rng = np.random.default_rng(2)
    n = 200
    cats = torch.from_numpy(np.stack([rng.integers(0, k, n) for k in (5, 7, 3)], axis=1))
    nums = torch.from_numpy(rng.normal(size=(n, 4)).astype(np.float32))
    target = ((cats[:, 0] % 2).float() + nums[:, 0] > 0.5).float()

    class Tabular(nn.Module):
        def __init__(self, sizes, n_num, hidden):
            super().__init__()
            self.embeds = nn.ModuleList([nn.Embedding(k, (k + 1) // 2) for k in sizes])
            width = sum(e.embedding_dim for e in self.embeds)
            self.norm = nn.BatchNorm1d(n_num)
            self.layers = nn.ModuleDict({"hidden": nn.Linear(width + n_num, hidden), "out": nn.Linear(hidden, 1)})
            self.dropout = nn.Dropout(0.0)

        def forward(self, c, x):
            parts = [e(c[:, i]) for i, e in enumerate(self.embeds)]
            x = torch.cat(parts + [self.norm(x)], 1)
            x = self.dropout(F.leaky_relu(self.layers["hidden"](x), 0.1))
            return self.layers["out"](x).squeeze(-1)

    model = Tabular([5, 7, 3], 4, 16)
    start(model)
    loss_fn = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(1.5))
    decay, no_decay = [], []
    for name, p in model.named_parameters():
        (no_decay if p.ndim == 1 or "embeds" in name else decay).append(p)
    opt = optim.Adam([{"params": decay, "weight_decay": 1e-2}, {"params": no_decay, "weight_decay": 0.0, "lr": 5e-3}], lr=1e-2)
    sched = optim.lr_scheduler.StepLR(opt, step_size=5, gamma=0.5)
    for epoch in range(12):
        model.train()
        for b in range(0, n, 50):
            opt.zero_grad(set_to_none=True)
            loss = loss_fn(model(cats[b:b + 50], nums[b:b + 50]), target[b:b + 50])
            loss.backward()
            nn.utils.clip_grad_value_(model.parameters(), 0.5)
            opt.step()
        sched.step()
        if epoch % 4 == 3:
            model.eval()
            with torch.no_grad():
                pred = torch.sigmoid(model(cats, nums))
                acc = ((pred > 0.5) == target.bool()).float().mean()
            print(f"{epoch} loss {loss.item():.6f} acc {acc.item():.4f} lr {[g['lr'] for g in opt.param_groups][0]:.6f}")
    print(f"{model.norm.running_mean.sum().item():.6f} {model.norm.running_var.sum().item():.6f}", model.norm.num_batches_tracked.item())
    print(f"{model.embeds[1].weight.norm().item():.6f}")
""")

script("autoencoder with tied weights", """
    import numpy as np
    import torch
    import torch.nn as nn
    import torch.nn.functional as F

    rng = np.random.default_rng(3)
    data = torch.from_numpy((rng.normal(size=(128, 3)) @ rng.normal(size=(3, 12))).astype(np.float32))
    data = (data - data.mean(dim=0)) / data.std(dim=0)

    class Tied(nn.Module):
        def __init__(self, width, code):
            super().__init__()
            self.encoder = nn.Linear(width, code)
            self.bias = nn.Parameter(torch.zeros(width))

        def forward(self, x):
            code = torch.tanh(self.encoder(x))
            return F.linear(code, self.encoder.weight.t(), self.bias), code

    model = Tied(12, 4)
    start(model)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for step in range(40):
        opt.zero_grad()
        out, code = model(data)
        loss = F.mse_loss(out, data) + 1e-3 * code.abs().mean()
        loss.backward()
        opt.step()
        if step % 10 == 9:
            print(f"step {step:3d} loss {loss.item():.6f} sparse {code.abs().mean().item():.6f}")
    errors = (model(data)[0] - data).pow(2).mean(1).detach()
    worst, where = errors.max(dim=0)
    print(where.item(), f"{worst.item():.5f}", int((errors > errors.mean() + errors.std()).sum()))
""")

script("variational autoencoder", """
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional as F

    rng = np.random.default_rng(4)
    data = torch.from_numpy((rng.random((96, 16)) < rng.random((1, 16))).astype(np.float32))

    class VAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(16, 24)
            self.fc21, self.fc22 = nn.Linear(24, 3), nn.Linear(24, 3)
            self.decoder = nn.Sequential(nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, 16))

        def encode(self, x):
            h = F.relu(self.fc1(x))
            return self.fc21(h), self.fc22(h)

        def reparameterize(self, mu, logvar, eps):
            std = torch.exp(0.5 * logvar)
            return mu + eps * std

        def forward(self, x, eps):
            mu, logvar = self.encode(x.view(-1, 16))
            return self.decoder(self.reparameterize(mu, logvar, eps)), mu, logvar

    def loss_function(recon, x, mu, logvar):
        bce = F.binary_cross_entropy_with_logits(recon, x.view(-1, 16), reduction="sum")
        kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        return bce + kld

    model = VAE()
    start(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for epoch in range(3):
        train_loss = 0
        for b in range(0, 96, 32):
            batch = data[b:b + 32]
            eps = torch.as_tensor(rng.standard_normal((32, 3)), dtype=torch.float32)
            optimizer.zero_grad()
            recon, mu, logvar = model(batch, eps)
            loss = loss_function(recon, batch, mu, logvar)
            loss.backward()
            train_loss += loss.item()
            optimizer.step()
        print("====> Epoch: {} Average loss: {:.4f}".format(epoch, train_loss / len(data)))
    with torch.no_grad():
        sample = torch.sigmoid(model.decoder(torch.linspace(-1, 1, 15).reshape(5, 3)))
    print(sample.shape[0], f"{sample.mean().item():.6f}")
""")

script("adversarial pair with detach", """
    import numpy as np
    import torch
    import torch.nn as nn

    rng = np.random.default_rng(5)
    real_data = torch.from_numpy(rng.normal(2.0, 0.5, (64, 2)).astype(np.float32))
    G = nn.Sequential(nn.Linear(3, 16), nn.ReLU(inplace=True), nn.Linear(16, 2))
    D = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2, inplace=True), nn.Linear(16, 1))
    start(G)
    start(D)
    criterion = nn.BCEWithLogitsLoss()
    opt_g = torch.optim.Adam(G.parameters(), lr=2e-3, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(D.parameters(), lr=2e-3, betas=(0.5, 0.999))
    for step in range(20):
        noise = torch.from_numpy(rng.standard_normal((64, 3)).astype(np.float32))
        # discriminator
        D.zero_grad()
        label = torch.full((64,), 1.0, dtype=torch.float)
        output = D(real_data).view(-1)
        err_real = criterion(output, label)
        err_real.backward()
        fake = G(noise)
        label.fill_(0.0)
        err_fake = criterion(D(fake.detach()).view(-1), label)
        err_fake.backward()
        opt_d.step()
        # generator
        G.zero_grad()
        label.fill_(1.0)
        err_g = criterion(D(fake).view(-1), label)
        err_g.backward()
        opt_g.step()
        if step % 5 == 4:
            print("[%d] D %.5f G %.5f D(x) %.5f" % (step, (err_real + err_fake).item(), err_g.item(), output.mean().item()))
    # a penalty on the critic's slope
    alpha = torch.from_numpy(rng.random((64, 1)).astype(np.float32))
    mixed = (alpha * real_data + (1 - alpha) * fake.detach()).requires_grad_(True)
    d = D(mixed)
    gradients = torch.autograd.grad(outputs=d, inputs=mixed, grad_outputs=torch.ones_like(d), create_graph=True,
                                    retain_graph=True)[0]
    penalty = ((gradients.norm(2, dim=1) - 1) ** 2).mean()
    D.zero_grad()
    penalty.backward()
    print(f"{penalty.item():.6f} {D[0].weight.grad.norm().item():.6f}")
""")

script("attention and mixing by hand", """
    import math
    import numpy as np
    import torch
    import torch.nn as nn
    import torch.nn.functional as F

    class Attention(nn.Module):
        def __init__(self, dim, heads):
            super().__init__()
            self.heads = heads
            self.qkv = nn.Linear(dim, dim * 3, bias=False)
            self.proj = nn.Linear(dim, dim)

        def forward(self, x):
            B, T, C = x.shape
            qkv = self.qkv(x).reshape(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
            q, k, v = qkv[0], qkv[1], qkv[2]
            att = (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))
            steps = torch.arange(T)
            mask = steps[None, :] > steps[:, None]
            att = att.masked_fill(mask, float("-inf")).softmax(dim=-1)
            return self.proj((att @ v).transpose(1, 2).contiguous().view(B, T, C))

    class Mixer(nn.Module):
        def __init__(self, tokens, dim):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(dim), nn.RMSNorm(dim)
            self.attention = Attention(dim, 2)
            self.tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
            self.channels = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))

        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
            return x + self.channels(self.norm2(x))

    rng = np.random.default_rng(6)
    tokens = torch.from_numpy(rng.integers(0, 11, (24, 5)))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.position = nn.Parameter(torch.zeros(1, 5, 8))
            self.blocks = nn.ModuleList(Mixer(5, 8) for _ in range(2))
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight          # tied
            self.apply(self._init)

        def _init(self, m):
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=0.02)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

        def forward(self, idx, targets=None):
            x = self.embed(idx) + self.position
            for block in self.blocks:
                x = block(x)
            logits = self.head(x)
            if targets is None:
                return logits, None
            return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1), ignore_index=-1)

    model = Model()
    start(model)
    targets = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1)
    targets[:, -1] = -1
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    for step in range(15):
        logits, loss = model(tokens, targets)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        if step % 5 == 4:
            print(f"{step} {loss.item():.5f} {logits.detach().std().item():.5f}")
    print(len(list(model.parameters())), len(model.state_dict()))
    with torch.no_grad():
        print(model(tokens[:2])[0][:, -1].argmax(-1).tolist())
""")

script("recurrent cell in a loop", """
    import numpy as np
    import torch
    import torch.nn as nn

    rng = np.random.default_rng(7)
    t = np.linspace(0, 20, 240)
    series = torch.tensor(np.sin(t) + 0.1 * rng.normal(size=240), dtype=torch.float32)
    windows = torch.stack([series[i:i + 13] for i in range(0, 228, 4)])
    inputs, target = windows[:, :-1], windows[:, -1:]

    class Cell(nn.Module):
        def __init__(self, n_in, n_hidden):
            super().__init__()
            self.i2h = nn.Linear(n_in, 2 * n_hidden)
            self.h2h = nn.Linear(n_hidden, 2 * n_hidden, bias=False)
            self.out = nn.Linear(n_hidden, 1)
            self.n_hidden = n_hidden

        def forward(self, x):
            h = x.new_zeros(x.size(0), self.n_hidden)
            for step in range(x.size(1)):
                gates = self.i2h(x[:, step].unsqueeze(-1)) + self.h2h(h)
                z, c = gates.chunk(2, dim=-1)
                h = h + torch.sigmoid(z) * (torch.tanh(c) - h)
            return self.out(h)

    model = Cell(1, 8)
    start(model)
    opt = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    loss_fn = nn.HuberLoss(delta=0.5)
    accumulate = 4
    for epoch in range(3):
        running = []
        opt.zero_grad()
        for i, (x, y) in enumerate(zip(inputs.split(8), target.split(8))):
            loss = loss_fn(model(x), y) / accumulate
            loss.backward()
            running.append(loss.detach() * accumulate)
            if (i + 1) % accumulate == 0:
                total_norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.5)
                opt.step()
                opt.zero_grad()
        print(f"epoch {epoch} {torch.stack(running).mean().item():.6f} {float(total_norm):.6f}")
""")

script("averaged weights, early stopping, a frozen part", """
    import copy
    import numpy as np
    import torch
    import torch.nn as nn

    rng = np.random.default_rng(9)
    X = torch.from_numpy(rng.normal(size=(160, 8)).astype(np.float32))
    w = torch.from_numpy(rng.normal(size=(8, 1)).astype(np.float32))
    y = X @ w + 0.3 * torch.from_numpy(rng.normal(size=(160, 1)).astype(np.float32))
    x_train, x_val = X[:120], X[120:]
    y_train, y_val = torch.split(y, [120, 40])

    backbone = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU())
    model = nn.Sequential()
    model.add_module("backbone", backbone)
    model.add_module("head", nn.Linear(16, 1))
    start(model)
    for p in model.backbone[0].parameters():
        p.requires_grad = False
    ema = copy.deepcopy(model)
    for p in ema.parameters():
        p.requires_grad_(False)
    opt = torch.optim.SGD(filter(lambda p: p.requires_grad, model.parameters()), lr=0.05, momentum=0.9)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=1)
    best, best_state, patience = float("inf"), None, 0
    for epoch in range(30):
        model.train()
        opt.zero_grad()
        loss = torch.mean((model(x_train) - y_train) ** 2)
        loss.backward()
        opt.step()
        with torch.no_grad():
            for e, p in zip(ema.parameters(), model.parameters()):
                e.mul_(0.9).add_(p, alpha=0.1)
        model.eval()
        with torch.no_grad():
            val = nn.functional.mse_loss(model(x_val), y_val).item()
        plateau.step(val)
        if val < best - 1e-4:
            best, best_state, patience = val, copy.deepcopy(model.state_dict()), 0
        else:
            patience += 1
            if patience >= 3:
                print("stopped at", epoch)
                break
    print(f"{best:.6f} {loss.item():.6f} {opt.param_groups[0]['lr']:.6f}")
    model.load_state_dict(best_state)
    print(f"{nn.functional.mse_loss(model(x_val), y_val).item():.6f} {nn.functional.mse_loss(ema(x_val), y_val).item():.6f}")
    print([n for n, p in model.named_parameters() if p.grad is None], model.head.weight.grad.shape == (1, 16))
    print(repr(opt).split("(")[0], len(opt.state_dict()["state"]))
""")

script("stochastic weight averaging, finished by L-BFGS", """
    import numpy as np
    import torch
    from torch import nn
    from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn
    from torch.utils.data import DataLoader, TensorDataset

    rng = np.random.default_rng(11)
    X = torch.from_numpy(rng.normal(size=(120, 6)).astype(np.float32))
    y = torch.sin(X.sum(dim=1, keepdim=True))
    loader = DataLoader(TensorDataset(X, y), batch_size=30)
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 1))
    start(model)
    criterion = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.8)
    swa_model = AveragedModel(model)
    ema_model = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    swa_start, swa_scheduler = 4, SWALR(optimizer, anneal_strategy="linear", anneal_epochs=3, swa_lr=0.05)
    for epoch in range(8):
        for inputs, target in loader:
            optimizer.zero_grad()
            criterion(model(inputs), target).backward()
            optimizer.step()
            ema_model.update_parameters(model)
        if epoch > swa_start:
            swa_model.update_parameters(model)
            swa_scheduler.step()
        else:
            scheduler.step()
        print(epoch, f"{optimizer.param_groups[0]['lr']:.6f}", swa_model.n_averaged.item(), ema_model.n_averaged.item())
    update_bn(loader, swa_model)
    for m in (model, swa_model, ema_model):
        m.eval()
        with torch.no_grad():
            print(f"{criterion(m(X), y).item():.5f}")

    lbfgs = torch.optim.LBFGS(swa_model.module.parameters(), max_iter=4, line_search_fn="strong_wolfe")

    def closure():
        lbfgs.zero_grad()
        loss = criterion(swa_model(X), y) + 0.01 * sum((p ** 2).sum() for p in swa_model.parameters())
        loss.backward()
        return loss

    for step in range(3):
        print(f"{lbfgs.step(closure).item():.4f}", lbfgs.state_dict()["state"][0]["func_evals"])
""")

script("a model of numbers alone, second-order by hand", """
    import torch

    torch.manual_seed(0)
    A = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    b = torch.tensor([1.0, -1.0], dtype=torch.float64)
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    f = lambda x: 0.5 * x @ A @ x - b @ x + 0.1 * (x ** 4).sum()
    for step in range(6):
        y = f(x)
        g, = torch.autograd.grad(y, x, create_graph=True)
        H = torch.stack([torch.autograd.grad(gi, x, retain_graph=True)[0] for gi in g])
        det = H[0, 0] * H[1, 1] - H[0, 1] * H[1, 0]
        inverse = torch.stack([torch.stack([H[1, 1], -H[0, 1]]), torch.stack([-H[1, 0], H[0, 0]])]) / det
        with torch.no_grad():
            x -= inverse @ g
        print(f"{step} {y.item():.8f} {g.norm().item():.6f}")
    print(f"{(H * inverse).sum().item():.6f} {torch.stack([x, b]).norm(dim=1).max().item():.6f}")
""")


# --------------------------------------------------------------------------------------------------------------- running


def adapted(text):
    """The script with torch's import lines naming pyneuro; no other line is touched."""
    lines = []
    for line in text.splitlines():
        if re.match(r"\s*(import|from) torch\b", line):
            line = re.sub(r"^(\s*)import torch$", r"\1import pyneuro as torch", line)
            line = re.sub(r"^(\s*)(import|from) torch\b", r"\1\2 pyneuro", line)
        lines.append(line)
    return "\n".join(lines)


def printed(text, name, start):
    out = io.StringIO()
    code = compile(text, f"<{name}>", "exec")
    with contextlib.redirect_stdout(out):
        exec(code, {"__name__": "__main__", "start": start})
    return out.getvalue().splitlines()


@pytest.fixture(scope="module")
def of_torch():
    """What each script prints under torch, and the states that its models started from; run once."""
    torch = pytest.importorskip("torch", reason="torch is not installed: there is nothing to compare scripts with")
    done = {}

    def run(name):
        if name not in done:
            states = []
            torch.manual_seed(7)
            lines = printed(SCRIPTS[name], name, lambda m: states.append({k: v.clone() for k, v in m.state_dict().items()}))
            done[name] = lines, states
        return done[name]

    return run


def same_line(mine, theirs):
    """Equal text, and numbers with a point that differ by no more than RTOL, or one in the last place printed."""
    if re.sub(NUMBER, "#", mine) != re.sub(NUMBER, "#", theirs):
        return False
    pairs = zip(re.findall(NUMBER, mine), re.findall(NUMBER, theirs))
    return all(abs(float(a) - float(b)) <= RTOL * abs(float(b)) + 10.0 ** -len(b.partition(".")[2].partition("e")[0])
               for a, b in pairs)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_script(name, on, of_torch):
    theirs, states = of_torch(name)
    waiting = iter(states)
    mine = printed(adapted(SCRIPTS[name]), name, lambda m: m.load_state_dict(next(waiting)))
    assert len(mine) == len(theirs) > 1
    for a, b in zip(mine, theirs):
        assert same_line(a, b), f"pyneuro printed\n  {a}\ntorch\n  {b}"


def test_only_import_lines_change():
    for text in SCRIPTS.values():
        changed = [(a, b) for a, b in zip(text.splitlines(), adapted(text).splitlines()) if a != b]
        assert changed and all(re.match(r"(import|from) torch\b", a) and "pyneuro" in b for a, b in changed)
