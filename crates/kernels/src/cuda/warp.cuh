// What a warp does together. The layouts of matrices over the threads are those of the PTX manual: with `group` =
// lane / 4 and `pair` = lane % 4 * 2, a thread holds of an 8 x 8 matrix the two numbers at row `group`, columns `pair`
// and `pair + 1`.

typedef unsigned short bf16;

#define LOG2_E 1.44269504f
#define INFINITY __int_as_float(0x7f800000)

// Two numbers rounded to bf16, the first in the lower half.
__device__ inline unsigned rounded(float low, float high) {
    unsigned both;
    cvt_rn_bf16x2(both, high, low);
    return both;
}

// Four 8 x 8 matrices from shared memory. Thread `8 i + j` says where row `j` of matrix `i` begins.
__device__ inline void load_matrices(unsigned (&to)[4], const bf16 *row) { ldmatrix_x4(to, row); }

// The same, each matrix transposed.
__device__ inline void load_matrices_transposed(unsigned (&to)[4], const bf16 *row) { ldmatrix_x4_trans(to, row); }

// c += a b, with a (16 x 16) as four matrices: upper left, lower left, upper right, lower right; b (16 x 8) as the
// transposed upper and lower one; c (16 x 8) as the upper and the lower one.
__device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned upper, unsigned lower) {
    mma_m16n8k16_bf16(c, a, upper, lower);
}

// The greatest, and the sum, over the four threads that share a row.
__device__ inline float row_greatest(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}
