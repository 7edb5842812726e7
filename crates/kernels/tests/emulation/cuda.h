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
unsigned random_below(unsigned below);
// Lets others go on, until something has happened; `fail`s when nothing can any more.
void pause();
void happened();
// Whether all threads have waited for a while.
bool idle();
// What a thread reads that no compiler sees.
void matrix_row_is_read(const void *row);
[[noreturn]] void fail(const char *format, ...);
} // namespace machine

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define threadIdx machine::thread_in_block()
#define blockIdx machine::block_in_grid()
#define blockDim machine::threads_of_block()
#define __syncthreads() machine::barrier(__LINE__)
#undef INFINITY // the standard's; NVRTC has none

struct __align__(16) uint4 {
    unsigned x, y, z, w;
};

struct __align__(8) float2 {
    float x, y;
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

// What `hopper.cuh` has.
struct TensorMap {
    const unsigned short *first;
    long long dims[3], box[3]; // fastest first
};
typedef unsigned long long Barrier;

void *dynamic_shared();
void mbarrier_init(Barrier *barrier, unsigned arrivals);
inline void fence_mbarrier_init() {}
void mbarrier_arrive(Barrier *barrier);
void mbarrier_arrive_expect_tx(Barrier *barrier, unsigned bytes);
void mbarrier_wait(Barrier *barrier, unsigned parity);
void cp_async_bulk_tensor_3d(void *to, const TensorMap *from, int x, int y, int z, Barrier *barrier);
unsigned long long matrix_descriptor(const void *first, unsigned next);
inline void wgmma_fence() {}
void wgmma_commit_group();
void wgmma_wait(unsigned left);
template <int N> inline void wgmma_wait_group() { wgmma_wait(N); }
template <int N> inline void in_place(float (&)[N]) {}
template <int N> inline void setmaxnreg_dec() {}
template <int N> inline void setmaxnreg_inc() {}
float ex2_approx(float x);
// `a_registers` or the descriptor `a`.
void wgmma(float *d, unsigned columns, unsigned long long a, const unsigned *a_registers, unsigned long long b, bool add);
inline void wgmma_m64n128k16_bf16(float (&d)[64], unsigned long long a, unsigned long long b, bool add) { wgmma(d, 128, a, nullptr, b, add); }
inline void wgmma_by_rows(float (&d)[32], const unsigned (&a)[4], unsigned long long b) { wgmma(d, 64, 0, a, b, true); }
inline void wgmma_by_rows(float (&d)[64], const unsigned (&a)[4], unsigned long long b) { wgmma(d, 128, 0, a, b, true); }
