// NCCL: a collective operation returns this rank's own values, as if all other ranks had the same.
#include <nccl.h>

#include <cstring>
#include <sys/random.h>
#include <vector>

#include "contents.h"
#include "counters.h"
#include "faults.h"

struct ncclComm {
    int ranks, rank, device;
    std::string id;  // the same on all its ranks
};

namespace {

size_t bytes_of(size_t elements, ncclDataType_t type) {
    switch (type) {
        case ncclInt8:
        case ncclUint8: return elements;
        case ncclFloat16:
        case ncclBfloat16: return 2 * elements;
        case ncclInt64:
        case ncclUint64:
        case ncclFloat64: return 8 * elements;
        default: return 4 * elements;
    }
}

struct Broadcast {
    const void* source;
    void* destination;
    size_t bytes;
    bool is_root;  // this rank sends
};
thread_local int group_depth = 0;
thread_local std::vector<Broadcast> group;

ncclResult_t collective(const char* name, size_t bytes, cudaStream_t stream) {
    count_launch(name, stream);
    count(std::string("bytes of ") + name, bytes);
    return ncclSuccess;
}

}  // namespace

// Communicators.

EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    memset(id, 0, sizeof *id);
    return getrandom(id, 8, 0) == 8 ? ncclSuccess : ncclSystemError;
}

EXPORT ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t*) {
    int device;
    cudaGetDevice(&device);
    unsigned long long number;
    memcpy(&number, &id, sizeof number);
    *comm = new ncclComm{ranks, rank, device, std::to_string(number)};
    count("ncclCommInit");
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
    return ncclCommInitRankConfig(comm, ranks, id, rank, nullptr);
}

EXPORT ncclResult_t ncclCommInitRankScalable(
    ncclComm_t* comm, int ranks, int rank, int, ncclUniqueId* id, ncclConfig_t* config) {
    return ncclCommInitRankConfig(comm, ranks, *id, rank, config);
}

EXPORT ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    count("ncclCommDestroy");
    wait_for_all_ranks(comm->id, comm->rank, comm->ranks);
    wait_while_stuck();
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommFinalize(ncclComm_t) {
    count("ncclCommFinalize");
    wait_while_stuck();
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommAbort(ncclComm_t) {
    count("ncclCommAbort");
    abort_stuck_work();
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) {
    *error = ncclSuccess;
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommCount(const ncclComm_t comm, int* ranks) {
    *ranks = comm->ranks;
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommUserRank(const ncclComm_t comm, int* rank) {
    *rank = comm->rank;
    return ncclSuccess;
}

// Collective operations.

// A group of one broadcast from each rank is torch's way to gather: the others, too, send this rank's values.
EXPORT ncclResult_t ncclGroupStart() {
    if (group_depth++ == 0) group.clear();
    return ncclSuccess;
}

EXPORT ncclResult_t ncclGroupEnd() {
    if (--group_depth > 0) return ncclSuccess;
    for (auto& mine : group)
        for (auto& other : group)
            if (mine.is_root && !other.is_root && mine.bytes == other.bytes)
                copy_contents(other.destination, mine.source, mine.bytes);
    return ncclSuccess;
}

EXPORT ncclResult_t ncclAllReduce(
    const void* source, void* destination, size_t elements, ncclDataType_t type, ncclRedOp_t, ncclComm_t,
    cudaStream_t stream) {
    copy_contents(destination, source, bytes_of(elements, type));
    return collective("ncclAllReduce", bytes_of(elements, type), stream);
}

EXPORT ncclResult_t ncclAllGather(
    const void* source, void* destination, size_t elements, ncclDataType_t type, ncclComm_t comm, cudaStream_t stream) {
    size_t bytes = bytes_of(elements, type);
    for (int rank = 0; rank < comm->ranks; rank++)
        copy_contents(static_cast<char*>(destination) + rank * bytes, source, bytes);
    return collective("ncclAllGather", bytes * comm->ranks, stream);
}

EXPORT ncclResult_t ncclBroadcast(
    const void* source, void* destination, size_t elements, ncclDataType_t type, int root, ncclComm_t comm,
    cudaStream_t stream) {
    size_t bytes = bytes_of(elements, type);
    bool is_root = comm->rank == root;
    if (is_root) copy_contents(destination, source, bytes);
    if (group_depth > 0) group.push_back({source, destination, bytes, is_root});
    return collective("ncclBroadcast", bytes, stream);
}

EXPORT ncclResult_t ncclBcast(
    void*, size_t elements, ncclDataType_t type, int, ncclComm_t, cudaStream_t stream) {
    return collective("ncclBcast", bytes_of(elements, type), stream);
}

EXPORT ncclResult_t ncclReduceScatter(
    const void*, void*, size_t elements, ncclDataType_t type, ncclRedOp_t, ncclComm_t, cudaStream_t stream) {
    return collective("ncclReduceScatter", bytes_of(elements, type), stream);
}

EXPORT ncclResult_t ncclAlltoAll(
    const void*, void*, size_t elements, ncclDataType_t type, ncclComm_t comm, cudaStream_t stream) {
    return collective("ncclAlltoAll", bytes_of(elements, type) * comm->ranks, stream);
}

EXPORT ncclResult_t ncclSend(
    const void*, size_t elements, ncclDataType_t type, int, ncclComm_t, cudaStream_t stream) {
    return collective("ncclSend", bytes_of(elements, type), stream);
}

EXPORT ncclResult_t ncclRecv(void*, size_t elements, ncclDataType_t type, int, ncclComm_t, cudaStream_t stream) {
    return collective("ncclRecv", bytes_of(elements, type), stream);
}

// Memory.

EXPORT ncclResult_t ncclMemAlloc(void** pointer, size_t bytes) {
    return cudaMalloc(pointer, bytes) ? ncclSystemError : ncclSuccess;
}

EXPORT ncclResult_t ncclMemFree(void* pointer) {
    cudaFree(pointer);
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommRegister(const ncclComm_t, void*, size_t, void** handle) {
    *handle = new_handle();
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommDeregister(const ncclComm_t, void*) { return ncclSuccess; }
