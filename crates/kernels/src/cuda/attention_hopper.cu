// Attention on Hopper (Shah et al. 2024, arXiv 2407.08608, without its turns of two groups and without fp8).
//
// A block of three groups of four warps owns 128 queries of a head. The first group brings keys and values by the copy
// engine, two blocks of each ahead; the others have 64 queries each. While the tensor cores multiply values, and queries
// by the next keys, the exponentials of the keys between are computed.

#define GROUP 128
#define QUERIES 128
#define KEYS 128
#define STAGES 2

// 64 channels in 128 bytes, swizzled by the copy engine; the next 64 channels follow all rows.
template <int D>
struct Shared {
    bf16 queries[D / 64][QUERIES][64];
    bf16 keys[STAGES][D / 64][KEYS][64];
    bf16 values[STAGES][D / 64][KEYS][64];
    Barrier queries_here, keys_here[STAGES], keys_read[STAGES], values_here[STAGES], values_read[STAGES];
};

// A block of rows of a head to shared memory.
template <int D, int ROWS>
__device__ inline void bring(bf16 (*to)[ROWS][64], const TensorMap *from, int row, int head, Barrier *here) {
    mbarrier_arrive_expect_tx(here, D * ROWS * sizeof(bf16));
    for (int i = 0; i < D / 64; i++) cp_async_bulk_tensor_3d(to[i], from, i * 64, row, head, here);
}

// scores = queries keys^T, 64 by KEYS, begun.
template <int D>
__device__ inline void begin_scores(float (&scores)[KEYS / 2], const bf16 (*queries)[QUERIES][64], int first, const bf16 (*keys)[KEYS][64]) {
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        const unsigned long long a = matrix_descriptor(&queries[i / 4][first][i % 4 * 16], 16);
        wgmma_m64n128k16_bf16(scores, a, matrix_descriptor(&keys[i / 4][0][i % 4 * 16], 16), i > 0);
    }
    wgmma_commit_group();
}

// mixed += powers values, 64 by D, begun.
template <int D>
__device__ inline void begin_mixing(float (&mixed)[D / 2], const unsigned (&powers)[KEYS / 16][4], const bf16 (*values)[KEYS][64]) {
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++) wgmma_by_rows(mixed, powers[i], matrix_descriptor(values[0][i * 16], KEYS * 128));
    wgmma_commit_group();
}

// Powers of two of the scores, against the greatest of a row so far; `keep` is what earlier ones are to be multiplied
// by. Keys from `left` on are none.
__device__ inline void to_powers(float (&scores)[KEYS / 2], float (&greatest)[2], float (&sums)[2], float (&keep)[2], float scale, long long left, int pair) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float best = greatest[half];
#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) {
            float &score = scores[i / 2 * 4 + half * 2 + i % 2];
            if (left < KEYS && i / 2 * 8 + pair + i % 2 >= left) score = -INFINITY;
            best = fmaxf(best, score);
        }
        best = row_greatest(best);
        const float base = best == -INFINITY ? 0.0f : best * scale;
        keep[half] = ex2_approx(greatest[half] * scale - base);
        greatest[half] = best;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) {
            float &score = scores[i / 2 * 4 + half * 2 + i % 2];
            score = ex2_approx(score * scale - base);
            sum += score;
        }
        sums[half] = sums[half] * keep[half] + sum;
    }
}

// As products with the values take them: 64 queries by 16 keys at a time.
__device__ inline void round_all(unsigned (&powers)[KEYS / 16][4], const float (&scores)[KEYS / 2]) {
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) powers[i / 4][i % 4] = rounded(scores[2 * i], scores[2 * i + 1]);
}

// * y - (n, heads, D)
// * q - (heads, n, D), k and v - (heads, m, D)
template <int D>
__device__ inline void attend(float *y, const TensorMap *q, const TensorMap *k, const TensorMap *v, long long heads, long long n, long long m, float scale) {
    Shared<D> &shared = *(Shared<D> *)dynamic_shared();
    const long long tiles = (n + QUERIES - 1) / QUERIES; // a head's blocks follow each other
    const int head = blockIdx.x / tiles, first = blockIdx.x % tiles * QUERIES, blocks = (m + KEYS - 1) / KEYS;
    if (threadIdx.x == 0) {
        mbarrier_init(&shared.queries_here, 1);
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(&shared.keys_here[i], 1);
            mbarrier_init(&shared.values_here[i], 1);
            mbarrier_init(&shared.keys_read[i], 8); // a thread of every warp
            mbarrier_init(&shared.values_read[i], 8);
        }
        fence_mbarrier_init();
    }
    __syncthreads();

    if (threadIdx.x < GROUP) {
        setmaxnreg_dec<24>();
        if (threadIdx.x != 0) return;
        bring<D>(shared.queries, q, first, head, &shared.queries_here);
        for (int block = 0; block < blocks; block++) {
            const int stage = block % STAGES, before = (block / STAGES + 1) % 2;
            mbarrier_wait(&shared.keys_read[stage], before);
            bring<D>(shared.keys[stage], k, block * KEYS, head, &shared.keys_here[stage]);
            mbarrier_wait(&shared.values_read[stage], before);
            bring<D>(shared.values[stage], v, block * KEYS, head, &shared.values_here[stage]);
        }
        return;
    }

    setmaxnreg_inc<240>();
    const int own = threadIdx.x / GROUP * 64 - 64, lane = threadIdx.x % 32, pair = lane % 4 * 2;
    float scores[KEYS / 2], mixed[D / 2] = {}, keep[2];
    float greatest[2] = {-INFINITY, -INFINITY}, sums[2] = {0.0f, 0.0f};
    unsigned powers[KEYS / 16][4];
    mbarrier_wait(&shared.queries_here, 0);
    mbarrier_wait(&shared.keys_here[0], 0);
    wgmma_fence();
    begin_scores<D>(scores, shared.queries, own, shared.keys[0]);
    wgmma_wait_group<0>();
    in_place(scores);
    if (lane == 0) mbarrier_arrive(&shared.keys_read[0]);
    to_powers(scores, greatest, sums, keep, scale, m, pair);
    round_all(powers, scores);
    for (int block = 1; block < blocks; block++) {
        const int stage = block % STAGES, before = (block - 1) % STAGES;
        mbarrier_wait(&shared.keys_here[stage], block / STAGES % 2);
        in_place(mixed);
        wgmma_fence();
        begin_scores<D>(scores, shared.queries, own, shared.keys[stage]);
        mbarrier_wait(&shared.values_here[before], (block - 1) / STAGES % 2);
        begin_mixing<D>(mixed, powers, shared.values[before]);
        wgmma_wait_group<1>();
        in_place(scores);
        if (lane == 0) mbarrier_arrive(&shared.keys_read[stage]);
        to_powers(scores, greatest, sums, keep, scale, m - (long long)block * KEYS, pair);
        wgmma_wait_group<0>();
        in_place(mixed);
        if (lane == 0) mbarrier_arrive(&shared.values_read[before]);
#pragma unroll
        for (int i = 0; i < D / 2; i++) mixed[i] *= keep[i / 2 % 2];
        round_all(powers, scores);
    }
    const int last = (blocks - 1) % STAGES;
    mbarrier_wait(&shared.values_here[last], (blocks - 1) / STAGES % 2);
    in_place(mixed);
    wgmma_fence();
    begin_mixing<D>(mixed, powers, shared.values[last]);
    wgmma_wait_group<0>();
    in_place(mixed);

#pragma unroll
    for (int half = 0; half < 2; half++) {
        const long long row = first + own + threadIdx.x % GROUP / 32 * 16 + lane / 4 + half * 8;
        const float share = 1.0f / row_sum(sums[half]);
        if (row >= n) continue;
        float *to = y + (row * heads + head) * D + pair;
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            *(float2 *)(to + i * 8) = float2{mixed[i * 4 + half * 2] * share, mixed[i * 4 + half * 2 + 1] * share};
        }
    }
}

extern "C" __global__ void __launch_bounds__(3 * GROUP, 1) attention_hopper_64(float *y, const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, long long heads, long long n, long long m, float scale) {
    attend<64>(y, &q, &k, &v, heads, n, m, scale * LOG2_E);
}

extern "C" __global__ void __launch_bounds__(3 * GROUP, 1) attention_hopper_128(float *y, const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, long long heads, long long n, long long m, float scale) {
    attend<128>(y, &q, &k, &v, heads, n, m, scale * LOG2_E);
}
