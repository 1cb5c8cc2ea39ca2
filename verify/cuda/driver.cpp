// A CUDA driver without a GPU: the functions that src/engine/executor/cuda calls, on the host's memory, with the kernel
// emulator to run what is launched. Linked with the emulator's library into a libcuda.so.1 that the tests put before any other;
// libcuda.so is a link to it, so that whoever loads either has the same driver.
//
// Work on a stream is queued. With `late` it runs only when something waits for it, as late as the driver's contract
// allows, so that a missing wait, or host memory reused too early, changes results instead of passing by luck. Copies
// from memory that is not pinned return when the driver has its own copy, and reach the device later, in the order of their
// stream (CUDA Driver API, "API synchronization behavior"); only blocking streams wait for the stream without a name.
//
// What is refused besides bad values: calls of a thread without a current context, of the capturing thread or of all
// threads while a stream is captured, and capturing a function whose code was not loaded. What no driver refuses and none
// allows is logged as `misuse`: a module that is unloaded while a graph refers to it.
//
// KEEL_FAKE_CUDA holds settings, separated by spaces:
//     version=13000 devices=1 capability=90 memory=1073741824 mode=0   what there is
//     clock=1000000          the highest clock in kHz; 0: not told
//     sm_clock=0             the clock in MHz that the management library sees; 0: it does not know the device
//     machine=0              tells this machine's devices from another's
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
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "simt/abi.h"
#include "simt/hopper.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum Code { kOk = 0, kInvalidValue = 1, kOutOfMemory = 2, kStub = 34, kNoDevice = 100, kInvalidImage = 200,
            kInvalidContext = 201, kEcc = 214, kNotFound = 500, kNotReady = 600, kLaunchFailed = 719, kCaptureUnsupported = 900,
            kCaptureInvalidated = 901, kCaptureUnjoined = 904 };

struct Stream;
struct Module;
struct Event {
    uint64_t asked = 0, done = 0;
    Stream* stream = nullptr;
    double seconds = 0;
    uint64_t capture = 0;  // the number of the one that it was recorded in, behind so many operations
    size_t position = 0;
};
struct Operation {
    std::function<void()> act;
    Event* waits_for = nullptr;
    uint64_t generation = 0;
};
struct Graph {
    std::vector<Operation> operations;
    std::set<Module*> modules;  // that its kernels are of
    Stream* origin = nullptr;   // where its capture began
    uint64_t number = 0;
    // Streams that an event drew into the capture: behind how many operations their last stands, and up to where the origin
    // waits for them.
    std::map<Stream*, std::pair<size_t, size_t>> forks;
};
struct Stream {
    std::deque<Operation> queue;
    Graph* capture = nullptr;
    bool captures_for_all = false;  // whether no thread may do what cannot be captured
    bool is_blocking = true;        // whether it waits for the stream without a name, and that for it
};
struct Function {
    const KeelKernel* kernel;
    int shared_opt_in = 48 * 1024;
    uint32_t block[3];  // keel_block_* of KERNEL: threads, shared bytes, parameters
    Module* module;
    bool is_loaded = false;
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
    std::set<Stream*> streams;
    std::set<Graph*> executables;
    std::map<uint64_t, Graph*> captures;  // under way
    size_t used = 0, capacity = 0;
    int events = 0, graphs = 0, modules = 0, contexts = 0;
    uintptr_t context = 0;  // the one there is; another each time it is made
    int kernels_run = 0, fault_at = 0, fault_code = 0, broken = 0, captures_for_all = 0;
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

// The context that a thread has made its own, and how many streams it captures.
thread_local uintptr_t current = 0;
thread_local int capturing = 0;

enum Needs { kNothing, kContext, kContextEvenBroken };

// What every function does first: the failure it was told to return, or the one that broke the context.
int enter(const char* name, Needs needs) {
    Driver& d = driver();
    int call = ++d.calls[name];
    auto failure = d.failures.find(name);
    if (failure != d.failures.end() && failure->second.first == call) return failure->second.second;
    if (needs != kNothing && (!current || current != d.context)) return kInvalidContext;
    return needs == kContext ? d.broken : 0;
}
#define ENTER(name, needs) \
    std::lock_guard<std::recursive_mutex> guard(driver().lock); \
    if (int code = enter(name, needs)) return code
#define NOT_WHILE_CAPTURING \
    if (capturing || driver().captures_for_all) return kCaptureUnsupported

bool lies_in(const std::map<uintptr_t, size_t>& memory, const void* pointer, size_t bytes) {
    auto after = memory.upper_bound(uintptr_t(pointer));
    if (after == memory.begin()) return false;
    auto [start, length] = *std::prev(after);
    return uintptr_t(pointer) + bytes <= start + length;
}
bool on_device(uint64_t pointer, size_t bytes) {
    return lies_in(driver().device_memory, reinterpret_cast<void*>(pointer), bytes);
}

bool readable(uint64_t pointer, size_t bytes) {
    return on_device(pointer, bytes) || lies_in(driver().constants, reinterpret_cast<void*>(pointer), bytes);
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
    if (Graph* graph = stream->capture) {
        graph->operations.push_back(operation);
        if (stream != graph->origin) graph->forks[stream].first = graph->operations.size();
        return kOk;
    }
    if (stream == &driver().null_stream) {
        for (Stream* other : driver().streams)
            if (other->is_blocking) drain(*other);
    } else if (stream->is_blocking) {
        drain(driver().null_stream);
    }
    stream->queue.push_back(operation);
    if (!driver().is_late) drain(*stream);
    return kOk;
}
int enqueue_copy(Stream* stream, void* to, const void* from, size_t bytes) {
    return enqueue(stream, {[=] { memcpy(to, from, bytes); }});
}
// From memory that is not pinned: what it holds now reaches the device later.
int enqueue_staged(Stream* stream, void* to, const void* from, size_t bytes) {
    const char* start = static_cast<const char*>(from);
    auto staged = std::make_shared<std::vector<char>>(start, start + bytes);
    return enqueue(stream, {[=] { memcpy(to, staged->data(), bytes); }});
}

// An argument as a launch passes it; a tensor map takes all of it.
struct alignas(64) Value {
    char bytes[sizeof(TensorMap)];
};

int memory_limit() { return driver().number("capability", "90") == 80 ? 163 * 1024 : 227 * 1024; }

void run_kernel(const KeelKernel* kernel, const uint32_t* grid, const uint32_t* block, uint32_t shared, Value* values) {
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
    ENTER("cuInit", kNothing);
    return kOk;
}
EXPORT int cuDriverGetVersion(int* version) {
    ENTER("cuDriverGetVersion", kNothing);
    *version = driver().number("version", "13000");
    return kOk;
}
EXPORT int cuDeviceGetCount(int* count) {
    ENTER("cuDeviceGetCount", kNothing);
    *count = driver().number("devices", "1");
    return kOk;
}
EXPORT int cuDeviceGet(int* device, int ordinal) {
    ENTER("cuDeviceGet", kNothing);
    *device = ordinal;
    return kOk;
}
EXPORT int cuDeviceGetName(char* name, int length, int device) {
    ENTER("cuDeviceGetName", kNothing);
    snprintf(name, size_t(length), "Emulated GPU %d", device);
    return kOk;
}
EXPORT int cuDeviceGetUuid_v2(char* uuid, int device) {
    ENTER("cuDeviceGetUuid_v2", kNothing);
    memset(uuid, 0, 16);
    snprintf(uuid, 16, "GPU %s.%d", driver().setting("machine", "0"), device);
    return kOk;
}
EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) {
    ENTER("cuDeviceTotalMem_v2", kNothing);
    *bytes = driver().capacity;
    return kOk;
}
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
    ENTER("cuDeviceGetAttribute", kNothing);
    int capability = driver().number("capability", "90");
    switch (attribute) {
        case 1: *value = 1024; return kOk;         // threads of a block
        case 13:                                   // clock in kHz
            *value = driver().number("clock", "1000000");
            return *value ? kOk : kInvalidValue;
        case 16: *value = 2; return kOk;           // multiprocessors
        case 20: *value = driver().number("mode", "0"); return kOk;
        case 75: *value = capability / 10; return kOk;
        case 76: *value = capability % 10; return kOk;
        case 97: *value = memory_limit(); return kOk;
        default: return kInvalidValue;
    }
}
EXPORT int cuDeviceGetPCIBusId(char* id, int length, int device) {
    ENTER("cuDeviceGetPCIBusId", kNothing);
    snprintf(id, size_t(length), "0000:%02x:00.0", device + 1);
    return kOk;
}
EXPORT int cuGetErrorName(int code, const char** name) {
    static const std::map<int, const char*> names{
        {kInvalidValue, "CUDA_ERROR_INVALID_VALUE"}, {kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY"},
        {kStub, "CUDA_ERROR_STUB_LIBRARY"}, {kNoDevice, "CUDA_ERROR_NO_DEVICE"},
        {kInvalidImage, "CUDA_ERROR_INVALID_IMAGE"}, {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT"},
        {kEcc, "CUDA_ERROR_ECC_UNCORRECTABLE"}, {kNotFound, "CUDA_ERROR_NOT_FOUND"},
        {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED"},
        {kCaptureUnsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
        {kCaptureInvalidated, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
        {kCaptureUnjoined, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED"}};
    auto found = names.find(code);
    *name = found == names.end() ? nullptr : found->second;
    return *name ? kOk : kInvalidValue;
}
EXPORT int cuGetErrorString(int code, const char** text) { return cuGetErrorName(code, text); }

// ---- Contexts and modules ----

EXPORT int cuDevicePrimaryCtxRetain(void** context, int) {
    ENTER("cuDevicePrimaryCtxRetain", kNothing);
    static uintptr_t made = 0;
    Driver& d = driver();
    if (d.contexts++ == 0) {
        d.context = 4096 * ++made;
        d.say("context\n");
    }
    *context = reinterpret_cast<void*>(d.context);
    return kOk;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int) {
    ENTER("cuDevicePrimaryCtxRelease_v2", kNothing);
    Driver& d = driver();
    if (--d.contexts == 0) {
        d.say("left: %zu device, %zu host, %zu streams, %d events, %d graphs, %d modules\n", d.device_memory.size(),
              d.host_memory.size(), d.streams.size(), d.events, d.graphs, d.modules);
        d.context = 0;
    }
    return kOk;
}
EXPORT int cuCtxSetCurrent(void* context) {
    ENTER("cuCtxSetCurrent", kNothing);
    uintptr_t wanted = reinterpret_cast<uintptr_t>(context);
    if (wanted && wanted != driver().context) return kInvalidContext;
    current = wanted;
    return driver().broken;
}
EXPORT int cuModuleLoadData(Module** module, const void* image) {
    ENTER("cuModuleLoadData", kContext);
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
    ENTER("cuModuleUnload", kContextEvenBroken);
    for (const Graph* graph : driver().executables)
        if (graph->modules.count(module)) driver().say("misuse: a module is unloaded under a graph\n");
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
                     kernel, 48 * 1024, {kernel->threads, kernel->shared_bytes, kernel->parameter_count + more}, module});
    }
    return nullptr;
}
EXPORT int cuModuleGetFunction(Function** function, Module* module, const char* name) {
    ENTER("cuModuleGetFunction", kContext);
    *function = find(module, name);
    return *function ? kOk : kNotFound;
}
EXPORT int cuFuncLoad(Function* function) {
    ENTER("cuFuncLoad", kContext);
    NOT_WHILE_CAPTURING;
    function->is_loaded = true;
    return kOk;
}
EXPORT int cuModuleGetGlobal_v2(uint64_t* pointer, size_t* bytes, Module* module, const char* name) {
    ENTER("cuModuleGetGlobal_v2", kContext);
    std::string prefix = "keel_block_", text = name;
    Function* function = text.rfind(prefix, 0) == 0 ? find(module, text.substr(prefix.size())) : nullptr;
    if (!function) return kNotFound;
    *pointer = uint64_t(function->block);
    *bytes = sizeof(function->block);
    driver().constants[*pointer] = *bytes;
    return kOk;
}
EXPORT int cuFuncGetAttribute(int* value, int attribute, Function*) {
    ENTER("cuFuncGetAttribute", kContext);
    *value = attribute == 0 ? 1024 : 0;
    return kOk;
}
EXPORT int cuFuncSetAttribute(Function* function, int attribute, int value) {
    ENTER("cuFuncSetAttribute", kContext);
    if (attribute != 8 || value > memory_limit()) return kInvalidValue;
    function->shared_opt_in = value;
    return kOk;
}

// ---- Memory ----

EXPORT int cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
    ENTER("cuMemAlloc_v2", kContext);
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
    ENTER("cuMemFree_v2", kContextEvenBroken);
    Driver& d = driver();
    auto found = d.device_memory.find(pointer);
    if (found == d.device_memory.end()) return kInvalidValue;
    d.used -= found->second;
    d.device_memory.erase(found);
    keel_simt_release(reinterpret_cast<void*>(pointer));
    return kOk;
}
EXPORT int cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER("cuMemGetInfo_v2", kContext);
    *free = driver().capacity - driver().used;
    *total = driver().capacity;
    return kOk;
}
EXPORT int cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    ENTER("cuMemHostAlloc", kContext);
    NOT_WHILE_CAPTURING;
    if (bytes == 0) return kInvalidValue;
    *pointer = malloc(bytes);
    memset(*pointer, 0xff, bytes);
    driver().host_memory[uintptr_t(*pointer)] = bytes;
    return kOk;
}
EXPORT int cuMemFreeHost(void* pointer) {
    ENTER("cuMemFreeHost", kContextEvenBroken);
    driver().host_memory.erase(uintptr_t(pointer));
    free(pointer);
    return kOk;
}
EXPORT int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
    ENTER("cuMemcpyHtoD_v2", kContext);
    NOT_WHILE_CAPTURING;
    if (!on_device(to, bytes)) return kInvalidValue;
    drain(driver().null_stream);
    enqueue_staged(nullptr, reinterpret_cast<void*>(to), from, bytes);
    if (lies_in(driver().host_memory, from, bytes)) drain(driver().null_stream);
    return driver().broken;
}
EXPORT int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
    ENTER("cuMemcpyDtoH_v2", kContext);
    NOT_WHILE_CAPTURING;
    if (!readable(from, bytes)) return kInvalidValue;
    enqueue_copy(nullptr, to, reinterpret_cast<void*>(from), bytes);
    drain(driver().null_stream);
    return driver().broken;
}
EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Stream* stream) {
    ENTER("cuMemcpyHtoDAsync_v2", kContext);
    if (!on_device(to, bytes)) return kInvalidValue;
    void* target = reinterpret_cast<void*>(to);
    if (lies_in(driver().host_memory, from, bytes)) return enqueue_copy(stream, target, from, bytes);
    NOT_WHILE_CAPTURING;
    return enqueue_staged(stream, target, from, bytes);
}
EXPORT int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Stream* stream) {
    ENTER("cuMemcpyDtoHAsync_v2", kContext);
    if (!readable(from, bytes)) return kInvalidValue;
    if (lies_in(driver().host_memory, to, bytes)) return enqueue_copy(stream, to, reinterpret_cast<void*>(from), bytes);
    NOT_WHILE_CAPTURING;
    // Into memory that is not pinned it returns when it is done.
    enqueue_copy(stream, to, reinterpret_cast<void*>(from), bytes);
    drain(stream ? *stream : driver().null_stream);
    return driver().broken;
}
EXPORT int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Stream* stream) {
    ENTER("cuMemcpyDtoDAsync_v2", kContext);
    if (!on_device(from, bytes) || !on_device(to, bytes)) return kInvalidValue;
    return enqueue_copy(stream, reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
}
EXPORT int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Stream* stream) {
    ENTER("cuMemsetD8Async", kContext);
    if (!on_device(to, bytes)) return kInvalidValue;
    return enqueue(stream, {[=] { memset(reinterpret_cast<void*>(to), value, bytes); }});
}

// ---- Streams, events, graphs ----

EXPORT int cuStreamCreate(Stream** stream, unsigned flags) {
    ENTER("cuStreamCreate", kContext);
    *stream = new Stream;
    (*stream)->is_blocking = !(flags & 1);
    driver().streams.insert(*stream);
    return kOk;
}
EXPORT int cuStreamCreateWithPriority(Stream** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
EXPORT int cuStreamDestroy_v2(Stream* stream) {
    ENTER("cuStreamDestroy_v2", kContextEvenBroken);
    drain(*stream);
    driver().streams.erase(stream);
    delete stream;
    return kOk;
}
EXPORT int cuStreamQuery(Stream* stream) {
    ENTER("cuStreamQuery", kContext);
    NOT_WHILE_CAPTURING;
    return stream->queue.empty() ? kOk : kNotReady;
}
EXPORT int cuStreamSynchronize(Stream* stream) {
    ENTER("cuStreamSynchronize", kContext);
    NOT_WHILE_CAPTURING;
    drain(stream ? *stream : driver().null_stream);
    return driver().broken;
}
EXPORT int cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    ENTER("cuStreamWaitEvent", kContext);
    if (event->asked == 0) return kOk;
    auto capture = driver().captures.find(event->capture);
    if (capture != driver().captures.end()) {
        Graph* graph = capture->second;
        // An event of a capture draws the stream that waits for it in; the origin, which is in, joins the event's stream.
        if (!stream->capture) stream->capture = graph;
        if (stream->capture != graph) return kInvalidValue;
        if (stream == graph->origin && event->stream != graph->origin)
            graph->forks[event->stream].second = event->position;
    }
    return enqueue(stream, {nullptr, event, event->asked});
}
EXPORT int cuEventCreate(Event** event, unsigned) {
    ENTER("cuEventCreate", kContext);
    *event = new Event;
    ++driver().events;
    return kOk;
}
EXPORT int cuEventDestroy_v2(Event* event) {
    ENTER("cuEventDestroy_v2", kContextEvenBroken);
    // A stream that was destroyed has nothing left to run.
    if (driver().streams.count(event->stream)) drain(*event->stream, event, event->asked);
    --driver().events;
    delete event;
    return kOk;
}
EXPORT int cuEventRecord(Event* event, Stream* stream) {
    ENTER("cuEventRecord", kContext);
    uint64_t generation = ++event->asked;
    event->stream = stream ? stream : &driver().null_stream;
    Graph* graph = event->stream->capture;
    event->capture = graph ? graph->number : 0;
    event->position = graph ? graph->operations.size() + 1 : 0;
    return enqueue(stream, {[=] { event->done = generation; event->seconds = now(); }, nullptr, generation});
}
EXPORT int cuEventSynchronize(Event* event) {
    ENTER("cuEventSynchronize", kContext);
    NOT_WHILE_CAPTURING;
    if (event->stream) drain(*event->stream, event, event->asked);
    return driver().broken;
}
EXPORT int cuEventElapsedTime(float* milliseconds, Event* start, Event* end) {
    ENTER("cuEventElapsedTime", kContext);
    if (start->done < start->asked || end->done < end->asked || !end->asked) return kInvalidValue;
    *milliseconds = float(1e3 * (end->seconds - start->seconds));
    return kOk;
}
EXPORT int cuStreamBeginCapture_v2(Stream* stream, int mode) {
    ENTER("cuStreamBeginCapture_v2", kContext);
    if (!stream || stream->capture) return kInvalidValue;
    static uint64_t captured = 0;
    stream->capture = new Graph;
    stream->capture->origin = stream;
    stream->capture->number = ++captured;
    driver().captures[captured] = stream->capture;
    stream->captures_for_all = mode == 0;
    driver().captures_for_all += mode == 0;
    // In the relaxed mode nobody is held to anything.
    capturing += mode != 2;
    ++driver().graphs;
    return kOk;
}
EXPORT int cuStreamEndCapture(Stream* stream, Graph** graph) {
    std::lock_guard<std::recursive_mutex> guard(driver().lock);
    *graph = stream->capture;
    if (stream->capture) {
        if (capturing) --capturing;
        driver().captures_for_all -= stream->captures_for_all;
    }
    stream->capture = nullptr;
    int code = enter("cuStreamEndCapture", kContext);
    if (*graph) {
        driver().captures.erase((*graph)->number);
        for (auto& [fork, reached] : (*graph)->forks) {
            fork->capture = nullptr;
            if (reached.second < reached.first) code = kCaptureUnjoined;
        }
    }
    if (code) {
        delete *graph;
        *graph = nullptr;
        --driver().graphs;
    }
    return code;
}
EXPORT int cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) {
    ENTER("cuGraphInstantiateWithFlags", kContext);
    *executable = new Graph(*graph);
    driver().executables.insert(*executable);
    ++driver().graphs;
    driver().say("graph of %zu\n", graph->operations.size());
    return kOk;
}
EXPORT int cuGraphUpload(Graph*, Stream*) {
    ENTER("cuGraphUpload", kContext);
    return kOk;
}
EXPORT int cuGraphLaunch(Graph* executable, Stream* stream) {
    ENTER("cuGraphLaunch", kContext);
    driver().say("graph launch\n");
    for (const Operation& operation : executable->operations) enqueue(stream, operation);
    return kOk;
}
EXPORT int cuGraphDestroy(Graph* graph) {
    ENTER("cuGraphDestroy", kContextEvenBroken);
    --driver().graphs;
    delete graph;
    return kOk;
}
EXPORT int cuGraphExecDestroy(Graph* executable) {
    ENTER("cuGraphExecDestroy", kContextEvenBroken);
    driver().executables.erase(executable);
    --driver().graphs;
    delete executable;
    return kOk;
}

EXPORT int cuLaunchHostFunc(Stream* stream, void (*function)(void*), void* data) {
    ENTER("cuLaunchHostFunc", kContext);
    return enqueue(stream, {[=] { function(data); }});
}

// ---- Launches ----

EXPORT int cuLaunchKernel(Function* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, Stream* stream, void** arguments, void** extra) {
    ENTER("cuLaunchKernel", kContext);
    const KeelKernel* kernel = function->kernel;
    if (extra || !gx || !gy || !gz || gy > 65535 || gz > 65535 || uint64_t(bx) * by * bz > 1024) return kInvalidValue;
    if (int(shared) > function->shared_opt_in) return kInvalidValue;
    if (stream && stream->capture) {
        if (!function->is_loaded) return kCaptureUnsupported;
        stream->capture->modules.insert(function->module);
    }
    function->is_loaded = true;
    // The values are read now, as a driver does: the caller may reuse the array at once.
    std::vector<Value> values(kernel->parameter_count + 1);
    for (uint32_t i = 0; i < kernel->parameter_count; ++i) memcpy(&values[i], arguments[i], kernel->parameters[i].bytes);
    driver().say("launch %s grid %u,%u,%u block %u shared %u\n", kernel->name, gx, gy, gz, bx * by * bz, shared);
    return enqueue(stream, {[=]() mutable {
        uint32_t grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
        run_kernel(kernel, grid, block, shared, values.data());
    }});
}

// ---- Tensor maps, by the rules of the driver's documentation of this function; what it encodes is the emulator's ----

EXPORT int cuTensorMapEncodeTiled(void* map, unsigned type, unsigned rank, void* address, const uint64_t* dims,
                                  const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,
                                  unsigned interleave, unsigned swizzle, unsigned promotion, unsigned fill) {
    ENTER("cuTensorMapEncodeTiled", kNothing);
    static const int bytes_of[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
    if (uintptr_t(map) % 64 || type >= sizeof(bytes_of) / sizeof(int) || rank < 1 || rank > simt::kTensorDims) return kInvalidValue;
    if (uintptr_t(address) % 16 || interleave || swizzle > 3 || promotion > 3 || fill > 1) return kInvalidValue;
    TensorMap encoded;
    memset(&encoded, 0, sizeof(encoded));
    encoded.mark = simt::kTensorMapMark;
    encoded.rank = uint8_t(rank);
    encoded.element_bytes = uint8_t(bytes_of[type]);
    encoded.swizzle = uint8_t(swizzle ? 16 << swizzle : 0);
    encoded.address = uintptr_t(address);
    encoded.strides[0] = encoded.element_bytes;
    for (unsigned i = 0; i < rank; ++i) {
        if (dims[i] < 1 || dims[i] > 1ull << 32 || box[i] < 1 || box[i] > 256 || element_strides[i] != 1) return kInvalidValue;
        if (i && (strides[i - 1] % 16 || strides[i - 1] >= 1ull << 40)) return kInvalidValue;
        encoded.dims[i] = dims[i];
        encoded.box[i] = box[i];
        if (i) encoded.strides[i] = strides[i - 1];
    }
    uint32_t row = box[0] * encoded.element_bytes;
    if (row % 16 || (swizzle && row > encoded.swizzle)) return kInvalidValue;
    memcpy(map, &encoded, sizeof(encoded));
    return kOk;
}

// ---- The management library, which is a copy of this one under another name ----

EXPORT int nvmlInit_v2() { return kOk; }
EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** device) {
    *device = &driver();
    return driver().number("sm_clock", "0") && strncmp(id, "0000:", 5) == 0 ? kOk : 6;
}
EXPORT int nvmlDeviceGetClockInfo(void*, unsigned which, unsigned* megahertz) {
    *megahertz = unsigned(driver().number("sm_clock", "0"));
    return which == 1 ? kOk : 2;
}
