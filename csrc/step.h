// What the CPU and the CUDA bodies share: rows of tensors, a step of the schedule, and the formulas made of them.
#pragma once
#include "scalar.h"

namespace tempflow {

enum Dtype { kFloat, kBfloat16, kHalf, kNumDtypes };

struct Rows {                                           // [N, D] with any distance between rows; data may be null
  const void* data;
  int64_t stride;
};

constexpr int kColumns = 5;                             // of a step table: dt, a, b, s, noise_weight

// One row of a step table. Elements are formed in float, what is one number per row in double.
struct Step {
  double b, s, noise_weight;
  float dt32, a32, b32, s32;

  TF_HD explicit Step(const double* row)
      : b(row[2]), s(row[3]), noise_weight(row[4]), dt32(static_cast<float>(row[0])), a32(static_cast<float>(row[1])),
        b32(static_cast<float>(b)), s32(static_cast<float>(s)) {}

  TF_HD float euler(float x, float v) const { return fma1(dt32, v, x); }
  TF_HD float mean(float x, float v) const { return fma1(a32, x, b32 * v); }

  // Per element, log r is a multiple of shift (x' + centre): 0 for an unchanged policy, and no cancellation near it.
  TF_HD float shift(float v, float v_old) const { return b32 * (v - v_old); }
  TF_HD float centre(float shift, float x, float v_old) const { return fma1(-0.5f, shift, -mean(x, v_old)); }
  TF_HD double log_ratio(double sum, int64_t d) const { return sum * (1 / (s * s * static_cast<double>(d))); }

  // A mean over D elements: |m - m_ref|^2 / (2 s^2) from the sum of (v - v_ref)^2.
  TF_HD double kl(double sum_squares, int64_t d) const {
    return b * b * (1 / (2 * s * s * static_cast<double>(d))) * sum_squares;
  }

  // From the mean over D of ((x' - m) / s)^2.
  TF_HD double log_density(double mean_square) const { return -0.5 * mean_square - log(s) - 0.91893853320467274178; }

  // d log p / d v = velocity_factor (x' - m), of a mean over D; d log r / d v is the same.
  TF_HD double velocity_factor(int64_t d) const { return b / (s * s * static_cast<double>(d)); }
};

struct Clip {                                           // of the ratio, to 1 - range .. 1 + range
  double range, low, high;                              // low and high: of log r
  explicit Clip(double clip_range) : range(clip_range), low(std::log1p(-clip_range)), high(std::log1p(clip_range)) {}
};

// max(-A r, -A clip(r)) and its derivative with respect to log r.
struct Surrogate {
  double value, derivative;
  bool clipped;                                         // whether r is outside, whatever the sign of A

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
