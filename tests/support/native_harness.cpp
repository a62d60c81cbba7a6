// Gives test_native.py what no op returns: the Philox words of both C++ forms.
#include "../../csrc/cpu/philox_simd.h"

#include <vector>

using namespace tempflow;

extern "C" void scalar_words(uint32_t* words, const uint32_t* key) { philox(words[0], words[1], words[2], words[3], key[0], key[1]); }

// out[j * quads + i] is word j of quad first + i.
extern "C" void vector_words(uint32_t* out, uint32_t first, int quads, const uint32_t* rest, const uint32_t* key) {
  std::vector<uint32_t> radius(2 * quads), angle(2 * quads);
  cpu::philox_words(radius.data(), angle.data(), first, quads, Counter{rest[0], rest[1], rest[2], key[0], key[1]});
  for (int i = 0; i < 2 * quads; ++i) {
    out[i % 2 * 2 * quads + i / 2] = radius[i];
    out[(i % 2 * 2 + 1) * quads + i / 2] = angle[i];
  }
}
