// Kernels as CUDA programmers write them, for tests/instructions/test_nvcc.py. kernels.ptx is what nvcc makes of them:
//     nvcc -ptx -arch=sm_90a -o kernels.ptx kernels.cu
#include <cassert>
#include <cstdio>

#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cooperative_groups/reduce.h>
#include <cuda/atomic>
#include <cuda/barrier>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace cg = cooperative_groups;

__constant__ float table[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Dynamic shared memory, shuffles, an atomic.
extern "C" __global__ void grid_sum(const float *x, float *out, int n) {
  extern __shared__ float partial[];
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
  for (int d = 16; d; d >>= 1) sum += __shfl_down_sync(~0u, sum, d);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < blockDim.x / 32; ++w) sum += partial[w];
    atomicAdd(out, sum);
  }
}

// An array in local memory, and one in constant memory.
extern "C" __global__ void indexed(const int *index, float *out) {
  float a[20];
  for (int i = 0; i < 20; ++i) a[i] = i * 2.f + threadIdx.x;
  int k = index[threadIdx.x];
  out[threadIdx.x] = a[k] + table[k & 15];
}

// Groups of 16 threads, votes, matches.
extern "C" __global__ void groups(const int *x, int *out) {
  auto tile = cg::tiled_partition<16>(cg::this_thread_block());
  int v = x[threadIdx.x], sum = cg::reduce(tile, v, cg::plus<int>());
  out[threadIdx.x] = sum + 1000 * __popc(__ballot_sync(~0u, v & 1)) + 100000 * __popc(__match_any_sync(~0u, v & 3));
}

// 16-bit floats; a BF16 atomic.
extern "C" __global__ void halves(const __half2 *a, __half2 *out, __nv_bfloat16 *sum) {
  int i = threadIdx.x;
  out[i] = __hfma2(a[i], a[i], __hmul2(a[i], __float2half2_rn(0.5f)));
  atomicAdd(sum, __float2bfloat16(1.f));
}

// cuda::barrier, an mbarrier.
#pragma nv_diag_suppress static_var_with_dynamic_init
extern "C" __global__ void reversed_by_barrier(int *out) {
  __shared__ cuda::barrier<cuda::thread_scope_block> barrier;
  __shared__ int words[64];
  if (threadIdx.x == 0) init(&barrier, blockDim.x);
  __syncthreads();
  words[threadIdx.x] = threadIdx.x;
  barrier.wait(barrier.arrive());
  out[threadIdx.x] = words[63 - threadIdx.x];
}

// cooperative_groups::memcpy_async, that is cp.async.
extern "C" __global__ void reversed_by_copy(const int *x, int *out) {
  __shared__ int words[256];
  auto block = cg::this_thread_block();
  cg::memcpy_async(block, words, x, sizeof(int) * 256);
  cg::wait(block);
  out[threadIdx.x] = words[255 - threadIdx.x];
}

// A word that one block hands to another by cuda::atomic_ref.
extern "C" __global__ void handed_on(int *data, int *flag, int *out) {
  cuda::atomic_ref<int, cuda::thread_scope_device> ready(*flag);
  if (blockIdx.x == 0) {
    data[0] = 42;
    ready.store(1, cuda::memory_order_release);
  } else {
    while (!ready.load(cuda::memory_order_acquire)) __nanosleep(20);
    out[0] = data[0];
  }
}

// A switch, printf, assert, a structure by value.
struct Scale {
  int a;
  float b;
  long long c;
};

extern "C" __global__ void switched(Scale scale, const int *x, float *out) {
  int v = x[threadIdx.x], r = 0;
  switch (v % 9) {
    case 0: r = v * 3; break;
    case 1: r = v ^ 77; break;
    case 2: r = v - 4; break;
    case 3: r = v * v; break;
    case 4: r = v << 3; break;
    case 5: r = ~v; break;
    case 6: r = v / 7; break;
    case 7: r = __clz(v); break;
    default: r = __brev(v) >> 20;
  }
  if (v > 1000) printf("unexpected %d\n", v);
  assert(v >= 0);
  out[threadIdx.x] = r * scale.b + scale.a + scale.c;
}

// Functions that are called: from one another, by some threads alone, and those of double precision that nvcc brings.
__noinline__ __device__ float power(float x, int k) {
  float y = 1;
  for (int i = 0; i < k; ++i) {
    if (y > 1000) return -1;
    y *= x;
  }
  return y;
}

__noinline__ __device__ float2 powers(float2 x, const int *k) {
  int which[4] = {k[0], k[1], k[2], k[3]};
  return make_float2(power(x.x, which[threadIdx.x & 3]), power(x.y, which[threadIdx.x & 1]) + 0.5f);
}

extern "C" __global__ void called(const float2 *x, const int *k, float2 *out) {
  float2 y = make_float2(0, 0);
  if (threadIdx.x % 3 != 1) y = powers(x[threadIdx.x], k);
  out[threadIdx.x] = make_float2(y.x + power(2, threadIdx.x & 7), y.y);
}

extern "C" __global__ void doubles(const double *x, double *out) {
  out[threadIdx.x] = sin(x[threadIdx.x]) + pow(fabs(x[threadIdx.x]), 1.25);
}

__noinline__ __device__ long long fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

extern "C" __global__ void recursive(long long *out) { out[threadIdx.x] = fibonacci(threadIdx.x); }
