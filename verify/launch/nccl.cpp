// NCCL without GPUs: the functions that src/ranks/nccl calls, between processes of one machine over shared memory. Beside the
// stand-in driver (verify/cuda/driver.cpp), whose device memory is the host's and whose streams this queues its work on, so
// that `late`, events and captured graphs hold for collectives as for kernels.
//
// What a call moves arrives when its stream runs it, and not before: until then the receive buffer holds 0xff. Ranks that
// call different things, for which the real library would wait for ever, get an asynchronous error, and their data stay 0xff.
// Sizes and peers of a group are checked as it ends. No collective adds: this program asks for none that does.
//
// KEEL_FAKE_NCCL holds settings, separated by spaces:
//     version=22900          what ncclGetVersion says
//     fail=NAME:N:CODE       the N-th call of function NAME returns CODE
//     hang=N:RANK            the N-th collective that RANK runs never comes back
//     log=PATH               one line for each collective when it is called, and for each communicator that ends
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum Code { kOk = 0, kSystemError = 2, kInvalidArgument = 4, kInvalidUsage = 5, kRemoteError = 6 };

constexpr int kMostRanks = 64;
constexpr size_t kSlot = 1 << 20;  // bytes that a rank shows the others at once

// Zeroed by the system when the first rank makes it.
struct Board {
    std::atomic<uint32_t> joined, arrived, generation, broken;
    char what[kMostRanks][64];
};

struct Comm {
    Board* board;
    char* slots;
    int rank, ranks;
    uint64_t run;
    std::atomic<int> error;
};

struct Part {
    bool sends;
    char* place;
    size_t bytes;
    int peer;
    Comm* comm;
    void* stream;
};

// One collective on its way: exchanges have a slice for every rank, gathers send one to all.
struct Work {
    Comm* comm;
    bool exchanges;
    char *from, *to;
    size_t slice;
};

std::string setting(const char* name) {
    const char* all = getenv("KEEL_FAKE_NCCL");
    std::string rest = all ? all : "", key = std::string(name) + "=";
    for (size_t start = 0; start < rest.size();) {
        size_t end = rest.find(' ', start);
        if (end == std::string::npos) end = rest.size();
        std::string word = rest.substr(start, end - start);
        if (word.rfind(key, 0) == 0) return word.substr(key.size());
        start = end + 1;
    }
    return "";
}

int enter(const char* name) {
    static std::map<std::string, int>& calls = *new std::map<std::string, int>;
    int call = ++calls[name], at = 0, code = 0;
    char who[64] = "";
    if (sscanf(setting("fail").c_str(), "%63[^:]:%d:%d", who, &at, &code) == 3 && !strcmp(who, name) && at == call) return code;
    return kOk;
}
#define ENTER(name) \
    if (int code = enter(name)) return code

template <class... A> void say(const char* format, A... values) {
    static FILE* log = setting("log").empty() ? nullptr : fopen(setting("log").c_str(), "a");
    if (!log) return;
    fprintf(log, format, values...);
    fflush(log);
}

// Waits for all ranks; the last that comes lets them go.
void meet(Comm* c) {
    uint32_t generation = c->board->generation.load();
    if (c->board->arrived.fetch_add(1) + 1 == uint32_t(c->ranks)) {
        c->board->arrived = 0;
        c->board->generation.fetch_add(1);
        return;
    }
    for (unsigned looks = 0; c->board->generation.load() == generation; ++looks) {
        timespec nap{0, 50000};
        if (looks < 100) sched_yield(); else nanosleep(&nap, nullptr);
    }
}

void run(void* pointer) {
    // Kept: a graph runs it again.
    Work& w = *static_cast<Work*>(pointer);
    Comm* c = w.comm;
    int number = 0, rank = 0;
    ++c->run;
    if (sscanf(setting("hang").c_str(), "%d:%d", &number, &rank) == 2 && uint64_t(number) == c->run && rank == c->rank)
        for (;;) pause();
    memset(w.to, 0xff, w.from >= w.to && w.from < w.to + w.slice * c->ranks ? 0 : w.slice * c->ranks);
    snprintf(c->board->what[c->rank], 64, "%s of %zu", w.exchanges ? "exchange" : "all-gather", w.slice);
    meet(c);
    bool agree = true;
    for (int r = 0; r < c->ranks; ++r) agree = agree && !strcmp(c->board->what[r], c->board->what[c->rank]);
    if (!agree) {
        for (int r = 0; r < c->ranks && c->rank == 0; ++r) fprintf(stderr, "fake NCCL: rank %d calls %s\n", r, c->board->what[r]);
        c->board->broken = 1;
    }
    meet(c);
    if (c->board->broken.load()) {
        c->error = kRemoteError;
        return;
    }
    size_t all = w.exchanges ? w.slice * c->ranks : w.slice;
    // In an exchange this rank's part of what another shows is [first, first + slice) of all.
    size_t first = w.exchanges ? w.slice * c->rank : 0;
    for (size_t at = 0; at < all; at += kSlot) {
        size_t shown = all - at < kSlot ? all - at : kSlot;
        memcpy(c->slots + size_t(c->rank) * kSlot, w.from + at, shown);
        meet(c);
        size_t low = at > first ? at : first, high = at + shown < first + w.slice ? at + shown : first + w.slice;
        for (int r = 0; r < c->ranks && low < high; ++r)
            memcpy(w.to + size_t(r) * w.slice + (low - first), c->slots + size_t(r) * kSlot + (low - at), high - low);
        meet(c);
    }
}

int queue(Comm* comm, bool exchanges, const void* from, void* to, size_t slice, void* stream) {
    using Launch = int (*)(void*, void (*)(void*), void*);
    static Launch launch = [] {
        void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
        return driver ? reinterpret_cast<Launch>(dlsym(driver, "cuLaunchHostFunc")) : nullptr;
    }();
    if (!launch || comm->board->broken.load()) return launch ? kRemoteError : kSystemError;
    say("%s of %zu on %p\n", exchanges ? "exchange" : "all-gather", slice, stream);
    Work* work = new Work{comm, exchanges, static_cast<char*>(const_cast<void*>(from)), static_cast<char*>(to), slice};
    return launch(stream, run, work) ? kSystemError : kOk;
}

thread_local bool in_group = false;
thread_local std::vector<Part> group;

}  // namespace

struct Id {
    char bytes[128];
};

EXPORT int ncclGetVersion(int* version) {
    ENTER("ncclGetVersion");
    std::string told = setting("version");
    *version = told.empty() ? 22900 : atoi(told.c_str());
    return kOk;
}
EXPORT int ncclGetUniqueId(Id* id) {
    ENTER("ncclGetUniqueId");
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    memset(id, 0, sizeof(*id));
    snprintf(id->bytes, sizeof(id->bytes), "/keel-nccl.%d.%ld", getpid(), long(time.tv_nsec));
    return kOk;
}
EXPORT int ncclCommInitRank(Comm** out, int ranks, Id id, int rank) {
    ENTER("ncclCommInitRank");
    if (ranks < 1 || ranks > kMostRanks || rank < 0 || rank >= ranks) return kInvalidArgument;
    size_t bytes = sizeof(Board) + size_t(ranks) * kSlot;
    int file = shm_open(id.bytes, O_CREAT | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, off_t(bytes))) return kSystemError;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return kSystemError;
    Comm* comm = new Comm{static_cast<Board*>(memory), static_cast<char*>(memory) + sizeof(Board), rank, ranks, 0, {kOk}};
    meet(comm);
    if (rank == 0) shm_unlink(id.bytes);
    *out = comm;
    return kOk;
}
EXPORT int ncclCommDestroy(Comm* comm) {
    ENTER("ncclCommDestroy");
    say("communicator of %d ends\n", comm->rank);
    munmap(comm->board, sizeof(Board) + size_t(comm->ranks) * kSlot);
    delete comm;
    return kOk;
}
EXPORT int ncclCommCount(Comm* comm, int* ranks) {
    ENTER("ncclCommCount");
    *ranks = comm->ranks;
    return kOk;
}
EXPORT int ncclCommUserRank(Comm* comm, int* rank) {
    ENTER("ncclCommUserRank");
    *rank = comm->rank;
    return kOk;
}
EXPORT int ncclCommGetAsyncError(Comm* comm, int* error) {
    ENTER("ncclCommGetAsyncError");
    *error = comm->error.load();
    return kOk;
}
EXPORT const char* ncclGetErrorString(int code) {
    switch (code) {
        case kOk: return "no error";
        case 1: return "unhandled cuda error";
        case kSystemError: return "unhandled system error";
        case kInvalidArgument: return "invalid argument";
        case kInvalidUsage: return "invalid usage";
        case kRemoteError: return "remote process exited or there was a network error";
        default: return "unknown result code";
    }
}
EXPORT const char* ncclGetLastError(Comm*) { return ""; }

EXPORT int ncclAllGather(const void* from, void* to, size_t count, int type, Comm* comm, void* stream) {
    ENTER("ncclAllGather");
    if (type != 1 || in_group) return kInvalidUsage;
    return queue(comm, false, from, to, count, stream);
}
EXPORT int ncclGroupStart() {
    ENTER("ncclGroupStart");
    if (in_group) return kInvalidUsage;
    in_group = true;
    group.clear();
    return kOk;
}
static int add(bool sends, const void* place, size_t count, int type, int peer, Comm* comm, void* stream) {
    if (type != 1 || !in_group) return kInvalidUsage;
    if (peer < 0 || peer >= comm->ranks) return kInvalidArgument;
    group.push_back({sends, static_cast<char*>(const_cast<void*>(place)), count, peer, comm, stream});
    return kOk;
}
EXPORT int ncclSend(const void* from, size_t count, int type, int peer, Comm* comm, void* stream) {
    ENTER("ncclSend");
    return add(true, from, count, type, peer, comm, stream);
}
EXPORT int ncclRecv(void* to, size_t count, int type, int peer, Comm* comm, void* stream) {
    ENTER("ncclRecv");
    return add(false, to, count, type, peer, comm, stream);
}
EXPORT int ncclGroupEnd() {
    ENTER("ncclGroupEnd");
    if (!in_group) return kInvalidUsage;
    in_group = false;
    if (group.empty()) return kOk;
    // What this program asks for: a slice to and from every rank, in places one after the other.
    const Part& one = group[0];
    char *from = nullptr, *to = nullptr;
    for (const Part& part : group)
        if (part.peer == 0) (part.sends ? from : to) = part.place;
    std::vector<int> seen(size_t(one.comm->ranks) * 2);
    for (const Part& part : group) {
        char* start = part.sends ? from : to;
        bool fits = part.comm == one.comm && part.stream == one.stream && part.bytes == one.bytes && start &&
                    part.place == start + size_t(part.peer) * one.bytes;
        if (!fits || seen[size_t(part.peer) * 2 + part.sends]++) return kInvalidUsage;
    }
    for (int times : seen)
        if (times != 1) return kInvalidUsage;
    return queue(one.comm, true, from, to, one.bytes, one.stream);
}
