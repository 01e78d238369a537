"""Training with pytorch_lightning."""

import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class _AutoEncoder(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 784))

    def training_step(self, batch, _):
        (images,) = batch
        loss = nn.functional.mse_loss(self.decoder(self.encoder(images)), images)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, _):
        self.log("val_loss", nn.functional.mse_loss(self.decoder(self.encoder(batch[0])), batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def autoencoder():
    """An autoencoder with validation after each epoch."""
    loader = DataLoader(TensorDataset(torch.rand(256, 784)), batch_size=64)
    trainer = pytorch_lightning.Trainer(
        accelerator="gpu", devices=1, max_epochs=2, logger=False, enable_checkpointing=False
    )
    trainer.fit(_AutoEncoder(), loader, loader)
