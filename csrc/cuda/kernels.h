// CUDA kernels: raw pointers and a stream, no torch and no CUDA headers, so any nvcc compiles them next to any torch.
//
// Every pointer in an argument struct is a device pointer. Launchers return null or an error text; none of them waits
// for the device or reads a value from it. The caller provides the scratch memory, whose contents do not matter.
#pragma once
#include "../step.h"

namespace tempflow::cuda {

constexpr int kWarpSize = 32;
// A block is kThreads threads, each of which moves the neighbouring elements of one access of kAccess bytes, the widest.
// More elements per thread would leave small latents with too few blocks to fill a GPU.
constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
constexpr int kAccess = 16;

inline int64_t size_of(Dtype dtype) { return dtype == kFloat ? 4 : 2; }

// Blocks that share a row of d elements.
inline int64_t blocks_of(int64_t d, Dtype dtype) {
  const int64_t elements = kThreads * kAccess / size_of(dtype);
  return (d + elements - 1) / elements;
}

struct Guided {                            // v_uncond + scale (v_cond - v_uncond); uncond.data may be null
  Rows cond, uncond;
  float scale;
};

struct StepOfRow {                         // the step of each row; one that `coefficients` lacks gives NaN
  const double* coefficients;              // [T, kColumns]
  int64_t num_steps;                       // T
  const int64_t* steps;                    // [R], or null: row 0 of `coefficients` for all
};

struct Noise {
  const int64_t* seed;                     // [1]: read by the kernel, so a captured graph follows it
  const int64_t* trajectory_ids;           // [N]
};

struct GuideArgs {
  Guided velocity;
  void* out;                               // [N, D]
  int64_t n, d;
};

struct EulerArgs {
  Rows latents;
  Guided velocity;
  const double* step_row;                  // [kColumns]
  void* latents_next;                      // [N, D]
  int64_t n, d;
};

struct BranchArgs {
  Rows latents;
  Guided velocity;
  const double* step_row;                  // [kColumns]
  uint32_t step;
  Noise noise;
  void *latents_next, *branches;           // [N, D], [N, K, D]
  float* partial;                          // scratch [N, K, blocks_of(D)]
  float* log_prob;                         // [N, K]
  int64_t n, k, d;
};

struct NoiseArgs {
  Noise noise;
  float* out;                              // [N, D]
  int64_t n, d;
};

struct LogProbArgs {
  Rows latents_next, latents, velocity;
  StepOfRow step;
  float* partial;                          // scratch [R, blocks_of(D)]  (forward)
  float* log_prob;                         // [R]                        (forward)
  const float* grad;                       // [R]                        (backward)
  void* grad_velocity;                     // [R, D]                     (backward)
  int64_t n, d;
};

struct RowStatistics { double loss, kl, num_clipped; };

struct LossArgs {
  Guided velocity;
  Rows latents, velocity_old, velocity_ref;
  const void* branches;                    // [R, K, D]
  int64_t branch_row_stride, branch_stride;
  const float* advantages;                 // [R, K]
  StepOfRow step;
  Clip clip;
  double beta;
  float* partial;                          // scratch [R, K + 2, blocks_of(D)]
  RowStatistics* rows;                     // scratch [R]
  uint32_t* finished;                      // scratch [1]
  float *loss, *clip_fraction, *kl;        // [1] each
  float* log_ratio;                        // [R, K]
  float* gradient;                         // [R, D], or null
  int64_t n, k, d;
};

const char* guided_velocity(Dtype dtype, const GuideArgs& args, void* stream);
const char* euler_step(Dtype dtype, const EulerArgs& args, void* stream);
const char* branch_step(Dtype dtype, const BranchArgs& args, void* stream);
const char* initial_noise(const NoiseArgs& args, void* stream);
const char* log_prob(Dtype dtype, const LogProbArgs& args, void* stream);
const char* log_prob_backward(Dtype dtype, const LogProbArgs& args, void* stream);
const char* policy_loss(Dtype dtype, const LossArgs& args, void* stream);   // writes nothing if R is 0

}  // namespace tempflow::cuda
