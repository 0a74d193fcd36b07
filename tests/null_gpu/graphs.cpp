#include "graphs.h"

#include <cuda_runtime_api.h>

#include <map>
#include <thread>

#include "contents.h"
#include "counters.h"

namespace {

// The number of launches and copies in a graph.
struct Graph {
    unsigned long long id;
    std::thread::id thread;  // that captured it
    long nodes = 0;
};

std::map<void*, Graph*>& captures() {  // by stream
    static auto* streams = new std::map<void*, Graph*>;
    return *streams;
}

Graph* capture_of(void* stream) {
    auto found = captures().find(stream);
    return found == captures().end() ? nullptr : found->second;
}

}  // namespace

bool add_to_capture(void* stream) {
    Lock lock(state_mutex());
    Graph* graph = capture_of(stream);
    if (graph)
        graph->nodes++;
    else if (!captures().empty())
        count("launch beside a capture");
    return graph;
}

bool may_not_wait(void* stream) {
    Lock lock(state_mutex());
    for (auto& [captured, graph] : captures())
        if (stream ? captured == stream : graph->thread == std::this_thread::get_id()) return true;
    return false;
}

EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    Lock lock(state_mutex());
    if (!stream) return cudaErrorStreamCaptureUnsupported;  // the legacy stream cannot be captured
    static unsigned long long captured = 0;
    captures()[stream] = new Graph{++captured, std::this_thread::get_id()};
    count("capture of a graph");
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    Lock lock(state_mutex());
    Graph* captured = capture_of(stream);
    if (!captured) return cudaErrorIllegalState;
    captures().erase(stream);
    *graph = reinterpret_cast<cudaGraph_t>(captured);
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    Lock lock(state_mutex());
    *status = capture_of(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t* graph,
    const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges, size_t* count) {
    Lock lock(state_mutex());
    Graph* captured = capture_of(stream);
    *status = captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    if (id) *id = captured ? captured->id : 0;
    if (graph) *graph = reinterpret_cast<cudaGraph_t>(captured);
    if (nodes) *nodes = nullptr;
    if (edges) *edges = nullptr;
    if (count) *count = 0;
    return cudaSuccess;
}

EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
    *executable = reinterpret_cast<cudaGraphExec_t>(graph);
    return cudaSuccess;
}

EXPORT cudaError_t cudaGraphInstantiateWithFlags(
    cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags) {
    return cudaGraphInstantiate(executable, graph, flags);
}

EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
    *count = reinterpret_cast<Graph*>(graph)->nodes;
    return cudaSuccess;
}

EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    auto graph = reinterpret_cast<Graph*>(executable);
    std::string name = "graph " + std::to_string(graph->id) + " of " + std::to_string(graph->nodes) + " nodes";
    run_kernel(name.c_str(), stream);
    return cudaSuccess;
}

EXPORT cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }  // an executable may refer to it
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }

// driver.c calls this: Triton's launchers ask the driver.
EXPORT int null_gpu_is_capturing(void* stream) {
    Lock lock(state_mutex());
    return capture_of(stream) != nullptr;
}

// Objects that live as long as a graph; graphs are never destroyed here.

EXPORT cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void*, cudaHostFn_t, unsigned, unsigned) {
    *object = static_cast<cudaUserObject_t>(new_handle());
    return cudaSuccess;
}

EXPORT cudaError_t cudaUserObjectRelease(cudaUserObject_t, unsigned) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphRetainUserObject(cudaGraph_t, cudaUserObject_t, unsigned, unsigned) { return cudaSuccess; }
