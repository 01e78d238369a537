"""Processes that run setups and programs: the runner and its worker, and `llmmem exec`."""
