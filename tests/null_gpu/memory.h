// Where the memory is that a pointer points to.
#pragma once

bool is_device_memory(const void* pointer);
bool is_pinned_memory(const void* pointer);
