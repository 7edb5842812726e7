// The instructions of `hopper.cuh`, from the PTX manual (sections on `mbarrier`, `cp.async.bulk.tensor`, swizzling modes
// and `wgmma`). What is asynchronous there happens here later, at a time that the seed decides: until then, what a copy
// writes is no number, and so are the registers that a product writes until its group is waited for. Compiled without
// checks, as `ptx.cpp`.
#include "cuda.h"

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <vector>

namespace {
constexpr unsigned GROUP = 128, GROUPS = 8, SHARED_BYTES = 227 << 10;
constexpr uint64_t SBO = 1024;
alignas(1024) unsigned char memory[SHARED_BYTES];

struct Phase {
    unsigned arrivals, missing;
    long long bytes; // that are to come
    unsigned number;
};

// A thread's part in a product.
struct Part {
    float *d;
    const unsigned *a_registers;
};

struct Product {
    unsigned columns;
    uint64_t a, b;
    bool add;
    unsigned threads; // that have begun it
    Part parts[GROUP];
};

struct Group {
    std::vector<Product> products;
    size_t done;
};

// What a thread has begun: products, at the end of each of its groups of them, and registers that they write.
struct Own {
    unsigned products;
    std::vector<unsigned> commits;
    std::map<float *, std::vector<float>> registers;
};

unsigned of_block = ~0u;
std::map<Barrier *, Phase> barriers;
std::vector<std::function<void()>> copies;
Group groups[GROUPS];
std::map<unsigned, Own> own;

unsigned self() { return machine::thread_in_block().x; }

// Forgets the block before.
void begin() {
    if (of_block == machine::block_in_grid().x) return;
    of_block = machine::block_in_grid().x;
    std::memset(memory, 0xff, sizeof memory);
    barriers.clear();
    copies.clear();
    own.clear();
    for (Group &group : groups) group = {};
}

Phase &phase(Barrier *barrier) {
    begin();
    const auto found = barriers.find(barrier);
    if (found == barriers.end()) machine::fail("a barrier is used that was not initialised");
    return found->second;
}

void ends_if_complete(Phase &phase) {
    if (phase.missing > 0 || phase.bytes > 0) return;
    phase.number++;
    phase.missing = phase.arrivals;
    machine::happened();
}

unsigned char *at(uint64_t address) {
    address ^= address >> 7 << 4 & 0x70; // swizzled by 128 bytes
    if (address + 2 > SHARED_BYTES) machine::fail("out of bounds: byte %llu of shared memory", (unsigned long long)address);
    return memory + address;
}

float number(uint64_t address) {
    uint16_t bits;
    std::memcpy(&bits, at(address), 2);
    return __int_as_float(int(unsigned(bits) << 16));
}

float widened(unsigned word, unsigned half) { return __int_as_float(int(word >> half * 16 << 16)); }

uint64_t first(uint64_t descriptor) { return (descriptor & 0x3fff) << 4; }

// Rows are of the first operand, or columns of the second: 16 neighbours of a sum.
float by_sums(uint64_t descriptor, unsigned row, unsigned k) {
    return number(first(descriptor) + row / 8 * (descriptor >> 32 & 0x3fff) * 16 + row % 8 * 128 + k * 2);
}

// The second operand, rows of neighbours.
float by_rows(uint64_t descriptor, unsigned k, unsigned column) {
    const uint64_t next = (descriptor >> 16 & 0x3fff) << 4;
    return number(first(descriptor) + column / 64 * next + k / 8 * (descriptor >> 32 & 0x3fff) * 16 + k % 8 * 128 + column % 64 * 2);
}

void multiply(unsigned group, const Product &product) {
    float a[64][16], b[16][128];
    for (unsigned row = 0; row < 64; row++) {
        for (unsigned k = 0; k < 16; k++) {
            // A warp has 16 rows; a thread holds two neighbours of rows `lane / 4` and eight later, and eight numbers on.
            const Part &part = product.parts[row / 16 * 32 + row % 8 * 4 + k % 8 / 2];
            a[row][k] = part.a_registers == nullptr ? by_sums(product.a, row, k) : widened(part.a_registers[row % 16 / 8 + k / 8 * 2], k % 2);
        }
    }
    for (unsigned k = 0; k < 16; k++) {
        for (unsigned column = 0; column < product.columns; column++) {
            b[k][column] = product.parts[0].a_registers == nullptr ? by_sums(product.b, column, k) : by_rows(product.b, k, column);
        }
    }
    for (unsigned thread = 0; thread < GROUP; thread++) {
        std::vector<float> &d = own[group * GROUP + thread].registers.at(product.parts[thread].d);
        for (unsigned i = 0; i < product.columns / 2; i++) {
            const unsigned row = thread / 32 * 16 + thread % 32 / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
            float sum = product.add ? d[i] : 0.0f;
            for (unsigned k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
            d[i] = sum;
        }
    }
}

// One of the things that are under way is done, if there is any: copies when nothing else can be.
void something_is_done() {
    const unsigned from = machine::random_below(GROUPS);
    for (unsigned i = 0; i < GROUPS; i++) {
        Group &group = groups[(from + i) % GROUPS];
        if (group.done == group.products.size() || group.products[group.done].threads < GROUP) continue;
        multiply((from + i) % GROUPS, group.products[group.done++]);
        return machine::happened();
    }
    if (copies.empty() || !machine::idle()) return;
    const unsigned chosen = machine::random_below(unsigned(copies.size()));
    const std::function<void()> copy = copies[chosen];
    copies.erase(copies.begin() + chosen);
    copy();
    machine::happened();
}

void wait() {
    if (machine::random_below(16) == 0) something_is_done();
    machine::pause();
}
} // namespace

void *dynamic_shared() {
    begin();
    return memory;
}

void mbarrier_init(Barrier *barrier, unsigned arrivals) {
    begin();
    barriers[barrier] = {arrivals, arrivals, 0, 0};
}

void mbarrier_arrive(Barrier *barrier) { mbarrier_arrive_expect_tx(barrier, 0); }

void mbarrier_arrive_expect_tx(Barrier *barrier, unsigned bytes) {
    Phase &found = phase(barrier);
    if (found.missing == 0) machine::fail("more threads arrive at a barrier than it waits for");
    found.bytes += bytes;
    found.missing--;
    ends_if_complete(found);
}

void mbarrier_wait(Barrier *barrier, unsigned parity) {
    wait(); // others may be first
    while (phase(barrier).number % 2 == parity) wait();
}

void cp_async_bulk_tensor_3d(void *to, const TensorMap *map, int x, int y, int z, Barrier *barrier) {
    begin();
    const auto target = uint64_t(static_cast<unsigned char *>(to) - memory);
    const TensorMap from = *map;
    if (from.box[0] != 64 || from.box[2] != 1 || target % 1024 != 0) machine::fail("a copy is not of rows of 128 bytes to a multiple of 1024");
    std::memset(memory + target, 0xff, from.box[1] * 128);
    copies.push_back([=] {
        for (long long row = 0; row < from.box[1]; row++) {
            for (long long column = 0; column < 64; column++) {
                const bool inside = x + column < from.dims[0] && y + row < from.dims[1] && z < from.dims[2];
                const unsigned short nothing = 0;
                const unsigned short *number = inside ? from.first + ((z * from.dims[1]) + y + row) * from.dims[0] + x + column : &nothing;
                std::memcpy(at(target + row * 128 + column * 2), number, 2);
            }
        }
        Phase &found = phase(barrier);
        found.bytes -= from.box[1] * 128;
        ends_if_complete(found);
    });
}

unsigned long long matrix_descriptor(const void *first, unsigned next) {
    const auto address = uint64_t(static_cast<const unsigned char *>(first) - memory);
    return (address & 0x3ffff) >> 4 | uint64_t(next >> 4) << 16 | SBO >> 4 << 32 | uint64_t(1) << 62;
}

void wgmma(float *d, unsigned columns, unsigned long long a, const unsigned *a_registers, unsigned long long b, bool add) {
    begin();
    const unsigned thread = self();
    Group &group = groups[thread / GROUP];
    Own &mine = own[thread];
    if (mine.products == group.products.size()) group.products.push_back({columns, a, b, add, 0, {}});
    Product &product = group.products[mine.products++];
    if (product.columns != columns || product.a != a || product.b != b || product.add != add) machine::fail("threads of a group multiply different matrices");
    product.parts[thread % GROUP] = {d, a_registers};
    product.threads++;
    if (mine.registers.count(d) == 0) {
        mine.registers[d] = std::vector<float>(d, d + columns / 2);
        std::memset(d, 0xff, columns / 2 * sizeof *d);
    }
}

void wgmma_commit_group() { own[self()].commits.push_back(own[self()].products); }

void wgmma_wait(unsigned left) {
    const unsigned thread = self();
    Own &mine = own[thread];
    const size_t commits = mine.commits.size();
    const unsigned until = commits > left ? mine.commits[commits - 1 - left] : 0;
    while (groups[thread / GROUP].done < until) wait();
    // Registers that nothing under way writes are there.
    for (auto entry = mine.registers.begin(); entry != mine.registers.end();) {
        bool under_way = false;
        for (size_t i = until; i < mine.products; i++) under_way |= groups[thread / GROUP].products[i].parts[thread % GROUP].d == entry->first;
        if (under_way) {
            entry++;
            continue;
        }
        std::memcpy(entry->first, entry->second.data(), entry->second.size() * sizeof(float));
        entry = mine.registers.erase(entry);
    }
}

float ex2_approx(float x) { return std::exp2f(x); }
