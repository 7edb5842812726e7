// The part of CUDA C that kernels here are written in, for a host compiler: included before a kernel's source, which is
// then compiled as it stands. `machine.cpp` runs it.
//
// Kernels are compiled with -fsanitize=thread, but not linked with that sanitizer: the calls that the compiler puts
// before every access to memory go to `machine.cpp`, which knows the rules of a GPU.
#pragma once

#include <cmath>
#include <cstring>

namespace machine {
struct Place {
    unsigned x;
};
Place thread_in_block();
Place block_in_grid();
Place threads_of_block();

// Waits for all threads of the block.
void barrier(int line);

// Gives up to eight words of each lane to all lanes of the warp, which have to do the same: (32, 8).
using Words = const unsigned (*)[8];
Words exchange(const char *what, const unsigned *words, int count);

unsigned lane();
void only_whole_warps(unsigned mask);
// What a thread reads that no compiler sees.
void matrix_row_is_read(const void *row);
[[noreturn]] void fail(const char *format, ...);
} // namespace machine

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(threads)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define threadIdx machine::thread_in_block()
#define blockIdx machine::block_in_grid()
#define blockDim machine::threads_of_block()
#define __syncthreads() machine::barrier(__LINE__)
#undef INFINITY // the standard's; NVRTC has none

struct __align__(16) uint4 {
    unsigned x, y, z, w;
};

inline float __int_as_float(int bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

float __shfl_xor_sync(unsigned mask, float x, int other);

// The instructions of `ptx.cuh`.
void cvt_rn_bf16x2(unsigned &d, float a, float b);
void ldmatrix_x4(unsigned (&d)[4], const void *row);
void ldmatrix_x4_trans(unsigned (&d)[4], const void *row);
void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
