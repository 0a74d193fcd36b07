// Copies between host and device, and memset.
//
// NULL_GPU_ANSWERS replaces what the host reads from the device, by the number of bytes: "1=01,8=0000803f0000803f"
// returns a one for each copy of one byte (a flag), and these bytes for each copy of eight.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

#include "contents.h"
#include "counters.h"
#include "graphs.h"
#include "memory.h"

namespace {

constexpr size_t STAGED = 64 << 10;  // bytes: CUDA copies so many from pageable memory to a buffer, and returns

// Overwrites a copy from the device with the answer for its size, if there is one.
void answer(char* destination, size_t bytes) {
    const char* answers = getenv("NULL_GPU_ANSWERS");
    while (answers && *answers) {
        char* hex;
        bool found = strtoul(answers, &hex, 10) == bytes;
        if (found && *hex == '=')
            for (size_t i = 0; i < bytes; i++) {
                char digits[3] = {hex[1 + 2 * i], hex[2 + 2 * i], 0};
                destination[i] = static_cast<char>(strtoul(digits, nullptr, 16));
            }
        answers = found ? nullptr : strchr(hex, ',');
        if (answers) answers++;
    }
}

cudaError_t copy(
    void* destination, const void* source, size_t bytes, bool asynchronous, cudaStream_t stream) {
    bool to_device = is_device_memory(destination), from_device = is_device_memory(source);
    const void* host = to_device ? source : destination;
    bool pageable = to_device != from_device && !is_pinned_memory(host);
    if (may_not_wait(stream) && (pageable || !asynchronous)) return cudaErrorStreamCaptureUnsupported;
    if (add_to_capture(stream)) return cudaSuccess;
    std::string kind = to_device && from_device ? "on the device"
                       : to_device              ? "to the device"
                       : from_device            ? "from the device"
                                                : "on the host";
    std::string memory = to_device == from_device ? "" : pageable ? " pageable" : " pinned";
    std::string event = "copy " + kind + memory;
    count(event);
    count("bytes of " + event, bytes);
    // https://docs.nvidia.com/cuda/cuda-runtime-api/api-sync-behavior.html
    if (!asynchronous)
        synchronized("cudaMemcpy");
    else if (pageable && (from_device || bytes > STAGED))
        synchronized(to_device ? "cudaMemcpyAsync from pageable memory" : "cudaMemcpyAsync to pageable memory");
    copy_contents(destination, source, bytes);
    if (from_device && !to_device) answer(static_cast<char*>(destination), bytes);
    return cudaSuccess;
}

cudaError_t set(void* pointer, int value, size_t bytes, cudaStream_t stream) {
    if (add_to_capture(stream)) return cudaSuccess;
    count("memset");
    set_contents(pointer, value, bytes);
    return cudaSuccess;
}

}  // namespace

EXPORT cudaError_t cudaMemcpy(void* destination, const void* source, size_t bytes, cudaMemcpyKind) {
    return copy(destination, source, bytes, false, nullptr);
}

EXPORT cudaError_t cudaMemcpyAsync(
    void* destination, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    return copy(destination, source, bytes, true, stream);
}

EXPORT cudaError_t cudaMemcpyPeerAsync(
    void* destination, int, const void* source, int, size_t bytes, cudaStream_t stream) {
    return copy(destination, source, bytes, true, stream);
}

EXPORT cudaError_t cudaMemcpy2DAsync(
    void*, size_t, const void*, size_t, size_t, size_t, cudaMemcpyKind, cudaStream_t) {
    count("copy in two dimensions");
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) { return cudaSuccess; }

EXPORT cudaError_t cudaMemset(void* pointer, int value, size_t bytes) {
    return set(pointer, value, bytes, nullptr);
}

EXPORT cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream) {
    return set(pointer, value, bytes, stream);
}
