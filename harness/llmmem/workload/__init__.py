"""A setup made real: the model, the optimizer and the step that runs, on any device."""
