// CUDA graphs: what is launched on a stream that is captured does not run, but becomes part of a graph.
#pragma once

// Adds a launch or a copy to the graph that is captured from this stream; false if it is not captured.
bool add_to_capture(void* stream);

// Whether a wait would be an error: for a stream that is captured, or for the device (nullptr) in a thread that captures.
bool may_not_wait(void* stream);
