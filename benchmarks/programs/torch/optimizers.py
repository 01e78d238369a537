"""PyTorch's own optimizers and what goes with them."""

import torch
from tiny import VOCABULARY, llama


def _train(model, *optimizers):
    for step in range(3):
        tokens = torch.arange(step, step + 4 * 64, device="cuda").reshape(4, 64) % VOCABULARY
        model(input_ids=tokens, labels=tokens).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def muon_and_adamw():
    """Muon for matrices, AdamW for the rest."""
    model = llama().to("cuda", torch.bfloat16)
    hidden = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    rest = [weight for weight in model.parameters() if all(weight is not one for one in hidden)]
    _train(model, torch.optim.Muon(hidden, lr=1e-3), torch.optim.AdamW(rest, lr=1e-4))


def adafactor():
    """Adafactor of PyTorch."""
    model = llama().cuda()
    _train(model, torch.optim.Adafactor(model.parameters(), lr=1e-3))


def adamw_of_a_loop():
    """AdamW weight by weight."""
    model = llama().cuda()
    _train(model, torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False, fused=False))


def amsgrad():
    """Adam with the greatest second moments."""
    model = llama().cuda()
    _train(model, torch.optim.Adam(model.parameters(), lr=1e-4, amsgrad=True))


def lbfgs():
    """L-BFGS with a closure."""
    model = torch.nn.Linear(256, 256).cuda()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    inputs = torch.randn(64, 256, device="cuda")

    def closure():
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)


def averaged_weights():
    """An exponential average of the weights beside them."""
    model = llama().cuda()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, nesterov=True)
    _train(model, optimizer)
    average.update_parameters(model)
