"""``torch.cuda`` on the meta device: devices, and the choices that PyTorch makes by looking at them."""
