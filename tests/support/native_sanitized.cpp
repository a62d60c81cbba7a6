// Random calls of the CPU bodies under sanitizers, for test_native.py: every instruction set, one thread and several must
// give the same bits (narrow sets without fma may differ in the last one, and are only run). Argument: how many calls.
#include <cstdio>
#include <cstdlib>
#include <random>

#include "../../csrc/cpu/tensors.h"

using namespace tempflow;
using torch::stable::contiguous;

namespace {

std::mt19937_64 source(0);
int64_t below(int64_t bound) { return static_cast<int64_t>(source() % static_cast<uint64_t>(bound)); }
template <class T> T one_of(std::initializer_list<T> values) { return values.begin()[below(static_cast<int64_t>(values.size()))]; }

Tensor filled(Tensor tensor) {
  std::normal_distribution<float> normal;
  const auto fill = [&](auto zero) {
    auto* data = tensor.mutable_data_ptr<decltype(zero)>();
    for (size_t i = 0; i < tensor.bytes() / sizeof(zero); ++i) {
      const float value = below(500) ? normal(source) : one_of({0.0f, 1e30f, -1e-40f, INFINITY, NAN});
      if constexpr (sizeof(zero) == 8) data[i] = static_cast<double>(value);
      else store(data[i], value);
    }
  };
  switch (tensor.scalar_type()) {
    case ScalarType::Float: fill(float{}); break;
    case ScalarType::BFloat16: fill(bf16{}); break;
    case ScalarType::Half: fill(fp16{}); break;
    default: fill(double{}); break;
  }
  return tensor;
}

// [n, d] with rows next to one another, with gaps, overlapping, or the same row again and again.
Tensor rows_of(int64_t n, int64_t d, ScalarType type) {
  return filled(Tensor({n, d}, {one_of({d, d, d + 3, int64_t{1}, int64_t{0}}), 1}, type));
}

Tensor integers(std::vector<int64_t> values) {
  Tensor tensor = contiguous({static_cast<int64_t>(values.size())}, ScalarType::Long);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<int64_t>());
  return tensor;
}

// Rows (dt, a, b, s, noise_weight) of a schedule of 3 steps.
Tensor coefficients() {
  Tensor tensor = contiguous({3, 5}, ScalarType::Double);
  const double rows[] = {-0.1, 0.9, -0.2, 0.5, 1.5, -0.2, 0.8, -0.3, 1e-9, 0.0, -0.7, 1.0, -0.7, 2.0, 1.5};
  std::copy(std::begin(rows), std::end(rows), tensor.mutable_data_ptr<double>());
  return tensor;
}

using Bytes = std::vector<std::vector<char>>;
Bytes bytes_of(std::initializer_list<Tensor> results) {
  Bytes all;
  for (const Tensor& t : results) all.emplace_back(t.mutable_data_ptr<char>(), t.mutable_data_ptr<char>() + t.bytes());
  return all;
}

// A random call of every op, as a function that can be repeated.
struct Calls {
  ScalarType type = one_of({ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  int64_t n = below(5), k = one_of<int64_t>({0, 1, 2, 3, 4, 5, 9});
  int64_t d = one_of<int64_t>({1, 2, 3, 15, 16, 17, 31, 33, 64, 1000, 1023, 1024, 1025, 2051, 4100});
  bool guided = below(2), with_ref = below(2), with_gradient = below(4), unchanged = below(3) == 0;
  Tensor x = rows_of(n, d, type), v = rows_of(n, d, type), u = rows_of(n, d, type), old = rows_of(n, d, type);
  Tensor ref = rows_of(n, d, type), next = rows_of(n, d, type), table = coefficients(), seed = integers({7});
  Tensor branches = filled(Tensor({n, k, d}, {k * d + one_of<int64_t>({0, 0, 5}), d, 1}, type));
  Tensor advantages = filled(contiguous({n, k}, ScalarType::Float)), grad = filled(contiguous({n}, ScalarType::Float));
  Tensor ids = integers(std::vector<int64_t>(static_cast<size_t>(n), 1ll << 40));
  Tensor steps = integers(std::vector<int64_t>(static_cast<size_t>(n), below(3)));

  Bytes run() const {
    const OptionalTensor uncond = guided ? OptionalTensor(u) : OptionalTensor(), reference = with_ref ? OptionalTensor(ref) : OptionalTensor();
    const auto [moved, drawn, density] = cpu::branch_step(x, v, uncond, 2.5, table, 0, std::max<int64_t>(k, 1), seed, ids);
    const auto [loss, log_ratio, clipped, kl, gradient] =
        cpu::policy_loss(v, uncond, x, branches, unchanged && !guided ? v : old, reference, advantages, table, steps, 2.5,
                         1e-3, with_ref ? 0.1 : 0.0, with_gradient);
    return bytes_of({moved, drawn, density, loss, log_ratio, clipped, kl, gradient, cpu::euler_step(x, v, uncond, 2.5, table, 2),
                     cpu::guided_velocity(v, u, 2.5), cpu::initial_noise(ids, seed, d), cpu::log_prob(next, x, v, table, steps),
                     cpu::log_prob_backward(grad, next, x, v, table, steps)});
  }
};

}  // namespace

int main(int, char** arguments) {
  for (int64_t call = 0, count = std::atoll(arguments[1]); call < count; ++call) {
    const Calls calls;
    Bytes fused;                                       // of the first set with fma
    for (const char* isa : {"baseline", "avx2", "avx512"}) {
      if (!cpu::force_isa(isa)) continue;
      torch::stable::num_threads() = 1;
      const Bytes alone = calls.run();
      torch::stable::num_threads() = 2 + static_cast<int>(below(4));
      const bool same = alone == calls.run() && (isa[0] == 'b' || fused.empty() || alone == fused);
      if (isa[0] != 'b') fused = alone;
      if (!same) {
        std::fprintf(stderr, "call %lld: %s gives other bits\n", static_cast<long long>(call), isa);
        return 1;
      }
    }
  }
  std::puts("done");
}
