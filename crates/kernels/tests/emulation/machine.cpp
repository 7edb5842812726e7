// A GPU that runs one thread at a time, in an order that a seed decides, and watches every access to memory.
//
// Threads are contexts of their own that go on until they wait for their block or their warp. Two threads of a block
// that touch the same byte with no barrier between, one of them writing, are a race, whatever the order they ran in. A
// shuffle or another instruction of a warp is no barrier for memory.
#include "cuda.h"
#include "launch.h"

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

namespace {
enum class Doing { Running, AtBarrier, InWarp, Ended };

struct Thread {
    ucontext_t context;
    Doing doing;
    int line;         // of the barrier it waits at
    const char *what; // it does with its warp
    unsigned round;   // of exchanges
};

struct Warp {
    unsigned words[2][32][8]; // of this round and the one before
    unsigned waiting;
};

// Global memory that a kernel was given.
struct Buffer {
    uintptr_t begin, end;
    bool written;
    std::vector<int64_t> writers; // of each byte, thread of the grid, or -1
};

// A byte of shared memory: who touched it, and how many barriers had passed.
struct Byte {
    unsigned block = ~0u;
    int writer = -1, reader = -1;
    unsigned written = 0, read = 0;
};
constexpr int SEVERAL = -2;
constexpr uintptr_t PAGE = 4096;
constexpr size_t STACK = 64 << 10, MEMORY = 1 << 30, GAP = 64 << 10;
constexpr unsigned MOST_THREADS = 1024;

unsigned threads, blocks, block, phase, at_barrier, ended;
int current = -1; // the thread that runs; none before and after
uint64_t state;
std::vector<Thread> all;
std::vector<Warp> warps;
std::vector<int> ready;
ucontext_t outside;
char *stacks, *memory;
size_t taken = GAP;
std::vector<std::unique_ptr<Buffer>> buffers;
std::unordered_map<uintptr_t, std::vector<Byte>> shared;
void (*body)(const void *);
const void *context; // what a thread begins with: the arguments
size_t context_bytes;

unsigned pauses; // since something has happened

unsigned drawn(unsigned below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return unsigned((state >> 32) * below >> 32);
}

[[noreturn]] void stuck() {
    int waits = -1, other = -1;
    for (int i = 0; i < int(threads); i++) {
        if (all[i].doing != Doing::Ended && waits < 0) waits = i;
    }
    for (int i = 0; i < int(threads); i++) {
        if (all[i].doing != all[waits].doing && other < 0) other = i;
    }
    const auto place = [](int i) {
        const Thread &thread = all[i];
        if (thread.doing == Doing::AtBarrier) return "at the barrier of line " + std::to_string(thread.line);
        return thread.doing == Doing::InWarp ? std::string("in ") + thread.what : std::string("at its end");
    };
    machine::fail("a barrier is not reached by all: thread %d waits %s, thread %d is %s", waits, place(waits).c_str(), other, other < 0 ? "nowhere else" : place(other).c_str());
}

// Goes on with a thread that can, or outside when all have ended.
void next() {
    const int from = current;
    if (ready.empty()) {
        if (ended < threads) stuck();
        current = -1;
        setcontext(&outside);
    }
    const unsigned at = drawn(unsigned(ready.size()));
    current = ready[at];
    ready[at] = ready.back();
    ready.pop_back();
    all[current].doing = Doing::Running;
    if (current == from) return;
    if (from >= 0 && all[from].doing != Doing::Ended) {
        swapcontext(&all[from].context, &all[current].context);
    } else {
        setcontext(&all[current].context);
    }
}

void thread_begins() {
    body(context);
    all[current].doing = Doing::Ended;
    ended++;
    next();
}

void run_block() {
    phase = at_barrier = ended = 0;
    ready.clear();
    for (Warp &warp : warps) warp.waiting = 0;
    for (unsigned i = 0; i < threads; i++) {
        Thread &thread = all[i];
        thread.round = 0;
        thread.doing = Doing::Running;
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = stacks + i * STACK;
        thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, thread_begins, 0);
        ready.push_back(int(i));
    }
    volatile bool done = false;
    getcontext(&outside);
    if (done) return;
    done = true;
    next();
}

void *mapped(size_t bytes) {
    void *place = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED) machine::fail("no memory");
    return place;
}

const char *verb(bool writes) { return writes ? "writes" : "reads"; }

void global_access(uintptr_t address, size_t bytes, bool writes) {
    for (const auto &buffer : buffers) {
        if (address < buffer->begin || address + bytes > buffer->end) continue;
        if (writes != buffer->written) machine::fail("thread %d of block %u %s %s", current, block, verb(writes), writes ? "an input" : "its output");
        if (!writes) return;
        const int64_t self = int64_t(block) * MOST_THREADS + current;
        for (size_t i = address - buffer->begin; i < address - buffer->begin + bytes; i++) {
            int64_t &writer = buffer->writers[i];
            if (writer >= 0 && writer != self) machine::fail("race: byte %zu of the output is written by two threads", i);
            writer = self;
        }
        return;
    }
    machine::fail("out of bounds: thread %d of block %u %s where nothing was given", current, block, verb(writes));
}

void shared_access(uintptr_t address, size_t bytes, bool writes) {
    for (; bytes > 0; address++, bytes--) {
        std::vector<Byte> &page = shared[address / PAGE];
        if (page.empty()) page.resize(PAGE);
        Byte &byte = page[address % PAGE];
        if (byte.block != block) byte = {block, -1, -1, 0, 0};
        if (byte.writer < 0 && !writes) machine::fail("thread %d of block %u reads shared memory that nobody has written, or no memory at all", current, block);
        if (byte.writer >= 0 && byte.writer != current && byte.written == phase) {
            machine::fail("race: thread %d of block %u %s what thread %d wrote, with no barrier between", current, block, verb(writes), byte.writer);
        }
        const bool is_read = byte.reader != -1 && byte.read == phase;
        if (writes && is_read && byte.reader != current) {
            machine::fail("race: thread %d of block %u writes what others read, with no barrier between", current, block);
        }
        if (writes) {
            byte.writer = current;
            byte.written = phase;
        } else {
            byte.reader = is_read && byte.reader != current ? SEVERAL : current;
            byte.read = phase;
        }
    }
}

void access(const void *place, size_t bytes, bool writes, size_t alignment) {
    if (current < 0) return;
    const auto address = reinterpret_cast<uintptr_t>(place), stack = reinterpret_cast<uintptr_t>(stacks);
    if (address >= stack && address < stack + STACK * MOST_THREADS) return; // a thread's own
    const auto given = reinterpret_cast<uintptr_t>(context);
    if (address >= given && address < given + context_bytes) return;
    if (address % alignment != 0) machine::fail("thread %d of block %u %s %zu bytes at an address that is not a multiple", current, block, verb(writes), alignment);
    const auto global = reinterpret_cast<uintptr_t>(memory);
    if (address >= global && address < global + MEMORY) {
        global_access(address, bytes, writes);
    } else {
        shared_access(address, bytes, writes);
    }
}

// One line of what to run.
std::string line() {
    std::string text;
    if (!std::getline(std::cin, text)) machine::fail("too few arguments were given");
    return text;
}

std::string value(const std::string &kind) {
    const std::string text = line();
    if (text.rfind(kind + " ", 0) != 0) machine::fail("the kernel takes %s here, and is given %s", kind.c_str(), text.c_str());
    return text.substr(kind.size() + 1);
}
} // namespace

namespace machine {
void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    std::fflush(stderr);
    _exit(1);
}

Place thread_in_block() { return {unsigned(current)}; }
Place block_in_grid() { return {block}; }
Place threads_of_block() { return {threads}; }
unsigned lane() { return unsigned(current) % 32; }
unsigned random_below(unsigned below) { return drawn(below); }

void happened() { pauses = 0; }
bool idle() { return pauses > 4 * threads; }

void pause() {
    if (++pauses > 1000 * threads) fail("threads wait for each other: thread %d of block %u waits at a barrier of Hopper's", current, block);
    ready.push_back(current);
    next();
}

void only_whole_warps(unsigned mask) {
    if (mask != ~0u) fail("only whole warps work together here");
}

void matrix_row_is_read(const void *row) { access(row, 16, false, 16); }

void barrier(int line) {
    Thread &self = all[current];
    self.doing = Doing::AtBarrier;
    self.line = line;
    if (++at_barrier == threads) {
        for (unsigned i = 0; i < threads; i++) {
            if (all[i].line != line) fail("a barrier is not reached by all: thread %d waits at line %d, thread %u at line %d", current, line, i, all[i].line);
            ready.push_back(int(i));
        }
        at_barrier = 0;
        phase++;
    }
    next();
}

Words exchange(const char *what, const unsigned *words, int count) {
    const int own = current;
    Thread &self = all[own];
    Warp &warp = warps[own / 32];
    const unsigned round = self.round++ % 2;
    std::memcpy(warp.words[round][own % 32], words, count * sizeof *words);
    self.doing = Doing::InWarp;
    self.what = what;
    if (++warp.waiting == 32) {
        for (int i = own / 32 * 32; i < own / 32 * 32 + 32; i++) {
            if (std::strcmp(all[i].what, what) != 0) fail("a warp does two things at once: %s, %s", what, all[i].what);
            ready.push_back(i);
        }
        warp.waiting = 0;
    }
    next();
    return warp.words[round];
}

void *buffer(const char *kind, bool written) {
    // A null pointer is an input like another; nothing may be read there.
    std::string text = line();
    if (text == "null" && !written) return nullptr;
    if (text.rfind(std::string(kind) + " ", 0) != 0) fail("the kernel takes %s here, and is given %s", kind, text.c_str());
    const size_t bytes = std::stoull(text.substr(std::strlen(kind) + 1));
    if (taken + bytes + GAP > MEMORY) fail("more is given than this machine has memory");
    char *place = memory + taken;
    taken = (taken + bytes + GAP + 255) / 256 * 256;
    if (written) {
        std::memset(place, 0xff, bytes); // what is left out is not a number
    } else {
        std::cin.read(place, std::streamsize(bytes));
        if (size_t(std::cin.gcount()) != bytes) fail("an input is cut short");
    }
    const auto begin = reinterpret_cast<uintptr_t>(place);
    buffers.push_back(std::unique_ptr<Buffer>(new Buffer{begin, begin + bytes, written, std::vector<int64_t>(written ? bytes : 0, -1)}));
    return place;
}

long long whole() { return std::stoll(value("size")); }

float number() { return __int_as_float(int(std::stoul(value("number")))); }

void run(void (*kernel)(const void *), const void *arguments, size_t bytes) {
    if (threads == 0 || threads % 32 != 0 || threads > MOST_THREADS) fail("blocks of %u threads are not whole warps", threads);
    body = kernel;
    context = arguments;
    context_bytes = bytes;
    stacks = static_cast<char *>(mapped(STACK * MOST_THREADS));
    all = std::vector<Thread>(threads);
    warps = std::vector<Warp>(threads / 32);
    const unsigned first = drawn(blocks); // blocks are in no order either
    for (unsigned i = 0; i < blocks; i++) {
        block = (first + i) % blocks;
        run_block();
    }
}

int start(const char *const *names, void (*const *launches)()) {
    memory = static_cast<char *>(mapped(MEMORY));
    const std::string name = value("kernel");
    blocks = unsigned(std::stoul(value("blocks")));
    threads = unsigned(std::stoul(value("threads")));
    state = std::stoull(value("seed")) * 0x9e3779b97f4a7c15 | 1;
    for (size_t i = 0; names[i] != nullptr; i++) {
        if (name != names[i]) continue;
        launches[i]();
        for (const auto &buffer : buffers) {
            if (buffer->written) std::cout.write(reinterpret_cast<const char *>(buffer->begin), std::streamsize(buffer->end - buffer->begin));
        }
        std::cout.flush();
        return 0;
    }
    fail("there is no kernel %s", name.c_str());
}
} // namespace machine

// What compilers call before every access to memory that others might see.
#define ACCESS(bytes)                                                                         \
    void __tsan_read##bytes(void *place) { access(place, bytes, false, bytes); }              \
    void __tsan_write##bytes(void *place) { access(place, bytes, true, bytes); }              \
    void __tsan_unaligned_read##bytes(void *place) { access(place, bytes, false, bytes); }    \
    void __tsan_unaligned_write##bytes(void *place) { access(place, bytes, true, bytes); }
extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
// Copies of structures, which is vectors of four numbers.
void __tsan_read_range(void *place, size_t bytes) { access(place, bytes, false, 16); }
void __tsan_write_range(void *place, size_t bytes) { access(place, bytes, true, 16); }
void *__tsan_memcpy(void *to, const void *from, size_t bytes) {
    access(from, bytes, false, 16);
    access(to, bytes, true, 16);
    return std::memcpy(to, from, bytes);
}
void *__tsan_memset(void *to, int value, size_t bytes) {
    access(to, bytes, true, 16);
    return std::memset(to, value, bytes);
}
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
}
