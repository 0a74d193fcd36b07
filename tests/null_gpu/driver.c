/* libcuda.so.1: the functions of the driver that torch and Triton call.  Its launches are counted by the runtime. */
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <string.h>

#include "card.h"

#define CONTEXT ((CUcontext)0x10)
#define MODULE ((CUmodule)0x20)

/* A function of the runtime's library, which is loaded before all others; NULL if it is not. */
static void *find(const char *name) { return dlsym(RTLD_DEFAULT, name); }

static CUresult launched(CUfunction kernel, CUstream stream) {
    void (*count)(const char *, void *) = (void (*)(const char *, void *))find("null_gpu_driver_launch");
    if (count) count((const char *)kernel, stream);
    return CUDA_SUCCESS;
}

CUresult cuInit(unsigned flags) {
    int (*initialize)(const char *) = (int (*)(const char *))find("null_gpu_initialize");
    return initialize && !initialize("cuInit") ? CUDA_ERROR_NOT_INITIALIZED : CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
    *version = CUDA_VERSION_REPORTED;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error ? "unknown error" : "no error";
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **text) {
    *text = error ? "CUDA_ERROR_UNKNOWN" : "CUDA_SUCCESS";
    return CUDA_SUCCESS;
}

/* Devices. */

CUresult cuDeviceGetCount(int *count) {
    int numbers[MAX_DEVICES];
    *count = visible_cards(numbers);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    strncpy(name, card()->name, length);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) {
    memset(uuid, 0, sizeof *uuid);
    uuid->bytes[0] = (char)(card_number(device) + 1);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = card()->major; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = card()->minor; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = card()->multiprocessors; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = card()->shared_per_block; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = card()->shared_per_multiprocessor; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = SHARED_PER_BLOCK; break;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = REGISTERS; break;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = THREADS_PER_BLOCK; break;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = WARP_SIZE; break;
        case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = CLOCK_KHZ; break;
        case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = MEMORY_CLOCK_KHZ; break;
        case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = MEMORY_BUS_BITS; break;
        default: *value = 0;
    }
    return CUDA_SUCCESS;
}

/* Contexts.  There is one. */

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    *flags = 0;
    *active = 1;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    *context = CONTEXT;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = CONTEXT;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice *device) {
    *device = 0;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }

CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
    *value = 0;
    return CUDA_SUCCESS;
}

CUresult cuStreamGetCtx(CUstream stream, CUcontext *context) {
    *context = CONTEXT;
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    int (*capturing)(void *) = (int (*)(void *))find("null_gpu_is_capturing");
    *status = capturing && capturing(stream) ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

/* Modules.  A function is represented by its name. */

CUresult cuModuleLoad(CUmodule *module, const char *path) {
    *module = MODULE;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    *module = MODULE;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, CUjit_option *options, void **values) {
    *module = MODULE;
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    *function = (CUfunction)strdup(name);
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? THREADS_PER_BLOCK
             : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS            ? 64
                                                                  : 0;
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

/* Launches. */

CUresult cuLaunchKernel(
    CUfunction kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
    unsigned block_z, unsigned shared, CUstream stream, void **parameters, void **extra) {
    return launched(kernel, stream);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction kernel, void **parameters, void **extra) {
    return launched(kernel, config->hStream);
}

CUresult cuLaunchCooperativeKernel(
    CUfunction kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
    unsigned block_z, unsigned shared, CUstream stream, void **parameters) {
    return launched(kernel, stream);
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction kernel, int threads, size_t shared) {
    *blocks = 1;
    return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction kernel, const CUlaunchConfig *config) {
    *clusters = 1;
    return CUDA_SUCCESS;
}

/* Pointers: Triton's launchers ask for the device's address of each. */

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
    *(CUdeviceptr *)value = pointer;
    return CUDA_SUCCESS;
}

CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute *attributes, void **values, CUdeviceptr pointer) {
    return CUDA_SUCCESS;
}

/* These must exist, but are never called here: they are symbols that torch and Triton link to. */

#define NEVER_CALLED(symbol, name)            \
    CUresult name(void) __asm__(symbol);      \
    CUresult name(void) { return CUDA_ERROR_NOT_SUPPORTED; }

NEVER_CALLED("cuTensorMapEncodeTiled", tensor_map_encode_tiled)
NEVER_CALLED("cuTensorMapEncodeIm2col", tensor_map_encode_im2col)
NEVER_CALLED("cuLinkCreate_v2", link_create)
NEVER_CALLED("cuLinkAddData_v2", link_add_data)
NEVER_CALLED("cuLinkComplete", link_complete)
