// Shuffles, and the instructions of `ptx.cuh` from the PTX manual: which thread holds which number of a matrix (sections
// on `ldmatrix` and on `mma.m16n8k16` with .bf16). Compiled without checks, so that only kernels are watched.
#include "cuda.h"

float __shfl_xor_sync(unsigned mask, float x, int other) {
    machine::only_whole_warps(mask);
    unsigned word;
    std::memcpy(&word, &x, 4);
    word = machine::exchange("a shuffle", &word, 1)[(machine::lane() ^ unsigned(other)) % 32][0];
    return __int_as_float(int(word));
}

static float widened(unsigned bits) { return __int_as_float(int(bits << 16)); }

// To the nearest bf16, to the even one of two.
static unsigned narrowed(float x) {
    if (std::isnan(x)) return 0x7fff;
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

void cvt_rn_bf16x2(unsigned &d, float a, float b) { d = narrowed(a) << 16 | narrowed(b); }

// What each thread read, eight numbers of bf16 in a row: thread `8 i + j` has row `j` of matrix `i`.
static machine::Words rows_of(const char *what, const void *row) {
    machine::matrix_row_is_read(row);
    unsigned words[4];
    std::memcpy(words, row, 16);
    return machine::exchange(what, words, 4);
}

void ldmatrix_x4(unsigned (&d)[4], const void *row) {
    const machine::Words rows = rows_of("ldmatrix", row);
    const unsigned lane = machine::lane();
    for (unsigned i = 0; i < 4; i++) d[i] = rows[8 * i + lane / 4][lane % 4];
}

void ldmatrix_x4_trans(unsigned (&d)[4], const void *row) {
    const machine::Words rows = rows_of("ldmatrix.trans", row);
    const unsigned lane = machine::lane(), column = lane / 4, first = lane % 4 * 2;
    for (unsigned i = 0; i < 4; i++) {
        const auto number = [&](unsigned row) { return rows[8 * i + row][column / 2] >> column % 2 * 16 & 0xffff; };
        d[i] = number(first) | number(first + 1) << 16;
    }
}

void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned own[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const machine::Words words = machine::exchange("mma", own, 6);
    const unsigned lane = machine::lane(), group = lane / 4, pair = lane % 4 * 2;
    // Number `k` of a row of a, or of a column of b: two neighbours in a word, eight later in another one.
    const auto number = [&](unsigned line, unsigned k, unsigned word) {
        return widened(words[line * 4 + k % 8 / 2][word] >> k % 2 * 16 & 0xffff);
    };
    for (unsigned i = 0; i < 4; i++) {
        const unsigned lower = i / 2, column = pair + i % 2;
        float sum = 0.0f;
        for (unsigned k = 0; k < 16; k++) sum += number(group, k, lower + k / 8 * 2) * number(column, k, 4 + k / 8);
        d[i] += sum;
    }
}
