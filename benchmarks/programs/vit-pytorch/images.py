"""Vision transformers of vit-pytorch."""

import torch
from vit_pytorch import ViT
from vit_pytorch.na_vit import NaViT


def _encoder():
    return ViT(image_size=64, patch_size=16, num_classes=10, dim=128, depth=2, heads=4, mlp_dim=256)


def classification():
    """A ViT as a classifier."""
    model = ViT(
        image_size=64, patch_size=16, num_classes=10, dim=128, depth=2, heads=4, mlp_dim=256
    ).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for step in range(3):
        labels = torch.arange(step, step + 4, device="cuda")
        scores = model(torch.randn(4, 3, 64, 64, device="cuda"))
        torch.nn.functional.cross_entropy(scores, labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def images_of_different_sizes():
    """NaViT: images of different sizes in one row of patches."""
    model = NaViT(
        image_size=64, patch_size=16, num_classes=10, dim=128, depth=2, heads=4, mlp_dim=256
    ).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for _ in range(3):
        images = [[torch.randn(3, 64, 64), torch.randn(3, 32, 48)], [torch.randn(3, 48, 64)]]
        scores = model([[image.cuda() for image in row] for row in images])
        torch.nn.functional.cross_entropy(scores, torch.arange(3, device="cuda")).backward()
        optimizer.step()
        optimizer.zero_grad()
