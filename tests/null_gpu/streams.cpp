// Streams and events.  All work is complete as soon as it is queued, unless a fault keeps the device stuck.
#include <cuda_runtime_api.h>

#include "counters.h"
#include "faults.h"
#include "graphs.h"

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
    *stream = static_cast<cudaStream_t>(new_handle());
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

EXPORT cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
    *priority = 0;
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamQuery(cudaStream_t) { return device_is_stuck() ? cudaErrorNotReady : cudaSuccess; }

EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t, unsigned) {
    count("wait for an event on " + stream_name(stream));
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (stream && may_not_wait(stream)) return cudaErrorStreamCaptureUnsupported;
    wait_while_stuck();
    synchronized("cudaStreamSynchronize");
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceSynchronize() {
    if (may_not_wait(nullptr)) return cudaErrorStreamCaptureUnsupported;
    wait_while_stuck();
    synchronized("cudaDeviceSynchronize");
    return cudaSuccess;
}

// Events.

EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
    *event = static_cast<cudaEvent_t>(new_handle());
    count(flags & cudaEventBlockingSync ? "event that blocks" : "event that spins");
    return cudaSuccess;
}

EXPORT cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }

EXPORT cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t stream) {
    count("event recorded on " + stream_name(stream));
    return cudaSuccess;
}

EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
    return cudaEventRecord(event, stream);
}

EXPORT cudaError_t cudaEventQuery(cudaEvent_t) { return device_is_stuck() ? cudaErrorNotReady : cudaSuccess; }

EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t) {
    if (may_not_wait(nullptr)) return cudaErrorStreamCaptureUnsupported;
    wait_while_stuck();
    synchronized("cudaEventSynchronize");
    return cudaSuccess;
}

EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
    *milliseconds = 1;
    return cudaSuccess;
}

// Host functions run at once.

EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
    function(data);
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void* data, unsigned) {
    function(stream, cudaSuccess, data);
    return cudaSuccess;
}
