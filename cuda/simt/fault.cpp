// Memory faults, divisions by zero and endless loops in kernel code become reports. A signal handler only notes what
// happened and sends the thread to `fault_landing` on a fresh part of its stack; everything else happens there.
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <chrono>
#include <condition_variable>
#include <list>
#include <thread>

#include "runtime.h"

namespace simt {

static struct sigaction earlier_segv, earlier_bus, earlier_fpe, earlier_ill;

struct Fault {
    int signal;
    const void* address;
    const void* code;
    int access;  // 0 unknown, 1 read, 2 write
};
static thread_local Fault fault;

static void fault_landing() {
    Fiber& me = *running();
    const char* last = me.activity ? me.activity : "none yet";
    if (fault.signal == SIGFPE) fail_at(fault.code, nullptr, me.at, "an integer was divided by zero");
    if (fault.signal == SIGILL)
        fail_at(fault.code, nullptr, me.at, "the thread came to a place the compiler took for unreachable");
    // A checked thread is most likely stopped inside a hook; its own last instruction tells more.
    if (fault.signal == SIGURG)
        fail_at(me.accessed ? me.accessed : fault.code, nullptr, me.at,
                "the launch ran over its time limit of %u ms, and this thread calls nothing that could end it (an endless "
                "loop, or a wait for another block)",
                me.block->launch->options.time_limit_ms);
    static const char* const kAccess[] = {"access to", "read of", "write to"};
    fail_at(fault.code, nullptr, me.at, "invalid %s %p: %s (last emulator call: %s)", kAccess[fault.access], fault.address,
            describe_address(fault.address, *me.block).c_str(), last);
}

static void redirect(int signal, siginfo_t* info, void* context) {
    ucontext_t* machine = static_cast<ucontext_t*>(context);
    // The fiber is lost anyway: its frames may be overwritten.
    uintptr_t top = uintptr_t(running()->stack_high) & ~uintptr_t(63);
    fault = {signal, info ? info->si_addr : nullptr, nullptr, 0};
#if defined(__x86_64__)
    fault.code = reinterpret_cast<const void*>(machine->uc_mcontext.gregs[REG_RIP]);
    if (signal == SIGSEGV) fault.access = machine->uc_mcontext.gregs[REG_ERR] & 2 ? 2 : 1;
    machine->uc_mcontext.gregs[REG_RSP] = greg_t(top - 8);
    machine->uc_mcontext.gregs[REG_RIP] = greg_t(fault_landing);
#elif defined(__aarch64__)
    fault.code = reinterpret_cast<const void*>(machine->uc_mcontext.pc);
    machine->uc_mcontext.sp = top;
    machine->uc_mcontext.pc = uintptr_t(fault_landing);
#endif
}

static void on_fault(int signal, siginfo_t* info, void* context) {
    if (running()) return redirect(signal, info, context);
    // Not in a kernel: the program's own handler, which was there before, gets the fault when it happens again.
    const struct sigaction* earlier = signal == SIGSEGV  ? &earlier_segv
                                      : signal == SIGBUS ? &earlier_bus
                                      : signal == SIGFPE ? &earlier_fpe
                                                         : &earlier_ill;
    sigaction(signal, earlier, nullptr);
}

static void on_late(int signal, siginfo_t* info, void* context) {
    if (running()) redirect(signal, info, context);
}

void install_fault_handlers() {
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    sigemptyset(&action.sa_mask);
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &earlier_segv);
    sigaction(SIGBUS, &action, &earlier_bus);
    sigaction(SIGFPE, &action, &earlier_fpe);
    sigaction(SIGILL, &action, &earlier_ill);
    action.sa_sigaction = on_late;
    action.sa_flags |= SA_RESTART;
    sigaction(SIGURG, &action, nullptr);
}

constexpr size_t kFaultStackBytes = 64 * 1024;

FaultStack::FaultStack() : memory(malloc(kFaultStackBytes)) {
    stack_t stack;
    memset(&stack, 0, sizeof(stack));
    stack.ss_sp = memory;
    stack.ss_size = kFaultStackBytes;
    sigaltstack(&stack, &previous);
}

FaultStack::~FaultStack() {
    if (previous.ss_flags & SS_DISABLE) previous.ss_size = MINSIGSTKSZ;
    sigaltstack(&previous, nullptr);
    free(memory);
}

// ---- The watch over running launches: one host thread for all, started with the first launch ----

namespace {
using Clock = std::chrono::steady_clock;
struct Worker {
    Launch* launch;
    pthread_t thread;
};
struct Entry {
    Launch* launch;
    Clock::time_point limit;
};
struct WatchState {
    std::mutex lock;
    std::condition_variable changed;
    std::list<Entry> launches;
    std::list<Worker> workers;
    bool started = false;
};
// Never destroyed: its thread may outlive main.
WatchState& state() {
    static WatchState& shared = *new WatchState;
    return shared;
}

void watch_forever() {
    WatchState& shared = state();
    std::unique_lock<std::mutex> guard(shared.lock);
    for (;;) {
        if (shared.launches.empty()) {
            shared.changed.wait(guard);
        } else {
            shared.changed.wait_for(guard, std::chrono::milliseconds(25));
        }
        Clock::time_point now = Clock::now();
        for (const Entry& entry : shared.launches) {
            if (now < entry.limit) continue;
            // A thread that calls the emulator ends itself; the others get a signal a little later.
            if (!entry.launch->late.exchange(true) || now < entry.limit + std::chrono::milliseconds(100)) continue;
            for (const Worker& worker : shared.workers)
                if (worker.launch == entry.launch) pthread_kill(worker.thread, SIGURG);
        }
    }
}
}  // namespace

Watch::Watch(Launch& launch) : launch(launch) {
    WatchState& shared = state();
    std::lock_guard<std::mutex> guard(shared.lock);
    bool was_idle = shared.launches.empty();
    shared.launches.push_back({&launch, Clock::now() + std::chrono::milliseconds(launch.options.time_limit_ms)});
    if (!shared.started) {
        shared.started = true;
        std::thread(watch_forever).detach();
    }
    if (was_idle) shared.changed.notify_one();
}

Watch::~Watch() {
    WatchState& shared = state();
    std::lock_guard<std::mutex> guard(shared.lock);
    shared.launches.remove_if([&](const Entry& entry) { return entry.launch == &launch; });
}

WorkerMark::WorkerMark(Launch& launch) : launch(launch) {
    std::lock_guard<std::mutex> guard(state().lock);
    state().workers.push_back({&launch, pthread_self()});
}

WorkerMark::~WorkerMark() {
    std::lock_guard<std::mutex> guard(state().lock);
    state().workers.remove_if(
        [&](const Worker& worker) { return worker.launch == &launch && pthread_equal(worker.thread, pthread_self()); });
}

}  // namespace simt
