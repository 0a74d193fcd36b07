// Devices, their properties, versions and errors.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>
#include <dlfcn.h>

#include "card.h"
#include "counters.h"
#include "initialization.h"

static thread_local int current_device = 0;

EXPORT cudaError_t cudaGetDeviceCount(int* count) {
    if (!initialize("cudaGetDeviceCount")) return cudaErrorInitializationError;
    int numbers[MAX_DEVICES];
    *count = visible_cards(numbers);
    return *count ? cudaSuccess : cudaErrorNoDevice;
}

EXPORT cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return cudaSuccess;
}

EXPORT cudaError_t cudaSetDevice(int device) {
    if (!initialize("cudaSetDevice")) return cudaErrorInitializationError;
    current_device = device;
    return cudaSuccess;
}

EXPORT cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDA_VERSION_REPORTED;
    return cudaSuccess;
}

EXPORT cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDA_VERSION_REPORTED;
    return cudaSuccess;
}

EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, card()->name);
    p->major = card()->major;
    p->minor = card()->minor;
    p->totalGlobalMem = card_memory();
    p->multiProcessorCount = card()->multiprocessors;
    p->warpSize = WARP_SIZE;
    p->maxThreadsPerBlock = THREADS_PER_BLOCK;
    p->maxThreadsPerMultiProcessor = THREADS_PER_MULTIPROCESSOR;
    p->regsPerBlock = p->regsPerMultiprocessor = REGISTERS;
    p->sharedMemPerBlock = SHARED_PER_BLOCK;
    p->sharedMemPerBlockOptin = card()->shared_per_block;
    p->sharedMemPerMultiprocessor = card()->shared_per_multiprocessor;
    p->l2CacheSize = card()->l2_bytes;
    p->maxGridSize[0] = MAX_GRID_X;
    p->maxGridSize[1] = p->maxGridSize[2] = MAX_GRID_YZ;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = THREADS_PER_BLOCK;
    p->maxThreadsDim[2] = MAX_BLOCK_Z;
    p->memoryBusWidth = MEMORY_BUS_BITS;
    p->concurrentKernels = p->unifiedAddressing = p->canMapHostMemory = p->hostRegisterSupported = 1;
    p->asyncEngineCount = 3;
    p->textureAlignment = 512;
    p->pciBusID = card_number(device) + 1;
    p->uuid.bytes[0] = (char)(card_number(device) + 1);
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = card()->major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = card()->minor; break;
        case cudaDevAttrMultiProcessorCount: *value = card()->multiprocessors; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = card()->shared_per_block; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = card()->shared_per_multiprocessor; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = SHARED_PER_BLOCK; break;
        case cudaDevAttrL2CacheSize: *value = card()->l2_bytes; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = THREADS_PER_BLOCK; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = THREADS_PER_MULTIPROCESSOR; break;
        case cudaDevAttrMaxBlocksPerMultiprocessor: *value = BLOCKS_PER_MULTIPROCESSOR; break;
        case cudaDevAttrMaxRegistersPerBlock:
        case cudaDevAttrMaxRegistersPerMultiprocessor: *value = REGISTERS; break;
        case cudaDevAttrWarpSize: *value = WARP_SIZE; break;
        case cudaDevAttrMaxGridDimX: *value = MAX_GRID_X; break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: *value = MAX_GRID_YZ; break;
        case cudaDevAttrMaxBlockDimX:
        case cudaDevAttrMaxBlockDimY: *value = THREADS_PER_BLOCK; break;
        case cudaDevAttrMaxBlockDimZ: *value = MAX_BLOCK_Z; break;
        default: *value = 0;
    }
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
    snprintf(id, length, "0000:%02x:00.0", card_number(device) + 1);
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
    *can = 1;
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
EXPORT cudaError_t cudaProfilerStart() { return cudaSuccess; }
EXPORT cudaError_t cudaProfilerStop() { return cudaSuccess; }

// Errors.  No error is sticky: each failing call has returned its own.

EXPORT cudaError_t cudaGetLastError() { return cudaSuccess; }
EXPORT cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

EXPORT const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorInitializationError: return "cudaErrorInitializationError";
        default: return "cudaErrorUnknown";
    }
}

EXPORT const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInitializationError: return "initialization error";
        default: return "unknown error";
    }
}

// torch finds the functions of the driver by this.

static int not_supported() { return cudaErrorNotSupported; }

EXPORT cudaError_t cudaGetDriverEntryPointByVersion(
    const char* symbol, void** function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
    static void* driver = dlopen("libcuda.so.1", RTLD_NOW);
    void* found = driver ? dlsym(driver, symbol) : nullptr;
    *function = found ? found : reinterpret_cast<void*>(not_supported);
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
