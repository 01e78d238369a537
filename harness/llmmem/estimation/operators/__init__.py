"""What CUDA operators allocate beyond their outputs, a file per family or library."""
