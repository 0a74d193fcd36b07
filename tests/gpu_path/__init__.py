"""What the code does on GPUs, without one: on the null GPU, and with fake tensors."""
