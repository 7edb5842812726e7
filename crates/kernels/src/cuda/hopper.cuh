// Instructions that only Hopper has (compute capability 9.0a), each under its name in the PTX manual.

// Where a tensor lies in memory, as the driver has written it for the copy engine.
struct __align__(64) TensorMap {
    unsigned long long opaque[16];
};

// A barrier in shared memory that counts arrivals, and bytes that the copy engine brings.
typedef unsigned long long Barrier;

// What the launch asks for, from the first multiple of 1024 bytes on.
__device__ inline void *dynamic_shared() {
    extern __shared__ char memory[];
    return (void *)(((unsigned long long)memory + 1023) / 1024 * 1024);
}

__device__ inline unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ inline void mbarrier_init(Barrier *barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// What was initialised is seen by the copy engine.
__device__ inline void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void mbarrier_arrive(Barrier *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and so many bytes are to come before the phase ends.
__device__ inline void mbarrier_arrive_expect_tx(Barrier *barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

// Until the phase of this parity has ended. The one before the first has, and its parity is 1.
__device__ inline void mbarrier_wait(Barrier *barrier, unsigned parity) {
    asm volatile("{\n.reg .pred ended;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n@!ended bra AGAIN;\n}" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}

// The box at (x, y, z) of a tensor to shared memory; zeros beyond the tensor.
__device__ inline void cp_async_bulk_tensor_3d(void *to, const TensorMap *from, int x, int y, int z, Barrier *barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)), "l"(from), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z) : "memory");
}

// A matrix in shared memory, as products take it: rows of 64 numbers in 128 bytes, swizzled by 128 bytes, eight of them
// 1024 bytes. `next` is how many bytes the next 64 columns are away, where a product takes more of them.
__device__ inline unsigned long long matrix_descriptor(const void *first, unsigned next) {
    const unsigned long long address = (shared_address(first) & 0x3ffff) >> 4, rows = 1024 >> 4, swizzled_by_128 = 1;
    return address | (unsigned long long)(next >> 4) << 16 | rows << 32 | swizzled_by_128 << 62;
}

// Products that follow read registers and shared memory as they are now.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// What was begun since the last call is a group.
__device__ inline void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most N groups are under way.
template <int N>
__device__ inline void wgmma_wait_group() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// The compiler may not move what it does with these registers past here: products read and write them meanwhile.
template <int N>
__device__ inline void in_place(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}

// So many registers for each thread of this group of four warps, from now on.
template <int N>
__device__ inline void setmaxnreg_dec() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N>
__device__ inline void setmaxnreg_inc() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

// 2^x, about 22 bits.
__device__ inline float ex2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// A thread's registers of a result of 64 rows and 64 columns, and of 128: their places in an instruction, and the
// operands that are there.
#define PLACES_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PLACES_128 \
    PLACES_64 ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define RESULT_64(d) \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
    "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define RESULT_128(d) \
    RESULT_64(d), \
    "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), \
    "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), \
    "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
    "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])

// d = a b, or d += a b: d (64 x 128) of f32 in registers, a (64 x 16) and b (16 x 128) of bf16 in shared memory, whose 16
// numbers of a sum are neighbours.
__device__ inline void wgmma_m64n128k16_bf16(float (&d)[64], unsigned long long a, unsigned long long b, bool add) {
    asm volatile(
        "{.reg .pred add; setp.ne.b32 add, %66, 0;"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" PLACES_128 "}, %64, %65, add, 1, 1, 0, 0;}"
        : RESULT_128(d)
        : "l"(a), "l"(b), "r"((int)add));
}

// d += a b: d (64 x 64) of f32 and a (64 x 16) of bf16 in registers, b (16 x 64) of bf16 in shared memory, whose rows are
// neighbours.
__device__ inline void wgmma_by_rows(float (&d)[32], const unsigned (&a)[4], unsigned long long b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" PLACES_64 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
        : RESULT_64(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// The same with d (64 x 128) and b (16 x 128).
__device__ inline void wgmma_by_rows(float (&d)[64], const unsigned (&a)[4], unsigned long long b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" PLACES_128 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
        : RESULT_128(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
