"""Training with Lightning's Trainer and with Fabric."""

import lightning
import torch
from tiny import VOCABULARY, llama
from torch.utils.data import DataLoader, TensorDataset


class _LanguageModel(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = llama()

    def training_step(self, batch, _):
        (tokens,) = batch
        loss = self.model(input_ids=tokens, labels=tokens).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def _loader():
    tokens = torch.arange(16 * 64).reshape(16, 64) % VOCABULARY
    return DataLoader(TensorDataset(tokens), batch_size=4)


def _fit(**settings):
    lightning.Trainer(
        accelerator="gpu",
        devices=1,
        max_steps=4,
        logger=False,
        enable_checkpointing=False,
        **settings,
    ).fit(_LanguageModel(), _loader())


def trainer():
    """The Trainer in float32."""
    _fit()


def trainer_bf16_mixed():
    """The Trainer under autocast, with clipping and accumulation."""
    _fit(precision="bf16-mixed", gradient_clip_val=1.0, accumulate_grad_batches=2)


def trainer_bf16_true():
    """The Trainer with weights in bfloat16."""
    _fit(precision="bf16-true")


def fabric():
    """A loop with Fabric."""
    made = lightning.Fabric(accelerator="cuda", devices=1, precision="bf16-mixed")
    made.launch()
    model = llama()
    model, optimizer = made.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-4))
    for (tokens,) in made.setup_dataloaders(_loader()):
        optimizer.zero_grad()
        made.backward(model(input_ids=tokens, labels=tokens).loss)
        optimizer.step()
