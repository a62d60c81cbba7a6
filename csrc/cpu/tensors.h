// Shared by the CPU bodies: checks of values, and tasks spread over torch's threads.
#pragma once
#include <algorithm>
#include <vector>

#include "../tensors.h"
#include "kernels.h"

namespace tempflow::cpu {

using torch::stable::new_empty;

// Element operations worth a thread: at about one per cycle, some ten microseconds, well above the cost of waking it.
constexpr int64_t kWorkPerThread = 32768;

// Cost of one normal in element operations (a load, a multiply, an add): Philox, logarithm, root, sine and cosine.
constexpr int64_t kNormalWork = 8;

// The row of `coefficients` for a step; if `noisy`, the step must add noise.
inline const double* known_step(const char* op, const Tensor& coefficients, int64_t step, bool noisy) {
  const double* row = checked_step(op, coefficients, step, coefficients);
  STD_TORCH_CHECK(!noisy || row[kS] > 0, op, ": step must be one that adds noise, got ", step);
  return row;
}

inline const int64_t* known_steps(const char* op, const Tensor& coefficients, const Tensor& steps, int64_t count) {
  const int64_t* data = checked_integers(op, "steps", steps, count, coefficients);
  for (int64_t r = 0; r < count; ++r) known_step(op, coefficients, data[r], true);
  return data;
}

// Runs tasks first .. last - 1, of about `work` element operations each; no thread gets less than kWorkPerThread.
template <class Args>
void run(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t first, int64_t last, int64_t work) {
  const int64_t grain = std::max<int64_t>(1, kWorkPerThread / std::max<int64_t>(work, 1));
  torch::stable::parallel_for(first, last, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

inline double sum_of(const double* partial, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += partial[i];
  return sum;
}

inline Tensor scalar(const Tensor& like, double value) {
  Tensor out = new_empty(like, std::vector<int64_t>{}, ScalarType::Float);
  *out.mutable_data_ptr<float>() = static_cast<float>(value);
  return out;
}

}  // namespace tempflow::cpu
