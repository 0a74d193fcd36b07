// Memory of the device and pinned memory of the host.  Both are ordinary memory of the process; pages of "device"
// memory exist only where something is written, so that 80 GB need no memory.
#include <cuda_runtime_api.h>

#include <cstring>
#include <map>
#include <sys/mman.h>

#include "card.h"
#include "counters.h"
#include "initialization.h"
#include "memory.h"

namespace {

using Blocks = std::map<const char*, size_t>;  // size of each block by its first address

constexpr size_t PAGE = 4096;
constexpr size_t GUARD = 2 << 20;  // unused bytes between blocks, so that they are never neighbors

Blocks& device_blocks() {
    static Blocks* blocks = new Blocks;
    return *blocks;
}

Blocks& pinned_blocks() {
    static Blocks* blocks = new Blocks;
    return *blocks;
}

bool contains(const Blocks& blocks, const void* pointer) {
    Lock lock(state_mutex());
    auto address = static_cast<const char*>(pointer);
    auto next = blocks.upper_bound(address);
    if (next == blocks.begin()) return false;
    auto [start, size] = *std::prev(next);
    return address < start + size;
}

void* map_pages(size_t bytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* start = mmap(nullptr, bytes + GUARD, PROT_READ | PROT_WRITE, flags, -1, 0);
    return start == MAP_FAILED ? nullptr : start;
}

// Removes a block, and returns its size; 0 if there is none.
size_t take(Blocks& blocks, void* start) {
    Lock lock(state_mutex());
    auto node = blocks.extract(static_cast<char*>(start));
    return node.empty() ? 0 : node.mapped();
}

}  // namespace

bool is_device_memory(const void* pointer) { return contains(device_blocks(), pointer); }
bool is_pinned_memory(const void* pointer) { return contains(pinned_blocks(), pointer); }

EXPORT cudaError_t cudaMalloc(void** pointer, size_t bytes) {
    if (!initialize("cudaMalloc")) return cudaErrorInitializationError;
    Lock lock(state_mutex());
    count("cudaMalloc");
    bytes = (bytes + PAGE - 1) / PAGE * PAGE;
    void* start = memory_used() + bytes > card_memory() - CONTEXT_BYTES ? nullptr : map_pages(bytes);
    if (!start) {
        count("cudaMalloc failed");
        return cudaErrorMemoryAllocation;
    }
    device_blocks()[static_cast<char*>(start)] = bytes;
    memory_changed(bytes);
    *pointer = start;
    return cudaSuccess;
}

EXPORT cudaError_t cudaFree(void* pointer) {
    if (!pointer) return cudaSuccess;
    // A synchronization too, but torch calls it with its allocator locked: Python code must not run here.
    count("synchronization cudaFree");
    if (size_t bytes = take(device_blocks(), pointer)) {
        memory_changed(-static_cast<long>(bytes));
        munmap(pointer, bytes + GUARD);
    }
    return cudaSuccess;
}

EXPORT cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) { return cudaMalloc(pointer, bytes); }
EXPORT cudaError_t cudaMallocManaged(void** pointer, size_t bytes, unsigned) { return cudaMalloc(pointer, bytes); }
EXPORT cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return cudaFree(pointer); }

EXPORT cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    *total = card_memory();
    *free = card_memory() - CONTEXT_BYTES - memory_used();
    return cudaSuccess;
}

EXPORT cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
    if (!initialize("cudaHostAlloc")) return cudaErrorInitializationError;
    void* start = map_pages(bytes);
    if (!start) return cudaErrorMemoryAllocation;
    Lock lock(state_mutex());
    count("cudaHostAlloc");
    pinned_blocks()[static_cast<char*>(start)] = bytes;
    *pointer = start;
    return cudaSuccess;
}

EXPORT cudaError_t cudaMallocHost(void** pointer, size_t bytes) { return cudaHostAlloc(pointer, bytes, 0); }

EXPORT cudaError_t cudaFreeHost(void* pointer) {
    if (size_t bytes = take(pinned_blocks(), pointer)) munmap(pointer, bytes + GUARD);
    return cudaSuccess;
}

EXPORT cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned) {
    Lock lock(state_mutex());
    count("cudaHostRegister");
    pinned_blocks()[static_cast<char*>(pointer)] = bytes;
    return cudaSuccess;
}

EXPORT cudaError_t cudaHostUnregister(void* pointer) {
    count("cudaHostUnregister");
    return take(pinned_blocks(), pointer) ? cudaSuccess : cudaErrorHostMemoryNotRegistered;
}

EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = cudaMemoryTypeUnregistered;
    if (is_device_memory(pointer)) {
        attributes->type = cudaMemoryTypeDevice;
        attributes->devicePointer = const_cast<void*>(pointer);
    } else if (is_pinned_memory(pointer)) {
        attributes->type = cudaMemoryTypeHost;
        attributes->hostPointer = attributes->devicePointer = const_cast<void*>(pointer);
    }
    return cudaSuccess;
}

EXPORT cudaError_t cudaGetSymbolAddress(void** pointer, const void*) {
    static char variables[1 << 16];  // all variables of the device's code are here
    *pointer = variables;
    return cudaSuccess;
}

EXPORT cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t*, void*) { return cudaErrorNotSupported; }
