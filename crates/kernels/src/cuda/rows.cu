// A block of 256 threads for each row.

#define THREADS 256
#define WARPS (THREADS / 32)
#define INFINITY __int_as_float(0x7f800000)

// The sum over the block, for all its threads.
__device__ float block_sum(float x) {
    __shared__ float parts[WARPS];
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
    __syncthreads(); // the sum before has been read
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int warp = 0; warp < WARPS; warp++) sum += parts[warp];
    return sum;
}

// The greatest over the block, for all its threads.
__device__ float block_greatest(float x) {
    __shared__ float parts[WARPS];
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, step));
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    float greatest = parts[0];
    for (int warp = 1; warp < WARPS; warp++) greatest = fmaxf(greatest, parts[warp]);
    return greatest;
}

// y = (x - mean) / sqrt(variance + epsilon) * (offset + scale) + shift. The second pass corrects the mean by what the
// first rounded away.
extern "C" __global__ void layer_norm(float *y, const float *x, const float *scale, const float *shift, long long dim, float epsilon, float offset) {
    x += blockIdx.x * dim;
    y += blockIdx.x * dim;
    float sum = 0.0f;
    for (long long i = threadIdx.x; i < dim; i += THREADS) sum += x[i];
    const float rough = block_sum(sum) / dim;
    float rest = 0.0f, squares = 0.0f;
    for (long long i = threadIdx.x; i < dim; i += THREADS) {
        const float centred = x[i] - rough;
        rest += centred;
        squares += centred * centred;
    }
    rest = block_sum(rest) / dim;
    squares = block_sum(squares) / dim;
    const float factor = 1.0f / sqrtf(fmaxf(squares - rest * rest, 0.0f) + epsilon);
    for (long long i = threadIdx.x; i < dim; i += THREADS) {
        y[i] = (x[i] - rough - rest) * (factor * (offset + scale[i])) + shift[i];
    }
}

// y = x / sqrt(mean(x^2) + epsilon) * scale
extern "C" __global__ void rms_norm(float *y, const float *x, const float *scale, long long dim, float epsilon) {
    x += blockIdx.x * dim;
    y += blockIdx.x * dim;
    float squares = 0.0f;
    for (long long i = threadIdx.x; i < dim; i += THREADS) squares += x[i] * x[i];
    const float factor = 1.0f / sqrtf(block_sum(squares) / dim + epsilon);
    for (long long i = threadIdx.x; i < dim; i += THREADS) y[i] = x[i] * factor * scale[i];
}

// y = exp(x) / sum(exp(x)); zeros where all are -inf.
extern "C" __global__ void softmax(float *y, const float *x, long long dim) {
    x += blockIdx.x * dim;
    y += blockIdx.x * dim;
    float greatest = -INFINITY;
    for (long long i = threadIdx.x; i < dim; i += THREADS) greatest = fmaxf(greatest, x[i]);
    greatest = block_greatest(greatest);
    const float base = greatest == -INFINITY ? 0.0f : greatest;
    float sum = 0.0f;
    for (long long i = threadIdx.x; i < dim; i += THREADS) sum += expf(x[i] - base);
    sum = block_sum(sum);
    const float share = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (long long i = threadIdx.x; i < dim; i += THREADS) y[i] = expf(x[i] - base) * share;
}

// y = x + change * gate
extern "C" __global__ void gated_residual(float *y, const float *x, const float *change, const float *gate, long long dim) {
    const long long first = blockIdx.x * dim;
    for (long long i = threadIdx.x; i < dim; i += THREADS) y[first + i] = x[first + i] + change[first + i] * gate[i];
}
