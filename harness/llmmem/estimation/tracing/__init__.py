"""What a trace sees: storages that come and go on the meta device, and values known on the host."""
