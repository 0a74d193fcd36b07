// Faults of a GPU, switched on by environment variables.
#pragma once
#include <string>

// NULL_GPU_STUCK_FOLDER: while this folder has a file named by the process id, the streams of the process make no
// progress, as after a collective operation whose peer is gone.  ncclCommAbort ends that for good.
bool device_is_stuck();
void wait_while_stuck();
void abort_stuck_work();

// NULL_GPU_DESTROY_FOLDER: ncclCommDestroy waits until all ranks of the communicator have called it.
void wait_for_all_ranks(const std::string& communicator, int rank, int ranks);
