// Shared by the CPU and the CUDA bodies: rows of tensors, one step of the schedule, and the formulas that use it.
#pragma once
#include "scalar.h"

namespace tempflow {

enum Dtype { kFloat, kBfloat16, kHalf, kNumDtypes };

struct Rows {                                           // [N, D] with any distance between rows; data may be null
  const void* data;
  int64_t stride;
};

// The columns of `coefficients` [T, kColumns], in the order of StepTable.coefficients (tempflow_fast/ops/schedule.py).
// A negative noise weight asks policy_loss for the normalised ratio (see StepTable.with_ratio_norm).
enum Column { kDt, kA, kB, kS, kNoiseWeight, kColumns };

constexpr double kHalfLogTwoPi = 0.91893853320467274178;   // log(2 pi) / 2, of the normal density

// One row of `coefficients`. What exists once per element is float, what exists once per row is double.
struct Step {
  double b, s, noise_weight;
  bool ratio_norm;
  double unit;                                          // the divisor of log r: s^2, or s of the normalised ratio
  float dt32, a32, b32, s32;

  TF_HD explicit Step(const double* row)
      : b(row[kB]), s(row[kS]), noise_weight(fabs(row[kNoiseWeight])), ratio_norm(row[kNoiseWeight] < 0),
        unit(ratio_norm ? s : s * s), dt32(static_cast<float>(row[kDt])),
        a32(static_cast<float>(row[kA])), b32(static_cast<float>(b)), s32(static_cast<float>(s)) {}

  TF_HD float euler(float x, float v) const { return fma1(dt32, v, x); }
  TF_HD float mean(float x, float v) const { return fma1(a32, x, b32 * v); }

  // log r = mean over D of b dv (2 (x' - m_old) - b dv) / (2 s^2) with dv = v - v_old. Per element this is
  // shift (x' + centre) / s^2: shift = b dv is exactly 0 for an unchanged policy, and nothing cancels close to it;
  // centre = -m_old - shift / 2 takes the factors 2 out of the sum. The normalised ratio (see
  // StepTable.with_ratio_norm) is the mean of b dv (x' - m_old) / s: without the second half, and divided by s.
  TF_HD float shift(float v, float v_old) const { return b32 * (v - v_old); }
  TF_HD float centre(float shift, float x, float v_old) const {
    return fma1(ratio_norm ? 0.0f : -0.5f, shift, -mean(x, v_old));
  }
  TF_HD double log_ratio(double sum, int64_t d) const { return sum * (1 / (unit * static_cast<double>(d))); }

  // From the sum of (v - v_ref)^2: |m - m_ref|^2 / (2 s^2), a mean over D.
  TF_HD double kl(double sum_squares, int64_t d) const {
    return b * b * (1 / (2 * s * s * static_cast<double>(d))) * sum_squares;
  }

  // From the mean over D of ((x' - m) / s)^2.
  TF_HD double log_density(double mean_square) const { return -0.5 * mean_square - log(s) - kHalfLogTwoPi; }

  // d log p / d v = velocity_factor (x' - m), for a mean over D.
  TF_HD double velocity_factor(int64_t d) const { return b / (s * s * static_cast<double>(d)); }

  // d log r / d v = ratio_factor (x' - m), or (x' - m_old) of the normalised ratio.
  TF_HD double ratio_factor(int64_t d) const { return b / (unit * static_cast<double>(d)); }
};

struct Clip {                                           // clips the ratio to 1 - range .. 1 + range
  double range, low, high;                              // low and high are bounds of log r
  explicit Clip(double clip_range) : range(clip_range), low(std::log1p(-clip_range)), high(std::log1p(clip_range)) {}
};

// max(-A r, -A clip(r)) and its derivative with respect to log r.
struct Surrogate {
  double value, derivative;
  bool clipped;                                         // whether r is outside the range, whatever the sign of A

  TF_HD Surrogate(double log_ratio, double advantage, const Clip& clip) {
    const bool above = log_ratio > clip.high, below = log_ratio < clip.low;
    const bool flat = (above && advantage > 0) || (below && advantage < 0);
    const double ratio = flat ? (above ? 1 + clip.range : 1 - clip.range) : exp(log_ratio);
    value = -advantage * ratio;
    derivative = flat ? 0.0 : value;
    clipped = above || below;
  }
};

}  // namespace tempflow
