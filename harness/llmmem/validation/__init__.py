"""How accurate estimates are: the accuracy matrix, with a run and an estimate of each setup."""
