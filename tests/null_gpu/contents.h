// The contents of device memory.  What the host has copied to it is known until the next kernel, which might overwrite
// it; everything else is zero.  So the numbers that kernels would compute are zeros, and never chance values.
#pragma once
#include <cstddef>

// Copies between host and device in any direction.  Only small copies to the device are done: sizes and flags, by which
// host code decides something.
void copy_contents(void* destination, const void* source, size_t bytes);

void set_contents(void* pointer, int value, size_t bytes);

// Counts a kernel, or a library call that runs one, after which nothing on the device is known.
void run_kernel(const char* name, void* stream);
