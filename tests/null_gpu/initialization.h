// CUDA is initialized by the first call that needs the driver.  As with NVIDIA's driver, it then cannot be used in forks
// of the process.
#pragma once

// Initializes CUDA in this process; false in a fork of a process that has done so.
//
// NULL_GPU_LOG: the first call in a process appends a line to this file: the process id and the calling function.
bool initialize(const char* function);
