"""Image models of torchvision."""

import torch
from torchvision.models import resnet18, swin_t
from torchvision.models.detection import ssdlite320_mobilenet_v3_large


def classification():
    """A ResNet-18 in channels-last format."""
    model = resnet18(num_classes=10).to("cuda", memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        images = torch.randn(4, 3, 64, 64).to("cuda", memory_format=torch.channels_last)
        labels = torch.arange(step, step + 4, device="cuda")
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def swin_transformer():
    """Inference with a Swin transformer in half precision."""
    model = swin_t(num_classes=10).cuda().half().eval()
    with torch.inference_mode():
        model(torch.randn(2, 3, 224, 224, device="cuda", dtype=torch.float16))


def detection():
    """Training of a detector: boxes decide what it computes."""
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        images = [torch.rand(3, 160, 160, device="cuda") for _ in range(2)]
        targets = [
            {
                "boxes": torch.tensor([[10.0, 10.0, 60.0, 80.0]], device="cuda"),
                "labels": torch.tensor([1], device="cuda"),
            }
            for _ in images
        ]
        sum(model(images, targets).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
