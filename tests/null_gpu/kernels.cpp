// Kernels: their names, as torch's libraries register them when they are loaded, and their launches.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "card.h"
#include "contents.h"
#include "counters.h"

namespace {

// Name of each kernel by the address of its function on the host; filled before main() starts, and never destroyed.
std::map<const void*, std::string>& kernel_names() {
    static auto* names = new std::map<const void*, std::string>;
    return *names;
}

cudaError_t launch(const void* function, cudaStream_t stream) {
    Lock lock(state_mutex());
    auto found = kernel_names().find(function);
    run_kernel(found == kernel_names().end() ? "?" : found->second.c_str(), stream);
    return cudaSuccess;
}

// The configuration of `kernel<<<grid, block, shared, stream>>>`.
struct Configuration {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
};
thread_local Configuration pushed;

}  // namespace

// Functions that nvcc's output calls.

EXPORT void** __cudaRegisterFatBinary(void*) {
    static void* handle[1];
    return handle;
}

EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

EXPORT void __cudaRegisterFunction(
    void**, const char* function, char*, const char* name, int, void*, void*, void*, void*, int*) {
    Lock lock(state_mutex());
    kernel_names()[function] = name;
}

EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    pushed = {grid, block, shared, stream};
    return 0;
}

EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    *grid = pushed.grid;
    *block = pushed.block;
    *shared = pushed.shared;
    *static_cast<cudaStream_t*>(stream) = pushed.stream;
    return cudaSuccess;
}

EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}

// Launches.

EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t stream) {
    return launch((const void*)kernel, stream);
}

EXPORT cudaError_t cudaLaunchKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t stream) {
    return launch(function, stream);
}

EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void**) {
    return launch(function, config->stream);
}

EXPORT cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t stream) {
    return launch(function, stream);
}

// driver.c calls this for the kernels that are launched through the driver: those of Triton.
EXPORT void null_gpu_driver_launch(const char* kernel, void* stream) { run_kernel(kernel, stream); }

// Attributes.

EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    memset(attributes, 0, sizeof *attributes);
    attributes->binaryVersion = attributes->ptxVersion = 10 * card()->major + card()->minor;
    attributes->maxThreadsPerBlock = THREADS_PER_BLOCK;
    attributes->numRegs = 32;
    attributes->maxDynamicSharedSizeBytes = SHARED_PER_BLOCK;
    return cudaSuccess;
}

EXPORT cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
EXPORT cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t, cudaFuncAttribute, int, int) { return cudaSuccess; }

EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* blocks, const void*, int threads, size_t, unsigned) {
    *blocks = std::max(1, THREADS_PER_MULTIPROCESSOR / std::max(1, threads));
    return cudaSuccess;
}

EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(
    int* blocks, const void* function, int threads, size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}
