#include "counters.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <sstream>

namespace {

using Counts = std::map<std::string, long>;
using Callback = void (*)(const char* function);

// Never destroyed: torch's destructors call CUDA after those of this library.
struct State {
    std::recursive_mutex mutex;
    Counts events, kernels;
    std::map<void*, std::string> streams;
    size_t used = 0, peak = 0;  // bytes of device memory
    Callback on_synchronization = nullptr;
};

State& state() {
    static State* instance = new State;
    return *instance;
}

}  // namespace

std::recursive_mutex& state_mutex() { return state().mutex; }

void count(const std::string& event, long times) {
    Lock lock(state().mutex);
    state().events[event] += times;
}

void count_launch(const std::string& kernel, void* stream) {
    Lock lock(state().mutex);
    state().kernels[stream_name(stream) + "\t" + kernel]++;
}

void synchronized(const char* function) {
    count(std::string("synchronization ") + function);
    if (Callback callback = state().on_synchronization) callback(function);
}

std::string stream_name(void* stream) {
    Lock lock(state().mutex);
    if (!stream) return "stream 0";
    auto& names = state().streams;
    return names.try_emplace(stream, "stream " + std::to_string(names.size() + 1)).first->second;
}

void memory_changed(long bytes) {
    Lock lock(state().mutex);
    state().used += bytes;
    state().peak = std::max(state().peak, state().used);
}

size_t memory_used() {
    Lock lock(state().mutex);
    return state().used;
}

void* new_handle() {
    static std::atomic<size_t> next{0x1000};
    return reinterpret_cast<void*>(next += 16);
}

EXPORT void null_gpu_on_synchronization(Callback callback) { state().on_synchronization = callback; }

EXPORT void null_gpu_reset() {
    Lock lock(state().mutex);
    state().events.clear();
    state().kernels.clear();
    state().peak = state().used;
}

// Lines of "event <times> <name>", "kernel <times> <stream> <name>" and "memory <used> <peak>", separated by tabs.
EXPORT const char* null_gpu_report() {
    Lock lock(state().mutex);
    static std::string text;
    std::ostringstream out;
    for (auto& [name, times] : state().events) out << "event\t" << times << "\t" << name << "\n";
    for (auto& [name, times] : state().kernels) out << "kernel\t" << times << "\t" << name << "\n";
    out << "memory\t" << state().used << "\t" << state().peak << "\n";
    return (text = out.str()).c_str();
}
