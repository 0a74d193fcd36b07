// Kernels that change or measure pixels in place: lookup tables, blends, sharpening, statistics, normalization, layout.
//
// A plane is one channel of one image: H x W bytes.  An image is three consecutive planes of `area` = H * W bytes each.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../data/cpu_dispatch.h"

namespace pixels {
namespace {  // internal linkage: `target_clones` ignores the visibility of a namespace

using std::size_t;
using std::uint8_t;

constexpr int CHANNELS = 3;
constexpr int LEVELS = 256;

// A ternary, because std::clamp returns a reference, which keeps compilers from vectorizing.
inline int clamp(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

inline uint8_t gray(uint8_t red, uint8_t green, uint8_t blue) {  // truncated, as torch's conversion to uint8 does
    return static_cast<uint8_t>(static_cast<int>(0.2989f * red + 0.587f * green + 0.114f * blue));
}

// Scratch memory of at least `bytes` bytes, owned by the calling thread and reused by its next call.
inline uint8_t* scratch(size_t bytes) {
    thread_local std::vector<uint8_t> memory;
    if (memory.size() < bytes) memory.resize(bytes);
    return memory.data();
}

// ------------------------------------------------------------------------------------------ lookup tables

inline void lookup_portable(uint8_t* plane, size_t area, const uint8_t* table) {
    for (size_t i = 0; i < area; i++) plane[i] = table[plane[i]];
}

#ifdef X86
// A byte shuffle looks up 16 entries, and yields 0 where the index is negative.  The table is split into 16 rows of 16
// entries, in two halves for indices below 128 and from 128 on.  Each row but the first of a half is stored as its XOR with
// the row before.  The index is reduced by 16 per row until it is negative, so that the XOR of all lookups is the entry
// wanted.
__attribute__((target("avx2"))) inline void lookup_avx2(uint8_t* plane, size_t area, const uint8_t* table) {
    __m256i row[16];
    for (int k = 0; k < 16; k++) {
        __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * k));
        if (k % 8) entries = _mm_xor_si128(entries, _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * (k - 1))));
        row[k] = _mm256_broadcastsi128_si256(entries);
    }
    const __m256i sixteen = _mm256_set1_epi8(16), upper_half = _mm256_set1_epi8(-128);
    size_t i = 0;
    for (; i + 32 <= area; i += 32) {
        auto* address = reinterpret_cast<__m256i*>(plane + i);
        __m256i low = _mm256_loadu_si256(address), high = _mm256_xor_si256(low, upper_half), found = _mm256_setzero_si256();
        for (int k = 0; k < 8; k++) {
            found = _mm256_xor_si256(found, _mm256_xor_si256(_mm256_shuffle_epi8(row[k], low), _mm256_shuffle_epi8(row[8 + k], high)));
            low = _mm256_subs_epi8(low, sixteen);
            high = _mm256_subs_epi8(high, sixteen);
        }
        _mm256_storeu_si256(address, found);
    }
    lookup_portable(plane + i, area - i, table);
}
#endif

// Replaces each level by its entry in a table of 256 bytes.
inline void lookup(uint8_t* plane, size_t area, const uint8_t* table) {
#ifdef X86
    static const bool avx2 = __builtin_cpu_supports("avx2");
    if (avx2) return lookup_avx2(plane, area, table);
#endif
    lookup_portable(plane, area, table);
}

// ------------------------------------------------------------------------------------------ blends

// levels + (levels - other) * amount, clamped to 0..255: away from `other`, or toward it if `amount` is negative.
CPU_DISPATCH inline void blend(uint8_t* __restrict levels, const uint8_t* __restrict other, size_t count, float amount) {
    for (size_t i = 0; i < count; i++) {
        const float own = levels[i];
        levels[i] = static_cast<uint8_t>(clamp(static_cast<int>(own + (own - other[i]) * amount), 0, 255));
    }
}

CPU_DISPATCH inline void to_gray(const uint8_t* image, size_t area, uint8_t* __restrict out) {
    const uint8_t *red = image, *green = image + area, *blue = image + 2 * area;
    for (size_t i = 0; i < area; i++) out[i] = gray(red[i], green[i], blue[i]);
}

// Blends an image with its grayscale version.
inline void color(uint8_t* image, size_t area, float amount) {
    uint8_t* grays = scratch(area);
    to_gray(image, area, grays);
    for (int c = 0; c < CHANNELS; c++) blend(image + c * area, grays, area, amount);
}

// One row smoothed: the mean of 3 x 3 pixels with the center weighted 5 times, rounded.  `sums` is scratch for W numbers.
CPU_DISPATCH inline void smooth_row(const uint8_t* previous, const uint8_t* row, const uint8_t* next, int W, uint16_t* __restrict sums,
                                    uint8_t* __restrict out) {
    for (int x = 0; x < W; x++) sums[x] = static_cast<uint16_t>(previous[x] + row[x] + next[x]);
    for (int x = 1; x < W - 1; x++) {
        const auto sum = static_cast<uint16_t>(sums[x - 1] + sums[x] + sums[x + 1] + 4 * row[x] + 6);
        out[x] = static_cast<uint8_t>(sum * 5042u >> 16);  // sum / 13
    }
}

// Blends a plane with its smoothed version; the border pixels stay as they are.
inline void sharpness(uint8_t* plane, int H, int W, float amount) {
    const size_t area = static_cast<size_t>(H) * W;
    uint8_t* smoothed = scratch(area + 1 + W * sizeof(uint16_t));
    auto* sums = reinterpret_cast<uint16_t*>(smoothed + area + area % 2);
    std::memcpy(smoothed, plane, area);
    for (int y = 1; y < H - 1; y++) {
        const uint8_t* row = plane + static_cast<size_t>(y) * W;
        smooth_row(row - W, row, row + W, W, sums, smoothed + static_cast<size_t>(y) * W);
    }
    blend(plane, smoothed, area, amount);
}

// ------------------------------------------------------------------------------------------ statistics

CPU_DISPATCH inline void extremes(const uint8_t* plane, size_t area, uint8_t* low, uint8_t* high) {
    uint8_t least = 255, most = 0;
    for (size_t i = 0; i < area; i++) {
        least = std::min(least, plane[i]);
        most = std::max(most, plane[i]);
    }
    *low = least;
    *high = most;
}

CPU_DISPATCH inline int64_t gray_sum(const uint8_t* image, size_t area) {
    int64_t total = 0;
    constexpr size_t BLOCK = 4096;  // its sum fits into 32 bits
    for (size_t start = 0; start < area; start += BLOCK) {
        int32_t sum = 0;
        const size_t stop = std::min(area, start + BLOCK);
        for (size_t i = start; i < stop; i++)
            sum += gray(image[i], image[area + i], image[2 * area + i]);
        total += sum;
    }
    return total;
}

// Four counters per level, so that equal neighbors do not wait for each other's increment.
inline void histogram(const uint8_t* plane, size_t area, int32_t* counts) {
    int32_t partial[4][LEVELS] = {};
    size_t i = 0;
    for (; i + 4 <= area; i += 4)
        for (int k = 0; k < 4; k++) partial[k][plane[i + k]]++;
    for (; i < area; i++) partial[0][plane[i]]++;
    for (int k = 0; k < LEVELS; k++) counts[k] = partial[0][k] + partial[1][k] + partial[2][k] + partial[3][k];
}

// ------------------------------------------------------------------------------------------ normalization and layout

CPU_DISPATCH inline void normalize(const uint8_t* plane, size_t area, float mean, float std_dev, float* out) {
    for (size_t i = 0; i < area; i++) out[i] = (static_cast<float>(plane[i]) - mean) / std_dev;
}

// Splits a row of interleaved RGB pixels into one row per channel.
CPU_DISPATCH inline void deinterleave(const uint8_t* row, int W, uint8_t* __restrict red, uint8_t* __restrict green,
                                      uint8_t* __restrict blue) {
    for (int x = 0; x < W; x++) {
        red[x] = row[CHANNELS * x];
        green[x] = row[CHANNELS * x + 1];
        blue[x] = row[CHANNELS * x + 2];
    }
}

// Joins a row of each channel to a row of interleaved RGB pixels.
CPU_DISPATCH inline void interleave(const uint8_t* red, const uint8_t* green, const uint8_t* blue, int W, uint8_t* __restrict row) {
    for (int x = 0; x < W; x++) {
        row[CHANNELS * x] = red[x];
        row[CHANNELS * x + 1] = green[x];
        row[CHANNELS * x + 2] = blue[x];
    }
}

CPU_DISPATCH inline void mirror(const uint8_t* row, int W, uint8_t* __restrict out) {
    for (int x = 0; x < W; x++) out[x] = row[W - 1 - x];
}

}  // namespace
}  // namespace pixels
