// A CUDA driver without a GPU: the functions that src/engine/executor/cuda calls, on the host's memory, with the kernel
// emulator to run what is launched. Linked with the emulator's library into a libcuda.so.1 that the tests put before any other.
//
// Work on a stream is queued. With `late` it runs only when something waits for it, as late as the driver's contract
// allows, so that a missing wait, or host memory reused too early, changes results instead of passing by luck.
//
// KEEL_FAKE_CUDA holds settings, separated by spaces:
//     version=13000 devices=1 capability=90 memory=1073741824   what there is
//     late                   queued work runs as late as allowed
//     fail=NAME:N:CODE       the N-th call of function NAME returns CODE
//     fault=N:CODE           the N-th kernel that runs breaks the context with CODE, as an illegal address does
//     idle=N                 the N-th kernel that runs does nothing
//     skewed                 by the images every kernel takes one parameter more than the emulator's table says
//     without=KERNEL         the images lack this kernel
//     log=PATH               one line for each module, launch and graph, and what is left when the context goes
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "simt/abi.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum Code { kOk = 0, kInvalidValue = 1, kOutOfMemory = 2, kStub = 34, kNoDevice = 100, kInvalidImage = 200, kNotFound = 500,
            kLaunchFailed = 719, kCaptureUnsupported = 900, kCaptureInvalidated = 901 };

struct Stream;
struct Event {
    uint64_t asked = 0, done = 0;
    Stream* stream = nullptr;
    double seconds = 0;
};
struct Operation {
    std::function<void()> act;
    Event* waits_for = nullptr;
    uint64_t generation = 0;
};
struct Graph {
    std::vector<Operation> operations;
};
struct Stream {
    std::deque<Operation> queue;
    Graph* capture = nullptr;
    bool is_spoilt = false;
};
struct Function {
    const KeelKernel* kernel;
    int shared_opt_in = 48 * 1024;
    uint32_t block[3];  // keel_block_* of KERNEL: threads, shared bytes, parameters
};
struct Module {
    std::map<std::string, Function> functions;
};

struct Driver {
    std::recursive_mutex lock;
    std::map<std::string, std::string> settings;
    std::map<std::string, std::pair<int, int>> failures;  // function: which call, code
    std::map<std::string, int> calls;
    std::map<uintptr_t, size_t> device_memory, host_memory, constants;
    Stream null_stream;
    size_t used = 0, capacity = 0;
    int streams = 0, events = 0, graphs = 0, modules = 0, contexts = 0;
    int kernels_run = 0, fault_at = 0, fault_code = 0, broken = 0, capturing = 0;
    bool is_late = false;
    FILE* log = nullptr;

    Driver() {
        const char* text = getenv("KEEL_FAKE_CUDA");
        std::string rest = text ? text : "";
        while (!rest.empty()) {
            size_t end = rest.find(' ');
            std::string word = rest.substr(0, end);
            rest = end == std::string::npos ? "" : rest.substr(end + 1);
            size_t equals = word.find('=');
            std::string value = equals == std::string::npos ? "1" : word.substr(equals + 1);
            word = word.substr(0, equals);
            if (word == "fail") {
                size_t first = value.find(':'), second = value.find(':', first + 1);
                failures[value.substr(0, first)] = {atoi(value.c_str() + first + 1), atoi(value.c_str() + second + 1)};
            } else {
                settings[word] = value;
            }
        }
        is_late = settings.count("late");
        capacity = strtoull(setting("memory", "1073741824"), nullptr, 10);
        if (settings.count("fault")) sscanf(settings["fault"].c_str(), "%d:%d", &fault_at, &fault_code);
        if (settings.count("log")) log = fopen(settings["log"].c_str(), "a");
    }
    const char* setting(const char* name, const char* otherwise) {
        auto found = settings.find(name);
        return found == settings.end() ? otherwise : found->second.c_str();
    }
    int number(const char* name, const char* otherwise) { return atoi(setting(name, otherwise)); }
    template <class... A> void say(const char* format, A... values) {
        if (!log) return;
        fprintf(log, format, values...);
        fflush(log);
    }
};
// Never destroyed: streams may be released while the process ends.
Driver& driver() {
    static Driver& one = *new Driver;
    return one;
}

// What every function does first: the failure it was told to return, or the one that broke the context.
int enter(const char* name, bool outlives_faults = false) {
    Driver& d = driver();
    int call = ++d.calls[name];
    auto failure = d.failures.find(name);
    if (failure != d.failures.end() && failure->second.first == call) return failure->second.second;
    return outlives_faults ? 0 : d.broken;
}
#define ENTER(...) \
    std::lock_guard<std::recursive_mutex> guard(driver().lock); \
    if (int code = enter(__VA_ARGS__)) return code
#define NOT_WHILE_CAPTURING \
    if (driver().capturing) return kCaptureUnsupported

bool lies_in(const std::map<uintptr_t, size_t>& memory, const void* pointer, size_t bytes) {
    auto after = memory.upper_bound(uintptr_t(pointer));
    if (after == memory.begin()) return false;
    auto [start, length] = *std::prev(after);
    return uintptr_t(pointer) + bytes <= start + length;
}
bool on_device(uint64_t pointer, size_t bytes) {
    return lies_in(driver().device_memory, reinterpret_cast<void*>(pointer), bytes);
}

double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return double(time.tv_sec) + 1e-9 * double(time.tv_nsec);
}

void drain(Stream& stream, Event* until = nullptr, uint64_t generation = 0) {
    while (!stream.queue.empty() && (!until || until->done < generation)) {
        Operation next = stream.queue.front();
        stream.queue.pop_front();
        if (next.waits_for) {
            if (next.waits_for->done < next.generation)
                drain(*next.waits_for->stream, next.waits_for, next.generation);
        } else if (!driver().broken || next.generation) {  // records happen even then
            next.act();
        }
    }
}
int enqueue(Stream* stream, Operation operation) {
    if (!stream) stream = &driver().null_stream;
    if (stream->capture) {
        stream->capture->operations.push_back(operation);
        return kOk;
    }
    stream->queue.push_back(operation);
    if (!driver().is_late) drain(*stream);
    return kOk;
}
int enqueue_copy(Stream* stream, void* to, const void* from, size_t bytes) {
    return enqueue(stream, {[=] { memcpy(to, from, bytes); }});
}

int memory_limit() { return driver().number("capability", "90") == 80 ? 163 * 1024 : 227 * 1024; }

void run_kernel(const KeelKernel* kernel, const uint32_t* grid, const uint32_t* block, uint32_t shared, uint64_t* values) {
    Driver& d = driver();
    if (++d.kernels_run == d.fault_at) {
        d.broken = d.fault_code;
        return;
    }
    if (d.kernels_run == d.number("idle", "0")) return;
    std::vector<void*> arguments;
    for (uint32_t i = 0; i < kernel->parameter_count; ++i) arguments.push_back(&values[i]);
    KeelOptions options{};
    options.copies = KEEL_COPIES_LATE;
    options.shared_limit = uint32_t(memory_limit());
    if (keel_simt_launch(kernel, grid, block, shared, arguments.data(), &options, nullptr, 0) == 0) return;
    fprintf(stderr, "fake CUDA driver: %s\n", keel_simt_last_error());
    d.broken = kLaunchFailed;
}

}  // namespace

// ---- What there is ----

EXPORT int cuInit(unsigned) {
    ENTER("cuInit");
    return kOk;
}
EXPORT int cuDriverGetVersion(int* version) {
    ENTER("cuDriverGetVersion");
    *version = driver().number("version", "13000");
    return kOk;
}
EXPORT int cuDeviceGetCount(int* count) {
    ENTER("cuDeviceGetCount");
    *count = driver().number("devices", "1");
    return kOk;
}
EXPORT int cuDeviceGet(int* device, int ordinal) {
    ENTER("cuDeviceGet");
    *device = ordinal;
    return kOk;
}
EXPORT int cuDeviceGetName(char* name, int length, int device) {
    ENTER("cuDeviceGetName");
    snprintf(name, size_t(length), "Emulated GPU %d", device);
    return kOk;
}
EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) {
    ENTER("cuDeviceTotalMem_v2");
    *bytes = driver().capacity;
    return kOk;
}
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
    ENTER("cuDeviceGetAttribute");
    int capability = driver().number("capability", "90");
    switch (attribute) {
        case 1: *value = 1024; return kOk;         // threads of a block
        case 13: *value = 1000000; return kOk;     // clock in kHz
        case 16: *value = 2; return kOk;           // multiprocessors
        case 75: *value = capability / 10; return kOk;
        case 76: *value = capability % 10; return kOk;
        case 97: *value = memory_limit(); return kOk;
        default: return kInvalidValue;
    }
}
EXPORT int cuGetErrorName(int code, const char** name) {
    static const std::map<int, const char*> names{
        {kInvalidValue, "CUDA_ERROR_INVALID_VALUE"}, {kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY"},
        {kStub, "CUDA_ERROR_STUB_LIBRARY"}, {kNoDevice, "CUDA_ERROR_NO_DEVICE"},
        {kInvalidImage, "CUDA_ERROR_INVALID_IMAGE"}, {kNotFound, "CUDA_ERROR_NOT_FOUND"},
        {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED"},
        {kCaptureUnsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
        {kCaptureInvalidated, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}};
    auto found = names.find(code);
    *name = found == names.end() ? nullptr : found->second;
    return *name ? kOk : kInvalidValue;
}
EXPORT int cuGetErrorString(int code, const char** text) { return cuGetErrorName(code, text); }

// ---- Contexts and modules ----

EXPORT int cuDevicePrimaryCtxRetain(void** context, int) {
    ENTER("cuDevicePrimaryCtxRetain");
    if (driver().contexts++ == 0) driver().say("context\n");
    *context = &driver();
    return kOk;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int) {
    ENTER("cuDevicePrimaryCtxRelease_v2", true);
    Driver& d = driver();
    if (--d.contexts == 0)
        d.say("left: %zu device, %zu host, %d streams, %d events, %d graphs, %d modules\n", d.device_memory.size(),
              d.host_memory.size(), d.streams, d.events, d.graphs, d.modules);
    return kOk;
}
EXPORT int cuCtxSetCurrent(void*) {
    ENTER("cuCtxSetCurrent");
    return kOk;
}
EXPORT int cuModuleLoadData(Module** module, const void* image) {
    ENTER("cuModuleLoadData");
    NOT_WHILE_CAPTURING;
    uint32_t magic;
    memcpy(&magic, image, sizeof(magic));
    if (magic != 0xba55ed50) return kInvalidImage;
    *module = new Module;
    ++driver().modules;
    driver().say("module\n");
    return kOk;
}
EXPORT int cuModuleLoadDataEx(Module** module, const void* image, unsigned options, void*, void*) {
    return options ? kInvalidValue : cuModuleLoadData(module, image);
}
EXPORT int cuModuleUnload(Module* module) {
    ENTER("cuModuleUnload", true);
    --driver().modules;
    delete module;
    return kOk;
}
static Function* find(Module* module, const std::string& name) {
    auto known = module->functions.find(name);
    if (known != module->functions.end()) return &known->second;
    if (name == driver().setting("without", "")) return nullptr;
    for (uint32_t i = 0; i < keel_simt_kernel_count(); ++i) {
        const KeelKernel* kernel = keel_simt_kernel(i);
        if (name != kernel->name) continue;
        uint32_t more = driver().settings.count("skewed") ? 1 : 0;
        return &(module->functions[name] = {
                     kernel, 48 * 1024, {kernel->threads, kernel->shared_bytes, kernel->parameter_count + more}});
    }
    return nullptr;
}
EXPORT int cuModuleGetFunction(Function** function, Module* module, const char* name) {
    ENTER("cuModuleGetFunction");
    *function = find(module, name);
    return *function ? kOk : kNotFound;
}
EXPORT int cuModuleGetGlobal_v2(uint64_t* pointer, size_t* bytes, Module* module, const char* name) {
    ENTER("cuModuleGetGlobal_v2");
    std::string prefix = "keel_block_", text = name;
    Function* function = text.rfind(prefix, 0) == 0 ? find(module, text.substr(prefix.size())) : nullptr;
    if (!function) return kNotFound;
    *pointer = uint64_t(function->block);
    *bytes = sizeof(function->block);
    driver().constants[*pointer] = *bytes;
    return kOk;
}
EXPORT int cuFuncGetAttribute(int* value, int attribute, Function*) {
    ENTER("cuFuncGetAttribute");
    *value = attribute == 0 ? 1024 : 0;
    return kOk;
}
EXPORT int cuFuncSetAttribute(Function* function, int attribute, int value) {
    ENTER("cuFuncSetAttribute");
    if (attribute != 8 || value > memory_limit()) return kInvalidValue;
    function->shared_opt_in = value;
    return kOk;
}

// ---- Memory ----

EXPORT int cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
    ENTER("cuMemAlloc_v2");
    NOT_WHILE_CAPTURING;
    Driver& d = driver();
    bytes = (bytes + 255) / 256 * 256;
    if (bytes == 0) return kInvalidValue;
    if (d.used + bytes > d.capacity) return kOutOfMemory;
    *pointer = uint64_t(keel_simt_allocate(bytes));
    d.device_memory[*pointer] = bytes;
    d.used += bytes;
    return kOk;
}
EXPORT int cuMemFree_v2(uint64_t pointer) {
    ENTER("cuMemFree_v2", true);
    Driver& d = driver();
    auto found = d.device_memory.find(pointer);
    if (found == d.device_memory.end()) return kInvalidValue;
    d.used -= found->second;
    d.device_memory.erase(found);
    keel_simt_release(reinterpret_cast<void*>(pointer));
    return kOk;
}
EXPORT int cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER("cuMemGetInfo_v2");
    *free = driver().capacity - driver().used;
    *total = driver().capacity;
    return kOk;
}
EXPORT int cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    ENTER("cuMemHostAlloc");
    NOT_WHILE_CAPTURING;
    if (bytes == 0) return kInvalidValue;
    *pointer = malloc(bytes);
    memset(*pointer, 0xff, bytes);
    driver().host_memory[uintptr_t(*pointer)] = bytes;
    return kOk;
}
EXPORT int cuMemFreeHost(void* pointer) {
    ENTER("cuMemFreeHost", true);
    driver().host_memory.erase(uintptr_t(pointer));
    free(pointer);
    return kOk;
}
EXPORT int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
    ENTER("cuMemcpyHtoD_v2");
    NOT_WHILE_CAPTURING;
    if (!on_device(to, bytes)) return kInvalidValue;
    memcpy(reinterpret_cast<void*>(to), from, bytes);
    return kOk;
}
EXPORT int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
    ENTER("cuMemcpyDtoH_v2");
    NOT_WHILE_CAPTURING;
    const void* source = reinterpret_cast<void*>(from);
    if (!on_device(from, bytes) && !lies_in(driver().constants, source, bytes)) return kInvalidValue;
    memcpy(to, source, bytes);
    return kOk;
}
EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Stream* stream) {
    ENTER("cuMemcpyHtoDAsync_v2");
    if (!on_device(to, bytes) || !lies_in(driver().host_memory, from, bytes)) return kInvalidValue;
    return enqueue_copy(stream, reinterpret_cast<void*>(to), from, bytes);
}
EXPORT int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Stream* stream) {
    ENTER("cuMemcpyDtoHAsync_v2");
    if (!on_device(from, bytes) || !lies_in(driver().host_memory, to, bytes)) return kInvalidValue;
    return enqueue_copy(stream, to, reinterpret_cast<void*>(from), bytes);
}
EXPORT int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Stream* stream) {
    ENTER("cuMemcpyDtoDAsync_v2");
    if (!on_device(from, bytes) || !on_device(to, bytes)) return kInvalidValue;
    return enqueue_copy(stream, reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
}
EXPORT int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Stream* stream) {
    ENTER("cuMemsetD8Async");
    if (!on_device(to, bytes)) return kInvalidValue;
    return enqueue(stream, {[=] { memset(reinterpret_cast<void*>(to), value, bytes); }});
}

// ---- Streams, events, graphs ----

EXPORT int cuStreamCreate(Stream** stream, unsigned) {
    ENTER("cuStreamCreate");
    *stream = new Stream;
    ++driver().streams;
    return kOk;
}
EXPORT int cuStreamCreateWithPriority(Stream** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
EXPORT int cuStreamDestroy_v2(Stream* stream) {
    ENTER("cuStreamDestroy_v2", true);
    drain(*stream);
    --driver().streams;
    delete stream;
    return kOk;
}
EXPORT int cuStreamSynchronize(Stream* stream) {
    ENTER("cuStreamSynchronize");
    NOT_WHILE_CAPTURING;
    drain(stream ? *stream : driver().null_stream);
    return driver().broken;
}
EXPORT int cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    ENTER("cuStreamWaitEvent");
    if (event->asked == 0) return kOk;
    return enqueue(stream, {nullptr, event, event->asked});
}
EXPORT int cuEventCreate(Event** event, unsigned) {
    ENTER("cuEventCreate");
    *event = new Event;
    ++driver().events;
    return kOk;
}
EXPORT int cuEventDestroy_v2(Event* event) {
    ENTER("cuEventDestroy_v2", true);
    if (event->stream) drain(*event->stream, event, event->asked);
    --driver().events;
    delete event;
    return kOk;
}
EXPORT int cuEventRecord(Event* event, Stream* stream) {
    ENTER("cuEventRecord");
    uint64_t generation = ++event->asked;
    event->stream = stream ? stream : &driver().null_stream;
    return enqueue(stream, {[=] { event->done = generation; event->seconds = now(); }, nullptr, generation});
}
EXPORT int cuEventSynchronize(Event* event) {
    ENTER("cuEventSynchronize");
    NOT_WHILE_CAPTURING;
    if (event->stream) drain(*event->stream, event, event->asked);
    return driver().broken;
}
EXPORT int cuEventElapsedTime_v2(float* milliseconds, Event* start, Event* end) {
    ENTER("cuEventElapsedTime_v2");
    if (start->done < start->asked || end->done < end->asked || !end->asked) return kInvalidValue;
    *milliseconds = float(1e3 * (end->seconds - start->seconds));
    return kOk;
}
EXPORT int cuStreamBeginCapture_v2(Stream* stream, int) {
    ENTER("cuStreamBeginCapture_v2");
    if (!stream || stream->capture) return kInvalidValue;
    stream->capture = new Graph;
    ++driver().capturing;
    ++driver().graphs;
    return kOk;
}
EXPORT int cuStreamEndCapture(Stream* stream, Graph** graph) {
    std::lock_guard<std::recursive_mutex> guard(driver().lock);
    *graph = stream->capture;
    if (stream->capture) --driver().capturing;
    stream->capture = nullptr;
    int code = enter("cuStreamEndCapture");
    if (code) {
        delete *graph;
        *graph = nullptr;
        --driver().graphs;
    }
    return code;
}
EXPORT int cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) {
    ENTER("cuGraphInstantiateWithFlags");
    *executable = new Graph(*graph);
    ++driver().graphs;
    driver().say("graph of %zu\n", graph->operations.size());
    return kOk;
}
EXPORT int cuGraphUpload(Graph*, Stream*) {
    ENTER("cuGraphUpload");
    return kOk;
}
EXPORT int cuGraphLaunch(Graph* executable, Stream* stream) {
    ENTER("cuGraphLaunch");
    driver().say("graph launch\n");
    for (const Operation& operation : executable->operations) enqueue(stream, operation);
    return kOk;
}
EXPORT int cuGraphDestroy(Graph* graph) {
    ENTER("cuGraphDestroy", true);
    --driver().graphs;
    delete graph;
    return kOk;
}
EXPORT int cuGraphExecDestroy(Graph* executable) {
    ENTER("cuGraphExecDestroy", true);
    --driver().graphs;
    delete executable;
    return kOk;
}

// ---- Launches ----

EXPORT int cuLaunchKernel(Function* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, Stream* stream, void** arguments, void** extra) {
    ENTER("cuLaunchKernel");
    const KeelKernel* kernel = function->kernel;
    if (extra || !gx || !gy || !gz || gy > 65535 || gz > 65535 || uint64_t(bx) * by * bz > 1024) return kInvalidValue;
    if (int(shared) > function->shared_opt_in) return kInvalidValue;
    // The values are read now, as a driver does: the caller may reuse the array at once.
    std::vector<uint64_t> values(kernel->parameter_count + 1);
    for (uint32_t i = 0; i < kernel->parameter_count; ++i) memcpy(&values[i], arguments[i], kernel->parameters[i].bytes);
    driver().say("launch %s grid %u,%u,%u block %u shared %u\n", kernel->name, gx, gy, gz, bx * by * bz, shared);
    return enqueue(stream, {[=]() mutable {
        uint32_t grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
        run_kernel(kernel, grid, block, shared, values.data());
    }});
}
