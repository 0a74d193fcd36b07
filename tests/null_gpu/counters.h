// What the simulated GPU counts, and how a process reads it (the C functions are called by tests/helpers).
#pragma once
#include <cstddef>
#include <mutex>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

// One lock for all state of the library.
std::recursive_mutex& state_mutex();
using Lock = std::lock_guard<std::recursive_mutex>;

void count(const std::string& event, long times = 1);

// A kernel, a matrix product or a collective operation.
void count_launch(const std::string& kernel, void* stream);

// A call in which the host waits for the device; the callback of null_gpu_on_synchronization is told.
void synchronized(const char* function);

// "stream 0" is the default stream; the others are numbered in the order in which they are first used.
std::string stream_name(void* stream);

void memory_changed(long bytes);
size_t memory_used();

// The next value of all kinds of handles (streams, events, descriptors); none is used twice.
void* new_handle();
