"""Vision transformers of vit-pytorch."""

import torch
from vit_pytorch import ViT
from vit_pytorch.mae import MAE


def _encoder():
    return ViT(image_size=64, patch_size=16, num_classes=10, dim=128, depth=2, heads=4, mlp_dim=256)


def classification():
    """A ViT as a classifier."""
    model = _encoder().cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for step in range(3):
        labels = torch.arange(step, step + 4, device="cuda")
        scores = model(torch.randn(4, 3, 64, 64, device="cuda"))
        torch.nn.functional.cross_entropy(scores, labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def masked_autoencoder():
    """A masked autoencoder: random patches are hidden."""
    model = MAE(encoder=_encoder(), masking_ratio=0.75, decoder_dim=128, decoder_depth=1).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for _ in range(3):
        model(torch.randn(4, 3, 64, 64, device="cuda")).backward()
        optimizer.step()
        optimizer.zero_grad()
