// Geometric transforms of an image in place: a bilinear affine warp, and a shift by whole pixels.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "pixel_kernels.h"

namespace pixels {
namespace {  // internal linkage: `target_clones` ignores the visibility of a namespace

// A ternary, because std::max returns a reference, which keeps compilers from vectorizing.
inline double at_least_zero(double value) { return value > 0.0 ? value : 0.0; }

// Where the pixels of one output row come from: the top left of the four source pixels, and the weight of each of them.
struct SourcePixels {
    std::vector<int32_t> position;
    std::vector<float> weight[4];  // top left, bottom left, top right, bottom right
    explicit SourcePixels(int W) : position(W) {
        for (auto& each : weight) each.resize(W + 2);  // vector loads read four weights where two are used
    }
};

// Output pixel (x, y), counted from the center, comes from (a, b, c) . (x, y, 1), (d, e, f) . (y, x, 1) of the source.
// Positions more than one pixel outside of the image are clamped to two pixels outside, where the fill color is.
CPU_DISPATCH inline void locate(const double* matrix, int y, int H, int W, int pitch, int32_t* __restrict position,
                                float* __restrict top_left, float* __restrict bottom_left, float* __restrict top_right,
                                float* __restrict bottom_right) {
    const double center_x = (W - 1) / 2.0, center_y = (H - 1) / 2.0;
    const double from_center_y = y - center_y, from_y0 = matrix[3] * from_center_y, from_x0 = matrix[1] * from_center_y;
    for (int x = 0; x < W; x++) {
        const double from_center_x = x - center_x;
        const double source_x = matrix[0] * from_center_x + from_x0 + matrix[2] + center_x;
        const double source_y = from_y0 + matrix[4] * from_center_x + matrix[5] + center_y;
        const double left = std::floor(source_x + 1e-9), top = std::floor(source_y + 1e-9);  // integer positions stay integers
        const double left_share = left + 1 - source_x, top_share = top + 1 - source_y;
        const double right_share = at_least_zero(source_x - left), bottom_share = at_least_zero(source_y - top);
        top_left[x] = static_cast<float>(left_share * top_share);
        bottom_left[x] = static_cast<float>(left_share * bottom_share);
        top_right[x] = static_cast<float>(right_share * top_share);
        bottom_right[x] = static_cast<float>(right_share * bottom_share);
        position[x] = (clamp(static_cast<int>(top), -2, H) + 2) * pitch + clamp(static_cast<int>(left), -2, W) + 2;
    }
}

// The weighted sum of the four source pixels of each pixel of a row.  Pixels are 4 bytes, of which the last is unused.
inline void interpolate_portable(const uint32_t* source, int pitch, const SourcePixels& from, int W, uint32_t* out) {
    for (int x = 0; x < W; x++) {
        const uint32_t* at = source + from.position[x];
        const uint32_t pixel[4] = {at[0], at[pitch], at[1], at[pitch + 1]};
        out[x] = 0;
        for (int c = 0; c < CHANNELS; c++) {
            float sum = 0.0f;
            for (int k = 0; k < 4; k++) sum = std::fma(static_cast<float>(pixel[k] >> 8 * c & 255), from.weight[k][x], sum);
            out[x] |= static_cast<uint32_t>(std::nearbyint(sum)) << 8 * c;
        }
    }
}

#ifdef X86
// Two output pixels at once, each in one half of a register: first its four source pixels, then one lane per channel.
__attribute__((target("avx2,fma"))) inline void interpolate_avx2(const uint32_t* source, int pitch, const SourcePixels& from, int W,
                                                                 uint32_t* out) {
    const __m256i half = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);  // which of two weights belongs to each lane
    __m256i spread[4];  // shuffles that spread the bytes of one source pixel over the lanes
    for (int k = 0; k < 4; k++) {
        const char at = static_cast<char>(8 * (k % 2) + 4 * (k / 2));  // top left, bottom left, top right, bottom right
        spread[k] = _mm256_broadcastsi128_si256(_mm_setr_epi8(at, -1, -1, -1, at + 1, -1, -1, -1, at + 2, -1, -1, -1, -1, -1, -1, -1));
    }
    for (int x = 0; x + 2 <= W; x += 2) {
        __m128i four[2];
        for (int k = 0; k < 2; k++) {
            const auto* top = reinterpret_cast<const double*>(source + from.position[x + k]);
            const auto* bottom = reinterpret_cast<const double*>(source + from.position[x + k] + pitch);
            four[k] = _mm_castpd_si128(_mm_loadh_pd(_mm_load_sd(top), bottom));
        }
        const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(four[0]), four[1], 1);
        __m256 sum = _mm256_setzero_ps();
        for (int k = 0; k < 4; k++) {
            const __m256 weight = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(&from.weight[k][x]));
            sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_shuffle_epi8(both, spread[k])), _mm256_permutevar_ps(weight, half), sum);
        }
        const __m256i rounded = _mm256_cvtps_epi32(sum);
        const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out + x), _mm_packus_epi16(words, words));
    }
}
#endif

// Three channels of a row -> pixels of 4 bytes.
CPU_DISPATCH inline void pack(const uint8_t* red, const uint8_t* green, const uint8_t* blue, int W, uint32_t* out) {
    for (int x = 0; x < W; x++) out[x] = red[x] | static_cast<uint32_t>(green[x]) << 8 | static_cast<uint32_t>(blue[x]) << 16;
}

CPU_DISPATCH inline void unpack(const uint32_t* row, int W, uint8_t* red, uint8_t* green, uint8_t* blue) {
    for (int x = 0; x < W; x++) {
        red[x] = static_cast<uint8_t>(row[x]);
        green[x] = static_cast<uint8_t>(row[x] >> 8);
        blue[x] = static_cast<uint8_t>(row[x] >> 16);
    }
}

// Resamples an image by an affine map (see `locate`); `fill` is the packed color outside of the image.
inline void warp(uint8_t* image, int H, int W, const double* matrix, uint32_t fill) {
#ifdef X86
    static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    constexpr bool avx2 = false;
#endif
    const int even = (W + 1) / 2 * 2, pitch = W + 4;  // two pixels of border on each side
    const size_t area = static_cast<size_t>(H) * W;
    auto* source = reinterpret_cast<uint32_t*>(scratch((static_cast<size_t>(pitch) * (H + 4) + even) * sizeof(uint32_t)));
    uint32_t* row = source + static_cast<size_t>(pitch) * (H + 4);
    std::fill(source, row, fill);
    for (int y = 0; y < H; y++) {
        const uint8_t* from = image + static_cast<size_t>(y) * W;
        pack(from, from + area, from + 2 * area, W, source + static_cast<size_t>(y + 2) * pitch + 2);
    }
    SourcePixels from(even);
    for (int y = 0; y < H; y++) {
        uint8_t* to = image + static_cast<size_t>(y) * W;
        locate(matrix, y, H, W, pitch, from.position.data(), from.weight[0].data(), from.weight[1].data(), from.weight[2].data(),
               from.weight[3].data());
#ifdef X86
        if (avx2) interpolate_avx2(source, pitch, from, even, row);
#endif
        if (!avx2) interpolate_portable(source, pitch, from, W, row);
        unpack(row, W, to, to + area, to + 2 * area);
    }
}

// Moves a plane by whole pixels to the right and down; `fill` is the level outside of the image.
inline void shift(uint8_t* plane, int H, int W, int right, int down, uint8_t fill) {
    const size_t area = static_cast<size_t>(H) * W;
    uint8_t* moved = scratch(area);
    std::memset(moved, fill, area);
    if (std::abs(right) < W)
        for (int y = std::max(down, 0); y < std::min(H + down, H); y++)
            std::memcpy(moved + static_cast<size_t>(y) * W + std::max(right, 0),
                        plane + static_cast<size_t>(y - down) * W + std::max(-right, 0), static_cast<size_t>(W - std::abs(right)));
    std::memcpy(plane, moved, area);
}

}  // namespace
}  // namespace pixels
