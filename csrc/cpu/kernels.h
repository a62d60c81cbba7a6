// CPU kernels: raw pointers, no torch. kernels.cpp is compiled once per instruction set; kernels() picks one of them.
//
// A task is one chunk of one row. The caller adds the chunks' sums in order, so results do not depend on how tasks are
// spread over threads.
#pragma once
#include "../step.h"

namespace tempflow::cpu {

constexpr int64_t kChunk = 1024;                        // elements: a task's buffers (4 KiB each) stay in the L1 cache
inline int64_t chunks_of(int64_t d) { return d / kChunk + (d % kChunk != 0); }

struct SampleArgs {                                     // branch_step; with k = 0, euler_step
  Rows latents, velocity, velocity_uncond;
  float guidance_scale;
  const double* step_row;                               // [kColumns]
  uint32_t step;
  uint64_t seed;
  const int64_t* trajectory_ids;                        // [N]
  void* latents_next;                                   // [N, D]
  void* branches;                                       // [N, K, D]
  double* sum_squares;                                  // [N, K, chunks] of eps
  int64_t n, k, d;
};

struct NoiseArgs {
  uint64_t seed;
  const int64_t* trajectory_ids;
  float* out;                                           // [N, D]
  int64_t d;
};

struct GuideArgs {
  Rows velocity, velocity_uncond;
  float guidance_scale;
  void* out;                                            // [N, D]
  int64_t d;
};

struct LogProbArgs {
  Rows latents_next, latents, velocity;
  const double* coefficients;                           // [T, kColumns]
  const int64_t* steps;                                 // [R]
  double* sum_squares;                                  // [R, chunks] of x' - m (forward)
  const float* grad;                                    // [R] (backward)
  void* grad_velocity;                                  // [R, D] (backward)
  int64_t d;
};

struct LossArgs {
  Rows velocity, velocity_uncond, latents, velocity_old, velocity_ref;
  const void* branches;                                 // [R, K, D]
  int64_t branch_row_stride, branch_stride;
  float guidance_scale;
  const double* coefficients;                           // [T, kColumns]
  const int64_t* steps;                                 // [R]
  double* products;                                     // [R, K, chunks] of shift (x' + centre)            (pass 1)
  double* sum_squares_ref;                              // [R, chunks] of v - v_ref                         (pass 1)
  const float *log_ratio, *log_ratio_grad;              // [R, K]                                           (pass 2)
  double kl_factor;                                     // beta / R                                         (pass 2)
  float* gradient;                                      // [R, D], or null                                  (pass 2)
  int64_t k, d;
};

struct Kernels {
  const char* isa;
  void (*sample[kNumDtypes])(const SampleArgs&, int64_t begin, int64_t end);
  void (*initial_noise)(const NoiseArgs&, int64_t begin, int64_t end);
  void (*guided_velocity[kNumDtypes])(const GuideArgs&, int64_t begin, int64_t end);
  void (*log_prob[kNumDtypes])(const LogProbArgs&, int64_t begin, int64_t end);
  void (*log_prob_backward[kNumDtypes])(const LogProbArgs&, int64_t begin, int64_t end);
  void (*loss_products[kNumDtypes])(const LossArgs&, int64_t begin, int64_t end);
  void (*loss_gradient[kNumDtypes])(const LossArgs&, int64_t begin, int64_t end);
  void (*loss_at_once[kNumDtypes])(const LossArgs&, int64_t begin, int64_t end);
};

const Kernels& kernels();
bool force_isa(const char* name);                       // false and no change if the machine lacks it

}  // namespace tempflow::cpu
