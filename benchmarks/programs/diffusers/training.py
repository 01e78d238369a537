"""Diffusion models of Diffusers, trained from a configuration and sampled."""

import torch
from diffusers import (
    AutoencoderKL,
    DDPMPipeline,
    DDPMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch.nn import functional


def _unet():
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def unconditional_unet():
    """A U-Net that learns to remove noise, with averaged weights."""
    model = _unet().cuda()
    average = EMAModel(model.parameters(), decay=0.99)
    noises = DDPMScheduler(num_train_timesteps=100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, 3)
    for _ in range(3):
        images = torch.rand(4, 3, 32, 32, device="cuda")
        noise = torch.randn_like(images)
        steps = torch.randint(0, 100, (4,), device="cuda")
        noisy = noises.add_noise(images, noise, steps)
        functional.mse_loss(model(noisy, steps).sample, noise).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average.step(model.parameters())


def conditional_unet():
    """A text-conditioned U-Net in bfloat16 with checkpointing."""
    model = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=64,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).to("cuda", torch.bfloat16)
    model.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(3):
        latents = torch.randn(2, 4, 16, 16, device="cuda", dtype=torch.bfloat16)
        text = torch.randn(2, 16, 64, device="cuda", dtype=torch.bfloat16)
        steps = torch.randint(0, 100, (2,), device="cuda")
        model(latents, steps, encoder_hidden_states=text).sample.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def diffusion_transformer():
    """A DiT that learns a flow."""
    model = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=16,
        patch_size=2,
        norm_num_groups=8,
        num_embeds_ada_norm=10,
    ).cuda()
    flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(3):
        latents = torch.randn(4, 4, 16, 16, device="cuda")
        noise = torch.randn_like(latents)
        chosen = torch.randint(0, 100, (4,))
        sigmas = flow.sigmas[chosen].view(-1, 1, 1, 1).to("cuda")
        classes = torch.randint(0, 10, (4,), device="cuda")
        predicted = model(
            (1 - sigmas) * latents + sigmas * noise,
            timestep=chosen.to("cuda"),
            class_labels=classes,
        ).sample
        functional.mse_loss(predicted, noise - latents).backward()
        optimizer.step()
        optimizer.zero_grad()


def autoencoder():
    """A variational autoencoder of images."""
    model = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    ).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(3):
        images = torch.rand(2, 3, 32, 32, device="cuda")
        latents = model.encode(images).latent_dist
        restored = model.decode(latents.sample()).sample
        loss = functional.mse_loss(restored, images) + 1e-6 * latents.kl().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def sampling():
    """Images from a pipeline."""
    pipeline = DDPMPipeline(_unet(), DDPMScheduler(num_train_timesteps=100)).to("cuda")
    pipeline.set_progress_bar_config(disable=True)
    pipeline(batch_size=2, num_inference_steps=3, output_type="np")
