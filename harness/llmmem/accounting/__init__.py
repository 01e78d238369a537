"""Bytes over time, whoever reports them: the caching allocator's model, attribution, timeline."""
