// Instructions of Ampere and later, each under its name in the PTX manual and with its operands in the manual's order.
// What cannot be said in C++ is here and nowhere else: `tests/emulation` has the same functions for the CPU.

// d = {a, b} rounded to bf16, a in the upper half.
__device__ inline void cvt_rn_bf16x2(unsigned &d, float a, float b) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(a), "f"(b));
}

// Four 8 x 8 matrices from shared memory. Thread `8 i + j` says where row `j` of matrix `i` begins.
__device__ inline void ldmatrix_x4(unsigned (&d)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

// The same, each matrix transposed.
__device__ inline void ldmatrix_x4_trans(unsigned (&d)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

// d = a b + c, with d and c (16 x 8) of f32 in the same registers, a (16 x 16) and b (16 x 8) of bf16.
__device__ inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
