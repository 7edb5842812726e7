// A thread for each number, or each two of them.

__device__ inline long long here() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
__device__ inline float gelu_of(float x) { return 0.5f * x * (1.0f + tanhf(0.7978846f * x * (1.0f + 0.044715f * x * x))); }

extern "C" __global__ void gelu(float *y, const float *x, long long count) {
    const long long i = here();
    if (i >= count) return;
    y[i] = gelu_of(x[i]);
}

// The same rounded to bf16, two numbers a thread.
extern "C" __global__ void gelu_bf16(bf16 *y, const float *x, long long count) {
    const long long i = 2 * here();
    if (i >= count) return;
    const unsigned both = rounded(gelu_of(x[i]), i + 1 < count ? gelu_of(x[i + 1]) : 0.0f);
    y[i] = both & 0xffff;
    if (i + 1 < count) y[i + 1] = both >> 16;
}

// y = x / (1 + exp(-x))
extern "C" __global__ void silu(float *y, const float *x, long long count) {
    const long long i = here();
    if (i >= count) return;
    y[i] = x[i] / (1.0f + expf(-x[i]));
}

// Turns channels 2 i and 2 i + 1 of each token by its angle i.
//
// * y - (heads, n, 2 pairs), x - the same with strides of heads and tokens, cos and sin - (n, pairs)
extern "C" __global__ void rotate_pairs(float *y, const float *x, const float *cos, const float *sin, long long heads, long long n, long long pairs, long long head_stride, long long token_stride) {
    const long long i = here();
    if (i >= heads * n * pairs) return;
    const long long angle = i % (n * pairs);
    const float *from = x + i / (n * pairs) * head_stride + angle / pairs * token_stride + angle % pairs * 2;
    const float even = from[0], odd = from[1];
    y[2 * i] = even * cos[angle] - odd * sin[angle];
    y[2 * i + 1] = even * sin[angle] + odd * cos[angle];
}
