// Gives test_native.py what no op shows: Philox words of both C++ forms.
#include "../csrc/cpu/philox_simd.h"

using namespace tempflow;

extern "C" void scalar_words(uint32_t* words, const uint32_t* key) { philox(words[0], words[1], words[2], words[3], key[0], key[1]); }

extern "C" void vector_words(uint32_t* out, uint32_t first, int quads, const uint32_t* rest, const uint32_t* key) {
  cpu::philox_words(out, first, quads, Counter{rest[0], rest[1], rest[2], key[0], key[1]});
}
