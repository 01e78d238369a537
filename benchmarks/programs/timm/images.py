"""Image models of timm."""

import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3


def _train(model, size, **options):
    model = model.cuda()
    average = ModelEmaV3(model, decay=0.99)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    loss_of = LabelSmoothingCrossEntropy()
    for step in range(3):
        images = torch.randn(4, 3, size, size, device="cuda")
        labels = torch.arange(step, step + 4, device="cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16, **options):
            loss = loss_of(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)


def vision_transformer():
    """A small ViT under autocast, with averaged weights."""
    model = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, num_classes=10, img_size=64, depth=2
    )
    _train(model, 64)


def resnet():
    """A ResNet-18 under autocast."""
    _train(timm.create_model("resnet18", pretrained=False, num_classes=10), 64)


def convnext():
    """A ConvNeXt under autocast."""
    _train(timm.create_model("convnext_atto", pretrained=False, num_classes=10), 64)
