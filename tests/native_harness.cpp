// Gives test_native.py what no op shows: Philox words of both C++ forms, and branch.cu run on the CPU (emulate.h).
#include "../csrc/cpu/philox_simd.h"
#include "../csrc/cuda/kernels.h"

using namespace tempflow;

extern "C" void scalar_words(uint32_t* words, const uint32_t* key) { philox(words[0], words[1], words[2], words[3], key[0], key[1]); }

extern "C" void vector_words(uint32_t* out, uint32_t first, int quads, const uint32_t* rest, const uint32_t* key) {
  cpu::philox_words(out, first, quads, Counter{rest[0], rest[1], rest[2], key[0], key[1]});
}

extern "C" const char* emulated_branch_step(int dtype, const void* latents, const void* velocity, const void* uncond,
                                            float scale, const double* step_row, uint32_t step, const int64_t* seed,
                                            const int64_t* ids, void* moved, void* branches, float* partial,
                                            float* log_prob, int64_t n, int64_t k, int64_t d, bool quads) {
  const cuda::BranchArgs args{{latents, d}, {velocity, d}, {uncond, uncond ? d : 0}, scale, step_row, step, seed, ids,
                              moved, branches, partial, log_prob, n, k, d, quads};
  return cuda::branch_step(static_cast<cuda::Dtype>(dtype), args, nullptr);
}
