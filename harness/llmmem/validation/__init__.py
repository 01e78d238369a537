"""How far off estimates are: the accuracy matrix, estimate beside run."""
