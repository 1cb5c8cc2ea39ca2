// Failures: the first one of a launch is kept, with the kernel, block, thread and source line; the block is then left.
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <map>

#include "runtime.h"

namespace simt {

// Stands for the source line of the failing code.
static const char kPlace[] = "\x01";

static std::string print(const char* format, va_list values) {
    char text[4096];
    vsnprintf(text, sizeof(text), format, values);
    return text;
}

static void record(Fiber& fiber, const void* code, const void* other_code, Location at, const std::string& message) {
    Launch& launch = *fiber.block->launch;
    char head[512];
    snprintf(head, sizeof(head), "kernel %s, block (%u,%u,%u), thread (%u,%u,%u)", launch.kernel->name, fiber.block->index.x,
             fiber.block->index.y, fiber.block->index.z, fiber.thread.x, fiber.thread.y, fiber.thread.z);
    std::string text = head;
    if (code) {
        text += std::string(" at ") + kPlace;
    } else if (at.file) {
        text += std::string(" at ") + at.file + ":" + std::to_string(at.line);
    }
    std::lock_guard<std::mutex> guard(launch.report_lock);
    if (!launch.report.present) {
        launch.report.present = true;
        launch.report.text = text + ": " + message;
        launch.report.code = code;
        launch.report.other_code = other_code;
    }
    launch.stop = true;
}

void abandon(Block& block) {
    block.failed = true;
    current = nullptr;
    void* gone;
    switch_stack(&gone, block.cluster->host_stack);
    __builtin_unreachable();
}

static void leave(Fiber& fiber, const void* code, const void* other_code, Location at, const std::string& message) {
    record(fiber, code, other_code, at, message);
    abandon(*fiber.block);
}

void fail(Location at, const char* format, ...) {
    va_list values;
    va_start(values, format);
    std::string message = print(format, values);
    va_end(values);
    leave(*running(), nullptr, nullptr, at, message);
    __builtin_unreachable();
}

void fail_as(Fiber& fiber, Location at, const char* format, ...) {
    va_list values;
    va_start(values, format);
    std::string message = print(format, values);
    va_end(values);
    leave(fiber, nullptr, nullptr, at, message);
    __builtin_unreachable();
}

void fail_at(const void* code, const void* other_code, Location at, const char* format, ...) {
    va_list values;
    va_start(values, format);
    std::string message = print(format, values);
    va_end(values);
    leave(*running(), code, other_code, at, message);
    __builtin_unreachable();
}

static std::string ask_addr2line(const std::string& program, uintptr_t offset) {
    char command[4600], line[1024];
    snprintf(command, sizeof(command), "addr2line -i -e '%s' %#lx 2>/dev/null", program.c_str(), (unsigned long)offset);
    FILE* pipe = popen(command, "r");
    if (!pipe) return {};
    std::string chain;
    while (fgets(line, sizeof(line), pipe)) {
        line[strcspn(line, "\n ")] = 0;
        if (line[0] == '?') break;
        // Frames of the emulator's own header: intrinsics on the inside, the call of the entry point on the outside.
        if (strstr(line, "simt/device.h")) {
            if (chain.empty()) continue;
            break;
        }
        const char* name = strncmp(line, "./", 2) == 0 ? line + 2 : line;
        chain += (chain.empty() ? "" : ", called from ") + std::string(name);
    }
    pclose(pipe);
    return chain;
}

std::string source_line(const void* code) {
    static std::mutex lock;
    static std::map<const void*, std::string> known;
    std::lock_guard<std::mutex> guard(lock);
    std::string& text = known[code];
    if (!text.empty()) return text;
    Dl_info info;
    if (dladdr(code, &info) && info.dli_fbase) {
        // The program names itself as it was started, which need not lead to its file.
        std::string program = info.dli_fname && info.dli_fname[0] == '/' ? info.dli_fname : "/proc/self/exe";
        char resolved[4096];
        if (program == "/proc/self/exe" && realpath(program.c_str(), resolved)) program = resolved;
        text = ask_addr2line(program, uintptr_t(code) - uintptr_t(info.dli_fbase));
    }
    if (text.empty()) {
        char address[32];
        snprintf(address, sizeof(address), "%p", code);
        text = std::string("code address ") + address;
    }
    return text;
}

static void replace(std::string& text, const char* mark, const void* code) {
    size_t at = text.find(mark);
    if (at != std::string::npos) text.replace(at, 1, source_line(code));
}

std::string finished_report(const Report& report) {
    std::string text = report.text;
    replace(text, kPlace, report.code);
    replace(text, kOtherPlace, report.other_code);
    return text;
}

}  // namespace simt
