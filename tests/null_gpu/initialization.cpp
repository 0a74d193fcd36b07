#include "initialization.h"

#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <unistd.h>

#include "counters.h"

bool initialize(const char* function) {
    Lock lock(state_mutex());
    static pid_t owner = 0;
    if (owner) return owner == getpid();
    owner = getpid();
    if (const char* path = getenv("NULL_GPU_LOG")) {
        int file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0644);
        dprintf(file, "%d %s\n", getpid(), function);
        close(file);
    }
    return true;
}

// For driver.c, which is another library.
EXPORT int null_gpu_initialize(const char* function) { return initialize(function); }
