"""Bytes over time, from a trace or a run: the model of the caching allocator, attribution, timeline."""
