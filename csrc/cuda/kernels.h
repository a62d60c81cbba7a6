// CUDA kernels: raw pointers and a stream, no torch and no CUDA headers, so any nvcc compiles them next to any torch.
// Launchers return null or an error text.
#pragma once
#include <cstdint>

namespace tempflow::cuda {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int64_t kBlockElements = kThreads * 4;
constexpr int64_t kMaxBranches = 48 * 1024 / (kWarps * sizeof(float));   // the sums of a block stand in shared memory
inline int64_t branch_blocks(int64_t d) { return (d + kBlockElements - 1) / kBlockElements; }

struct Rows {                              // [N, D] with any distance between rows; data may be null
  const void* data;
  int64_t stride;
};

struct BranchArgs {                        // every pointer is a device pointer
  Rows latents, velocity, velocity_uncond;
  float guidance_scale;
  const double* step_row;                  // dt, a, b, s, noise_weight
  uint32_t step;
  const int64_t* seed;                     // [1]: read by the kernel, so a captured graph follows it
  const int64_t* trajectory_ids;           // [N]
  void *latents_next, *branches;           // [N, D], [N, K, D]
  float* partial;                          // [N, K, branch_blocks(D)]
  float* log_prob;                         // [N, K]
  int64_t n, k, d;
  bool quads;                              // rows may be accessed four elements at a time
};

enum Dtype { kFloat, kBfloat16, kHalf };

const char* branch_step(Dtype dtype, const BranchArgs& args, void* stream);

}  // namespace tempflow::cuda
