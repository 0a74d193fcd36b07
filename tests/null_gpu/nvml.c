/* libnvidia-ml.so.1: NVML, by which torch and NCCL look at the machine's cards. */
#include <stdio.h>

#include "card.h"

typedef void *Device; /* the card's number + 1 */

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6 };

static int installed(void) {
    const char *count = getenv("NULL_GPU_DEVICES");
    return count ? atoi(count) : 1;
}

int nvmlInit(void) { return SUCCESS; }
int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { return error ? "unknown error" : "no error"; }

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = CUDA_VERSION_REPORTED;
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = installed();
    return SUCCESS;
}

int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    *device = (Device)(size_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex(unsigned index, Device *device) { return nvmlDeviceGetHandleByIndex_v2(index, device); }

int nvmlDeviceGetHandleByPciBusId_v2(const char *id, Device *device) {
    unsigned domain, bus;
    if (sscanf(id, "%x:%x", &domain, &bus) != 2) return NOT_SUPPORTED;
    *device = (Device)(size_t)bus;
    return SUCCESS;
}

/* As CUDA_VISIBLE_DEVICES may name a card: GPU-1. */
int nvmlDeviceGetHandleByUUID(const char *uuid, Device *device) {
    unsigned number;
    if (sscanf(uuid, "GPU-%u", &number) != 1 || (int)number >= installed()) return NOT_FOUND;
    return nvmlDeviceGetHandleByIndex_v2(number, device);
}

int nvmlDeviceGetName(Device device, char *name, unsigned length) {
    snprintf(name, length, "%s", card()->name);
    return SUCCESS;
}

/* Card n is busy for 50 + n percent of the time, and n + 1 GiB of its memory are used. */

int nvmlDeviceGetUtilizationRates(Device device, unsigned *rates) {
    const char *broken = getenv("NULL_GPU_NVML_ERROR");
    if (broken) return atoi(broken);
    rates[0] = 49 + (unsigned)(size_t)device;
    rates[1] = 10;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(Device device, unsigned long long *memory) {
    memory[0] = card_memory();
    memory[2] = (unsigned long long)(size_t)device << 30;
    memory[1] = memory[0] - memory[2];
    return SUCCESS;
}

int nvmlDeviceGetUUID(Device device, char *uuid, unsigned length) {
    snprintf(uuid, length, "GPU-%zu", (size_t)device - 1);
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses(Device device, unsigned *count, void *processes) {
    *count = 0;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned *count, void *processes) {
    return nvmlDeviceGetComputeRunningProcesses(device, count, processes);
}

/* The cards have no NVLink and no fabric. */

int nvmlDeviceGetNvLinkRemoteDeviceType(Device device, unsigned link, int *type) { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(Device device, unsigned link, void *pci) { return NOT_SUPPORTED; }
int nvmlDeviceGetGpuFabricInfoV(Device device, void *info) { return NOT_SUPPORTED; }
int nvmlDeviceGetFieldValues(Device device, int count, void *values) { return NOT_SUPPORTED; }
