// The antialiased bilinear, bicubic and Lanczos resize of Pillow 13, bit for bit: fixed-point weights with 22 fractional bits, one
// pass along the rows and one along the columns, each rounded to 8 bits.
// https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu_dispatch.h"

namespace resize {

constexpr int BITS = 32 - 8 - 2;  // fractional bits of a weight, as in Pillow
constexpr int HALF = BITS / 2;    // bits in the lower half of a weight that is split in two
constexpr int CHANNELS = 3;
constexpr int ROWS = 4;           // rows that are resized together

// A filter: the weight of a pixel as a function of its distance, and its support.  A triangle, Keys's cubic with a = -1/2, or
// Lanczos's windowed sinc with three lobes.
struct Filter {
    double support;
    double (*weight)(double);
};

inline double triangle(double x) {
    x = std::fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

inline double cubic(double x) {
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

inline double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= 3.14159265358979323846;
    return std::sin(x) / x;
}

inline double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

constexpr Filter BILINEAR = {1.0, triangle}, BICUBIC = {2.0, cubic}, LANCZOS = {3.0, lanczos};

// Whether Pillow resizes the columns before the rows: where that shortens the columns by more than twice as many pixels as
// the rows.  Pillow 12 and earlier never did: bilinear pixels differ by 1 level, bicubic ones of noise by up to 31.
inline bool columns_first(int64_t height, int64_t resized_height, int64_t width, int64_t resized_width) {
    return height > resized_height && height - resized_height > 2 * (width - resized_width);
}

inline uint8_t to_level(int32_t sum) {  // clamped: cubic weights may be negative, so a sum may be below 0 or above 255
    sum >>= BITS;
    return static_cast<uint8_t>(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

// Weights along one axis.  `length` of the `in` input pixels, from `start` on, are resized to `out` pixels; only `outputs`
// of these, from `skip` on, are computed.
struct Weights {
    int in = 0;                          // input pixels
    int from = 0, size = 0;              // first input pixel needed, and how many
    int taps = 0, pairs = 0;             // largest number of weights per output, and of pairs of weights
    std::vector<int> first, count;       // range of input pixels of each output; `first` is relative to `from`
    std::vector<int32_t> weight;         // (outputs, taps)
    std::vector<uint32_t> upper, lower;  // (outputs, pairs): upper and lower halves of two weights each
    std::vector<double> exact;           // weights of one output before rounding

    void set(const Filter& filter, double start, double length, int inputs, int64_t out, int64_t skip, int outputs) {
        in = inputs;
        const double scale = length / static_cast<double>(out), wide = scale < 1.0 ? 1.0 : scale, support = filter.support * wide, inverse = 1.0 / wide;
        taps = static_cast<int>(std::ceil(support)) * 2 + 1;
        first.resize(outputs);
        count.resize(outputs);
        exact.resize(taps);
        weight.assign(static_cast<size_t>(outputs) * taps, 0);
        int most = 1;
        for (int i = 0; i < outputs; i++) {
            const double center = start + (static_cast<double>(i + skip) + 0.5) * scale;
            int low = static_cast<int>(center - support + 0.5), high = static_cast<int>(center + support + 0.5);
            if (low < 0) low = 0;
            if (high > in) high = in;
            double sum = 0.0;
            for (int k = 0; k < high - low; k++) {
                exact[k] = filter.weight((k + low - center + 0.5) * inverse);
                sum += exact[k];
            }
            for (int k = 0; k < high - low; k++) {
                if (sum != 0.0) exact[k] /= sum;
                weight[static_cast<size_t>(i) * taps + k] = static_cast<int32_t>((exact[k] < 0 ? -0.5 : 0.5) + exact[k] * (1 << BITS));
            }
            if (i == 0) from = low;
            first[i] = low - from;
            count[i] = high - low;
            size = high - from;
            if (count[i] > most) most = count[i];
        }
        pairs = (most + 1) / 2;
    }

    const int32_t* of(int output) const { return &weight[static_cast<size_t>(output) * taps]; }

    // Bytes after the end of a row that `rows` may read.  Their weight is 0.
    size_t padding() const { return static_cast<size_t>(pairs) * 2 * CHANNELS + 16; }

    // Splits the weights into 16-bit halves for `rows_avx2`: 16-bit multiplications are twice as fast as 32-bit ones.
    void split() {
        upper.assign(first.size() * pairs, 0);
        lower.assign(first.size() * pairs, 0);
        for (size_t i = 0; i < first.size(); i++)
            for (int k = 0; k < count[i]; k++) {
                const int32_t whole = weight[i * taps + k], bit = 16 * (k % 2);
                upper[i * pairs + k / 2] |= static_cast<uint32_t>(static_cast<uint16_t>(whole >> HALF)) << bit;  // with its sign
                lower[i * pairs + k / 2] |= static_cast<uint32_t>(whole & ((1 << HALF) - 1)) << bit;
            }
    }
};

// Resizes ROWS rows of pixels, `stride` bytes apart, to S pixels each, `pitch` bytes apart.  `pitch` must be at least one
// byte longer than S pixels.
inline void rows_portable(const uint8_t* in, size_t stride, const Weights& across, int S, uint8_t* out, size_t pitch) {
    for (int row = 0; row < ROWS; row++, in += stride, out += pitch)
        for (int x = 0; x < S; x++) {
            const int32_t* weight = across.of(x);
            const uint8_t* pixel = in + CHANNELS * across.first[x];
            int32_t sum[CHANNELS] = {1 << (BITS - 1), 1 << (BITS - 1), 1 << (BITS - 1)};
            for (int k = 0; k < across.count[x]; k++, pixel += CHANNELS)
                for (int c = 0; c < CHANNELS; c++) sum[c] += weight[k] * pixel[c];
            for (int c = 0; c < CHANNELS; c++) out[CHANNELS * x + c] = to_level(sum[c]);
        }
}

#ifdef X86
// The same sums.  One 32-bit lane per channel and row holds two neighboring pixels, which one instruction multiplies by
// their weights and adds.  Upper and lower halves of the weights are summed separately, so that the result is exact.
// PAIRS is `across.pairs` if that is known at compile time, else 0.
template <int PAIRS>
__attribute__((target("avx2"))) void rows_avx2(const uint8_t* in, size_t stride, const Weights& across, int S, uint8_t* out, size_t pitch) {
    const int pairs = PAIRS ? PAIRS : across.pairs;
    const uint32_t *upper = across.upper.data(), *lower = across.lower.data();
    const __m256i half_level = _mm256_set1_epi32(1 << (BITS - 1));  // for rounding
    const __m256i spread = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    for (int x = 0; x < S; x++, upper += pairs, lower += pairs, out += CHANNELS) {
        const uint8_t* pixel = in + CHANNELS * across.first[x];
        __m256i upper01 = _mm256_setzero_si256(), upper23 = upper01, lower01 = half_level, lower23 = half_level;
        for (int k = 0; k < pairs; k++, pixel += 2 * CHANNELS) {
            const auto* row = reinterpret_cast<const __m128i*>(pixel);
            const auto* row1 = reinterpret_cast<const __m128i*>(pixel + stride);
            const auto* row2 = reinterpret_cast<const __m128i*>(pixel + 2 * stride);
            const auto* row3 = reinterpret_cast<const __m128i*>(pixel + 3 * stride);
            __m256i rows01 = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(row)), _mm_loadu_si128(row1), 1);
            __m256i rows23 = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(row2)), _mm_loadu_si128(row3), 1);
            rows01 = _mm256_shuffle_epi8(rows01, spread);
            rows23 = _mm256_shuffle_epi8(rows23, spread);
            const __m256i high = _mm256_set1_epi32(static_cast<int>(upper[k])), low = _mm256_set1_epi32(static_cast<int>(lower[k]));
            upper01 = _mm256_add_epi32(upper01, _mm256_madd_epi16(rows01, high));
            upper23 = _mm256_add_epi32(upper23, _mm256_madd_epi16(rows23, high));
            lower01 = _mm256_add_epi32(lower01, _mm256_madd_epi16(rows01, low));
            lower23 = _mm256_add_epi32(lower23, _mm256_madd_epi16(rows23, low));
        }
        const __m256i sum01 = _mm256_add_epi32(_mm256_slli_epi32(upper01, HALF), lower01);
        const __m256i sum23 = _mm256_add_epi32(_mm256_slli_epi32(upper23, HALF), lower23);
        const __m256i words = _mm256_packus_epi32(_mm256_srai_epi32(sum01, BITS), _mm256_srai_epi32(sum23, BITS));
        const __m256i levels = _mm256_packus_epi16(words, words);  // rows 0 and 2, then rows 1 and 3
        const int32_t rows[ROWS] = {_mm256_extract_epi32(levels, 0), _mm256_extract_epi32(levels, 4),
                                    _mm256_extract_epi32(levels, 1), _mm256_extract_epi32(levels, 5)};
        // Four bytes are stored per pixel of three; the next pixel overwrites the fourth.
        for (int row = 0; row < ROWS; row++) std::memcpy(out + row * pitch, &rows[row], 4);
    }
}
#endif

inline void rows(const uint8_t* in, size_t stride, const Weights& across, int S, uint8_t* out, size_t pitch) {
#ifdef X86
    static const bool avx2 = __builtin_cpu_supports("avx2");
    if (avx2) switch (across.pairs) {
            case 1: return rows_avx2<1>(in, stride, across, S, out, pitch);
            case 2: return rows_avx2<2>(in, stride, across, S, out, pitch);
            case 3: return rows_avx2<3>(in, stride, across, S, out, pitch);
            case 4: return rows_avx2<4>(in, stride, across, S, out, pitch);
            case 5: return rows_avx2<5>(in, stride, across, S, out, pitch);
            default: return rows_avx2<0>(in, stride, across, S, out, pitch);
        }
#endif
    rows_portable(in, stride, across, S, out, pitch);
}

template <int COUNT>
inline __attribute__((always_inline)) void weighted_sum(const uint8_t* rows, size_t pitch, const int32_t* weight, int width, uint8_t* out) {
    for (int i = 0; i < width; i++) {
        int32_t sum = 1 << (BITS - 1);
        for (int k = 0; k < COUNT; k++) sum += weight[k] * rows[k * pitch + i];
        out[i] = to_level(sum);
    }
}

// The same for any number of taps, a few columns at a time, whose sums stay in the first-level cache.
inline __attribute__((always_inline)) void weighted_sums(const uint8_t* rows, size_t pitch, const int32_t* weight, int count, int width,
                                                         uint8_t* out) {
    constexpr int PART = 256;
    int32_t sum[PART];
    for (int start = 0; start < width; start += PART) {
        const int part = width - start < PART ? width - start : PART;
        for (int i = 0; i < part; i++) sum[i] = 1 << (BITS - 1);
        for (int k = 0; k < count; k++)
            for (int i = 0; i < part; i++) sum[i] += weight[k] * rows[k * pitch + start + i];
        for (int i = 0; i < part; i++) out[start + i] = to_level(sum[i]);
    }
}

// The pass along the columns: the weighted sum of `count` rows of `width` bytes, `pitch` bytes apart.
CPU_DISPATCH inline void columns(const uint8_t* rows, size_t pitch, const int32_t* weight, int count, int width, uint8_t* out) {
    switch (count) {  // with up to nine taps known at compile time, the sums stay in registers
        case 1: return weighted_sum<1>(rows, pitch, weight, width, out);
        case 2: return weighted_sum<2>(rows, pitch, weight, width, out);
        case 3: return weighted_sum<3>(rows, pitch, weight, width, out);
        case 4: return weighted_sum<4>(rows, pitch, weight, width, out);
        case 5: return weighted_sum<5>(rows, pitch, weight, width, out);
        case 6: return weighted_sum<6>(rows, pitch, weight, width, out);
        case 7: return weighted_sum<7>(rows, pitch, weight, width, out);
        case 8: return weighted_sum<8>(rows, pitch, weight, width, out);
        case 9: return weighted_sum<9>(rows, pitch, weight, width, out);
        default: return weighted_sums(rows, pitch, weight, count, width, out);
    }
}

}  // namespace resize
