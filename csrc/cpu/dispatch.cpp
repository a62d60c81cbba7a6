// Chooses the instruction set: the widest that the machine has, or the one that a test asks for.
#include "kernels.h"

#include <cstring>

namespace tempflow::cpu {

extern const Kernels kernels_baseline;
#ifdef TF_X86
extern const Kernels kernels_avx2, kernels_avx512;
#endif

namespace {

// The kernels of that name, or the widest for a null name; null if the machine cannot run them.
const Kernels* find(const char* name) {
  const auto wanted = [name](const char* isa) { return !name || !std::strcmp(name, isa); };
#ifdef TF_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && wanted("avx512")) return &kernels_avx512;
  if (avx2 && wanted("avx2")) return &kernels_avx2;
#endif
  return wanted("baseline") ? &kernels_baseline : nullptr;
}

const Kernels* active = find(nullptr);

}  // namespace

const Kernels& kernels() { return *active; }

bool force_isa(const char* name) {
  const Kernels* found = find(name);
  if (found) active = found;
  return found != nullptr;
}

}  // namespace tempflow::cpu
