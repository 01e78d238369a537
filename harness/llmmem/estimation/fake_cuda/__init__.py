"""``torch.cuda`` on the meta device: its devices and functions, and dispatch as on a GPU."""
