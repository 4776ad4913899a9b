"""PyTorch's rule of SGD, and the schedule of its learning rate."""
