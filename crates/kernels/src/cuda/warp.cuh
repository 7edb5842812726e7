// What a warp does together, in PTX for Ampere and later. The layouts of matrices over the threads are those of the PTX
// manual: with `group` = lane / 4 and `pair` = lane % 4 * 2, a thread holds of an 8 x 8 matrix the two numbers at row
// `group`, columns `pair` and `pair + 1`.

typedef unsigned short bf16;

// Two numbers rounded to bf16, the first in the lower half.
__device__ inline unsigned rounded(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// Four 8 x 8 matrices from shared memory. Thread `8 i + j` says where row `j` of matrix `i` begins.
__device__ inline void load_matrices(unsigned (&to)[4], const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

// The same, each matrix transposed.
__device__ inline void load_matrices_transposed(unsigned (&to)[4], const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

// c += a b, with a (16 x 16) as four matrices: upper left, lower left, upper right, lower right; b (16 x 8) as the
// transposed upper and lower one; c (16 x 8) as the upper and the lower one.
__device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned upper, unsigned lower) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(upper), "r"(lower));
}
