// Instruction sets chosen at run time, for the C++ parts of the data loader and of augmentation.
//
// X86 is defined where AVX2 intrinsics compile; whether the processor has AVX2 is checked at run time.  A function marked
// CPU_DISPATCH is compiled twice, with and without AVX2, and the dynamic loader picks one.  -DPORTABLE turns both off.

#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(PORTABLE)
#define X86
#include <immintrin.h>
#define CPU_DISPATCH __attribute__((target_clones("avx2", "default")))
#else
#define CPU_DISPATCH
#endif
