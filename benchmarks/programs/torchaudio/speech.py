"""Speech models of torchaudio."""

import torch
from torchaudio.models import Conformer
from torchaudio.transforms import MelSpectrogram


def conformer():
    """A Conformer with the CTC loss, on rows of different lengths."""
    features = MelSpectrogram(n_mels=80).cuda()
    model = Conformer(
        input_dim=80, num_heads=4, ffn_dim=128, num_layers=2, depthwise_conv_kernel_size=15
    ).cuda()
    head = torch.nn.Linear(80, 32).cuda()
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-4)
    for _ in range(3):
        spectrum = features(torch.randn(2, 8000, device="cuda")).transpose(1, 2)
        lengths = torch.tensor([41, 30], device="cuda")
        encoded, lengths = model(spectrum, lengths)
        scores = head(encoded).log_softmax(-1).transpose(0, 1)
        labels = torch.arange(1, 13, device="cuda").reshape(2, 6)
        counts = torch.tensor([6, 5], device="cuda")
        torch.nn.functional.ctc_loss(scores, labels, lengths, counts).backward()
        optimizer.step()
        optimizer.zero_grad()
