// Scaled dot-product attention on tensor cores, scores never in memory (Dao 2023, arXiv 2307.08691).
//
// A block of four warps owns 64 queries of a head, 16 a warp. Blocks of 64 keys and values pass through shared memory.
// What a product of queries and keys leaves in a thread's registers is, rounded, what the product with the values takes
// from there: exponentials never move.

#define WARPS 4
#define THREADS (32 * WARPS)
#define QUERIES (16 * WARPS)
#define KEYS 64

// Rows of D numbers to shared memory; zeros beyond the last one.
template <int D>
__device__ inline void fetch(bf16 (*to)[D + 8], const bf16 *from, long long rows) {
    for (int i = threadIdx.x; i < KEYS * D / 8; i += THREADS) {
        const int row = i / (D / 8), column = i % (D / 8) * 8;
        const uint4 nothing = {0, 0, 0, 0};
        *(uint4 *)&to[row][column] = row < rows ? *(const uint4 *)(from + row * D + column) : nothing;
    }
}

// * y - (n, heads, D), q - (heads, n, D), k and v - (heads, m, D)
// * bias - null, or (heads, n, m) with strides of heads and queries
template <int D>
__device__ inline void attend(float *y, const bf16 *q, const bf16 *k, const bf16 *v, const float *bias, long long heads, long long n, long long m, long long bias_head, long long bias_query, float scale) {
    // Rows are 16 bytes longer than they need be: eight of them then lie in different banks.
    __shared__ __align__(16) bf16 keys[KEYS][D + 8];
    __shared__ __align__(16) bf16 values[KEYS][D + 8];
    const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4 * 2;
    const long long tiles = (n + QUERIES - 1) / QUERIES, head = blockIdx.x / tiles; // a head's blocks follow each other
    const long long first = blockIdx.x % tiles * QUERIES + threadIdx.x / 32 * 16 + group;
    q += head * n * D;
    k += head * m * D;
    v += head * m * D;

    unsigned queries[D / 16][4];
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
            const long long row = first + part % 2 * 8;
            queries[i][part] = row < n ? *(const unsigned *)(q + row * D + i * 16 + part / 2 * 8 + pair) : 0;
        }
    }

    float mixed[D / 8][4] = {};
    float greatest[2] = {-INFINITY, -INFINITY}, sums[2] = {0.0f, 0.0f};
    for (long long block = 0; block < m; block += KEYS) {
        __syncthreads(); // the block before has been read
        fetch<D>(keys, k + block * D, m - block);
        fetch<D>(values, v + block * D, m - block);
        __syncthreads();

        // 1. Scores: 16 queries by 64 keys, 16 channels and 16 keys at a time
        float scores[KEYS / 8][4] = {};
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                unsigned part[4]; // first keys, their later channels, later keys, their later channels
                load_matrices(part, &keys[j * 16 + lane / 16 * 8 + lane % 8][i * 16 + lane / 8 % 2 * 8]);
                multiply_add(scores[2 * j], queries[i], part[0], part[1]);
                multiply_add(scores[2 * j + 1], queries[i], part[2], part[3]);
            }
        }

        // 2. Powers of two of them, against the greatest so far; what was added up before is scaled down to it
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const long long row = first + half * 8;
            float best = greatest[half];
#pragma unroll
            for (int i = 0; i < KEYS / 4; i++) {
                const long long key = block + i / 2 * 8 + pair + i % 2;
                float &score = scores[i / 2][half * 2 + i % 2];
                score *= scale * LOG2_E;
                if (bias != 0 && row < n && key < m) score += bias[head * bias_head + row * bias_query + key] * LOG2_E;
                if (key >= m) score = -INFINITY;
                best = fmaxf(best, score);
            }
            best = row_greatest(best);
            const float base = best == -INFINITY ? 0.0f : best;
            const float keep = exp2f(greatest[half] - base);
            greatest[half] = best;
            sums[half] *= keep;
#pragma unroll
            for (int i = 0; i < KEYS / 4; i++) {
                float &score = scores[i / 2][half * 2 + i % 2];
                score = exp2f(score - base);
                sums[half] += score;
            }
#pragma unroll
            for (int i = 0; i < D / 4; i++) mixed[i / 2][half * 2 + i % 2] *= keep;
        }

        // 3. Values, weighed by them: 16 keys and 16 channels at a time
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            float(&left)[4] = scores[2 * j], (&right)[4] = scores[2 * j + 1];
            const unsigned powers[4] = {rounded(left[0], left[1]), rounded(left[2], left[3]), rounded(right[0], right[1]), rounded(right[2], right[3])};
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                unsigned part[4]; // first channels of first keys, of later keys, later channels of first keys, of later keys
                load_matrices_transposed(part, &values[j * 16 + lane % 16][i * 16 + lane / 16 * 8]);
                multiply_add(mixed[2 * i], powers, part[0], part[1]);
                multiply_add(mixed[2 * i + 1], powers, part[2], part[3]);
            }
        }
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        const long long row = first + half * 8;
        const float sum = row_sum(sums[half]);
        const float share = sum == 0.0f ? 0.0f : 1.0f / sum;
        if (row >= n) continue;
        float *to = y + (row * heads + head) * D + pair;
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            to[i * 8] = mixed[i][half * 2] * share;
            to[i * 8 + 1] = mixed[i][half * 2 + 1] * share;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_64(float *y, const bf16 *q, const bf16 *k, const bf16 *v, const float *bias, long long heads, long long n, long long m, long long bias_head, long long bias_query, float scale) {
    attend<64>(y, q, k, v, bias, heads, n, m, bias_head, bias_query, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_128(float *y, const bf16 *q, const bf16 *k, const bf16 *v, const float *bias, long long heads, long long n, long long m, long long bias_head, long long bias_query, float scale) {
    attend<128>(y, q, k, v, bias, heads, n, m, bias_head, bias_query, scale);
}
