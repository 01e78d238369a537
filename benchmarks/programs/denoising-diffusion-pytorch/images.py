"""Diffusion with denoising-diffusion-pytorch."""

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet


def training_and_sampling():
    """A small U-Net that is trained and then draws images."""
    model = Unet(dim=16, dim_mults=(1, 2), flash_attn=False)
    diffusion = GaussianDiffusion(model, image_size=16, timesteps=10).cuda()
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4)
    for _ in range(3):
        diffusion(torch.rand(4, 3, 16, 16, device="cuda")).backward()
        optimizer.step()
        optimizer.zero_grad()
    diffusion.sample(batch_size=2)
