// From tensors to kernel arguments: the checks that memory safety needs, and tasks spread over torch's threads.
#pragma once
#include <algorithm>
#include <vector>

#include "../ops.h"
#include "kernels.h"

namespace tempflow::cpu {

using torch::stable::new_empty;

inline int dtype_index(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return kFloat;
    case ScalarType::BFloat16: return kBfloat16;
    case ScalarType::Half: return kHalf;
    default: break;
  }
  STD_TORCH_CHECK(false, op, ": float32, bfloat16 or float16 expected; float64 is served by tempflow_fast_reference");
  return 0;
}

inline Rows rows(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  check_rows(op, name, t, like);
  return {t.const_data_ptr(), t.stride(0)};
}
inline Rows rows(const char* op, const char* name, const OptionalTensor& t, const Tensor& like) {
  return t ? rows(op, name, *t, like) : Rows{nullptr, 0};
}

inline const double* checked_table(const char* op, const Tensor& table) {
  STD_TORCH_CHECK(table.dim() == 2 && table.size(1) == kColumns && table.is_contiguous() &&
                  table.scalar_type() == ScalarType::Double, op, ": coefficients must be float64 [T, 5]");
  return table.const_data_ptr<double>();
}

inline const double* checked_step(const char* op, const Tensor& table, int64_t step, bool noisy) {
  const double* data = checked_table(op, table);
  STD_TORCH_CHECK(step >= 0 && step < table.size(0) && (!noisy || data[step * kColumns + 3] > 0), op,
                  ": step ", step, " is not a step of the table", noisy ? " with s > 0" : "");
  return data + step * kColumns;
}

inline const int64_t* checked_integers(const char* op, const char* name, const Tensor& t, int64_t count) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && t.is_contiguous() && t.numel() == count, op, ": ", name,
                  " must be int64 with ", count, " values");
  return t.const_data_ptr<int64_t>();
}

inline const int64_t* checked_steps(const char* op, const Tensor& table, const Tensor& steps, int64_t count) {
  const int64_t* data = checked_integers(op, "steps", steps, count);
  for (int64_t r = 0; r < count; ++r) checked_step(op, table, data[r], true);
  return data;
}

// Runs tasks first .. last - 1 of about `work` element operations each; a thread is woken for no less than 32768.
template <class Args>
void run(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t first, int64_t last, int64_t work) {
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(work, 1));
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
