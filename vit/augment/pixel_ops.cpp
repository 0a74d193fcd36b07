// What augmentation does to pixels, on CPUs: the bytes of the torch forms in `pixels.py`, several times as fast.
//
// Images are planes of bytes, (B, 3, H, W), and are changed in place, those of the `count` places `at`, one after the
// other while the cache holds it.  Floating point as torch's kernels have it: contracted where `addcmul` is, nowhere else.
//
// Called through ctypes, without Python's lock.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(PORTABLE)
#define X86
#include <immintrin.h>
#define FOR_EACH_CPU __attribute__((target_clones("avx2", "default")))  // chosen when the library is loaded
#else
#define FOR_EACH_CPU
#endif

namespace {

using std::size_t;
using std::uint8_t;

constexpr int CHANNELS = 3;
constexpr int LEVELS = 256;

// Ternaries, because references to the lesser or the greater keep compilers from running several of them at once.
inline int within(int value, int least, int most) { return value < least ? least : value > most ? most : value; }
inline double positive(double value) { return value > 0.0 ? value : 0.0; }

inline uint8_t gray(uint8_t red, uint8_t green, uint8_t blue) {  // truncated, as torch's conversion does
    return static_cast<uint8_t>(static_cast<int>(0.2989f * red + 0.587f * green + 0.114f * blue));
}

// A thread's memory of at least `bytes` bytes; freed when the thread ends.
uint8_t* scratch(size_t bytes) {
    thread_local std::vector<uint8_t> memory;
    if (memory.size() < bytes) memory.resize(bytes);
    return memory.data();
}

void lookup_anywhere(uint8_t* plane, size_t area, const uint8_t* table) {
    for (size_t i = 0; i < area; i++) plane[i] = table[plane[i]];
}

#ifdef X86
// A shuffle looks up 16 entries, and gives 0 where an index is negative.  The sixteenths of the table are gone through as
// differences to the one before, which add up to the entry wanted: indices fall by 16 each time, until they are negative.
__attribute__((target("avx2"))) void lookup_avx2(uint8_t* plane, size_t area, const uint8_t* table) {
    __m256i step[16];
    for (int k = 0; k < 16; k++) {
        __m128i now = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * k));
        if (k % 8) now = _mm_xor_si128(now, _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * (k - 1))));
        step[k] = _mm256_broadcastsi128_si256(now);
    }
    const __m256i sixteen = _mm256_set1_epi8(16), upper = _mm256_set1_epi8(-128);
    size_t i = 0;
    for (; i + 32 <= area; i += 32) {
        auto* here = reinterpret_cast<__m256i*>(plane + i);
        __m256i low = _mm256_loadu_si256(here), high = _mm256_xor_si256(low, upper), found = _mm256_setzero_si256();
        for (int k = 0; k < 8; k++) {
            found = _mm256_xor_si256(found, _mm256_xor_si256(_mm256_shuffle_epi8(step[k], low), _mm256_shuffle_epi8(step[8 + k], high)));
            low = _mm256_subs_epi8(low, sixteen);
            high = _mm256_subs_epi8(high, sixteen);
        }
        _mm256_storeu_si256(here, found);
    }
    lookup_anywhere(plane + i, area - i, table);
}
#endif

void lookup(uint8_t* plane, size_t area, const uint8_t* table) {
#ifdef X86
    static const bool fast = __builtin_cpu_supports("avx2");
    if (fast) return lookup_avx2(plane, area, table);
#endif
    lookup_anywhere(plane, area, table);
}

// Away from `other` by an amount, or toward it by one below 0.
FOR_EACH_CPU void blend(uint8_t* __restrict levels, const uint8_t* __restrict other, size_t count, float amount) {
    for (size_t i = 0; i < count; i++) {
        const float own = levels[i];
        levels[i] = static_cast<uint8_t>(within(static_cast<int>(own + (own - other[i]) * amount), 0, 255));
    }
}

FOR_EACH_CPU void grays(const uint8_t* image, size_t area, uint8_t* __restrict out) {
    const uint8_t *red = image, *green = image + area, *blue = image + 2 * area;
    for (size_t i = 0; i < area; i++) out[i] = gray(red[i], green[i], blue[i]);
}

// The mean of 3 x 3 pixels, the center counted 5 times, rounded: of the rows around `row`.
FOR_EACH_CPU void smooth(const uint8_t* previous, const uint8_t* row, const uint8_t* next, int W, uint16_t* __restrict down, uint8_t* __restrict out) {
    for (int x = 0; x < W; x++) down[x] = static_cast<uint16_t>(previous[x] + row[x] + next[x]);
    for (int x = 1; x < W - 1; x++) {
        const auto sum = static_cast<uint16_t>(down[x - 1] + down[x] + down[x + 1] + 4 * row[x] + 6);
        out[x] = static_cast<uint8_t>(sum * 5042u >> 16);  // sum / 13
    }
}

// Away from, or toward, the smoothed plane; the border stays.
void sharpen(uint8_t* plane, int H, int W, float amount) {
    const size_t area = static_cast<size_t>(H) * W;
    uint8_t* smoothed = scratch(area + 1 + W * sizeof(uint16_t));
    auto* down = reinterpret_cast<uint16_t*>(smoothed + area + area % 2);
    std::memcpy(smoothed, plane, area);
    for (int y = 1; y < H - 1; y++) {
        const uint8_t* row = plane + static_cast<size_t>(y) * W;
        smooth(row - W, row, row + W, W, down, smoothed + static_cast<size_t>(y) * W);
    }
    blend(plane, smoothed, area, amount);
}

void color(uint8_t* image, size_t area, float amount) {
    uint8_t* other = scratch(area);
    grays(image, area, other);
    for (int c = 0; c < CHANNELS; c++) blend(image + c * area, other, area, amount);
}

FOR_EACH_CPU void extremes(const uint8_t* plane, size_t area, uint8_t* low, uint8_t* high) {
    uint8_t least = 255, most = 0;
    for (size_t i = 0; i < area; i++) {
        least = std::min(least, plane[i]);
        most = std::max(most, plane[i]);
    }
    *low = least;
    *high = most;
}

FOR_EACH_CPU int64_t gray_sum(const uint8_t* image, size_t area) {
    int64_t total = 0;
    constexpr size_t BLOCK = 4096;  // 32 bits hold its sum
    for (size_t start = 0; start < area; start += BLOCK) {
        int32_t sum = 0;
        const size_t stop = std::min(area, start + BLOCK);
        for (size_t i = start; i < stop; i++)
            sum += gray(image[i], image[area + i], image[2 * area + i]);
        total += sum;
    }
    return total;
}

// Four counters for each level: equal neighbors do not wait for each other.
void histogram(const uint8_t* plane, size_t area, int32_t* counts) {
    int32_t part[4][LEVELS] = {};
    size_t i = 0;
    for (; i + 4 <= area; i += 4)
        for (int k = 0; k < 4; k++) part[k][plane[i + k]]++;
    for (; i < area; i++) part[0][plane[i]]++;
    for (int k = 0; k < LEVELS; k++) counts[k] = part[0][k] + part[1][k] + part[2][k] + part[3][k];
}

FOR_EACH_CPU void normalize(const uint8_t* plane, size_t area, float mean, float deviation, float* out) {
    for (size_t i = 0; i < area; i++) out[i] = (static_cast<float>(plane[i]) - mean) / deviation;
}

FOR_EACH_CPU void split(const uint8_t* row, int W, uint8_t* __restrict red, uint8_t* __restrict green, uint8_t* __restrict blue) {
    for (int x = 0; x < W; x++) {
        red[x] = row[CHANNELS * x];
        green[x] = row[CHANNELS * x + 1];
        blue[x] = row[CHANNELS * x + 2];
    }
}

FOR_EACH_CPU void mirror(const uint8_t* row, int W, uint8_t* __restrict out) {
    for (int x = 0; x < W; x++) out[x] = row[W - 1 - x];
}

// ------------------------------------------------------------------------------------------ resampling

// Where an output row's pixels come from: the upper left one of each four, and how much of left and right, top and bottom.
struct Taps {
    std::vector<int32_t> place;
    std::vector<float> weight[4];  // left top, left bottom, right top, right bottom
    explicit Taps(int W) : place(W) {
        for (auto& each : weight) each.resize(W + 2);  // four are loaded where two are used
    }
};

// From (x, y), counted from the center, the pixel at matrix (a, b, c) x (x, y, 1) and (d, e, f) x (y, x, 1) is taken.
// Pixels more than one outside are as those two outside: black.
FOR_EACH_CPU void locate(const double* matrix, int y, int H, int W, int pitch, int32_t* __restrict place, float* __restrict lt,
                         float* __restrict lb, float* __restrict rt, float* __restrict rb) {
    const double down = y - (H - 1) / 2.0, from_y0 = matrix[3] * down, from_x0 = matrix[1] * down;
    const double center_x = (W - 1) / 2.0, center_y = (H - 1) / 2.0;
    for (int x = 0; x < W; x++) {
        const double across = x - center_x;
        const double from_x = matrix[0] * across + from_x0 + matrix[2] + center_x;
        const double from_y = from_y0 + matrix[4] * across + matrix[5] + center_y;
        const double left = std::floor(from_x + 1e-9), top = std::floor(from_y + 1e-9);  // whole pixels stay whole
        const double to_left = left + 1 - from_x, to_top = top + 1 - from_y;
        const double to_right = positive(from_x - left), to_bottom = positive(from_y - top);
        lt[x] = static_cast<float>(to_left * to_top);
        lb[x] = static_cast<float>(to_left * to_bottom);
        rt[x] = static_cast<float>(to_right * to_top);
        rb[x] = static_cast<float>(to_right * to_bottom);
        place[x] = (within(static_cast<int>(top), -2, H) + 2) * pitch + within(static_cast<int>(left), -2, W) + 2;
    }
}

// Two neighbors of a row at once: pixels are 4 bytes wide, the fourth unused.
void blend_anywhere(const uint32_t* source, int pitch, const Taps& taps, int W, uint32_t* out) {
    for (int x = 0; x < W; x++) {
        const uint32_t* at = source + taps.place[x];
        const uint32_t pixel[4] = {at[0], at[pitch], at[1], at[pitch + 1]};
        out[x] = 0;
        for (int c = 0; c < CHANNELS; c++) {
            float sum = 0.0f;
            for (int k = 0; k < 4; k++) sum = std::fma(static_cast<float>(pixel[k] >> 8 * c & 255), taps.weight[k][x], sum);
            out[x] |= static_cast<uint32_t>(std::nearbyint(sum)) << 8 * c;
        }
    }
}

#ifdef X86
// Two pixels at once, each in half of a register: its four sources side by side, then a lane for each channel.
__attribute__((target("avx2,fma"))) void blend_avx2(const uint32_t* source, int pitch, const Taps& taps, int W, uint32_t* out) {
    const __m256i own = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);  // of two weights
    __m256i take[4];
    for (int k = 0; k < 4; k++) {
        const char at = static_cast<char>(8 * (k % 2) + 4 * (k / 2));  // left top, left bottom, right top, right bottom
        take[k] = _mm256_broadcastsi128_si256(_mm_setr_epi8(at, -1, -1, -1, at + 1, -1, -1, -1, at + 2, -1, -1, -1, -1, -1, -1, -1));
    }
    for (int x = 0; x + 2 <= W; x += 2) {
        __m128i four[2];
        for (int k = 0; k < 2; k++) {
            const auto* at = reinterpret_cast<const double*>(source + taps.place[x + k]);
            const auto* below = reinterpret_cast<const double*>(source + taps.place[x + k] + pitch);
            four[k] = _mm_castpd_si128(_mm_loadh_pd(_mm_load_sd(at), below));
        }
        const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(four[0]), four[1], 1);
        __m256 sum = _mm256_setzero_ps();
        for (int k = 0; k < 4; k++) {
            const __m256 weight = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(&taps.weight[k][x]));
            sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_shuffle_epi8(both, take[k])), _mm256_permutevar_ps(weight, own), sum);
        }
        const __m256i rounded = _mm256_cvtps_epi32(sum);
        const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out + x), _mm_packus_epi16(words, words));
    }
}
#endif

FOR_EACH_CPU void join(const uint8_t* red, const uint8_t* green, const uint8_t* blue, int W, uint32_t* out) {
    for (int x = 0; x < W; x++) out[x] = red[x] | static_cast<uint32_t>(green[x]) << 8 | static_cast<uint32_t>(blue[x]) << 16;
}

FOR_EACH_CPU void part(const uint32_t* row, int W, uint8_t* red, uint8_t* green, uint8_t* blue) {
    for (int x = 0; x < W; x++) {
        red[x] = static_cast<uint8_t>(row[x]);
        green[x] = static_cast<uint8_t>(row[x] >> 8);
        blue[x] = static_cast<uint8_t>(row[x] >> 16);
    }
}

void warp(uint8_t* image, int H, int W, const double* matrix, uint32_t fill) {
#ifdef X86
    static const bool fast = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    constexpr bool fast = false;
#endif
    const int even = (W + 1) / 2 * 2, pitch = W + 4;  // two pixels of border around the image
    const size_t area = static_cast<size_t>(H) * W;
    auto* source = reinterpret_cast<uint32_t*>(scratch((static_cast<size_t>(pitch) * (H + 4) + even) * sizeof(uint32_t)));
    uint32_t* row = source + static_cast<size_t>(pitch) * (H + 4);
    std::fill(source, row, fill);
    for (int y = 0; y < H; y++) {
        const uint8_t* from = image + static_cast<size_t>(y) * W;
        join(from, from + area, from + 2 * area, W, source + static_cast<size_t>(y + 2) * pitch + 2);
    }
    Taps taps(even);
    for (int y = 0; y < H; y++) {
        uint8_t* to = image + static_cast<size_t>(y) * W;
        locate(matrix, y, H, W, pitch, taps.place.data(), taps.weight[0].data(), taps.weight[1].data(), taps.weight[2].data(), taps.weight[3].data());
#ifdef X86
        if (fast) blend_avx2(source, pitch, taps, even, row);
#endif
        if (!fast) blend_anywhere(source, pitch, taps, W, row);
        part(row, W, to, to + area, to + 2 * area);
    }
}

// By whole pixels.
void shift(uint8_t* plane, int H, int W, int right, int down, uint8_t fill) {
    const size_t area = static_cast<size_t>(H) * W;
    uint8_t* moved = scratch(area);
    std::memset(moved, fill, area);
    if (std::abs(right) < W)
        for (int y = std::max(down, 0); y < std::min(H + down, H); y++)
            std::memcpy(moved + static_cast<size_t>(y) * W + std::max(right, 0), plane + static_cast<size_t>(y - down) * W + std::max(-right, 0),
                        static_cast<size_t>(W - std::abs(right)));
    std::memcpy(plane, moved, area);
}

// Each of the images at `at`, and its place among them.
template <class Run>
void each(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, Run run) {
    for (int64_t i = 0; i < count; i++) run(images + at[i] * CHANNELS * H * W, i);
}

}  // namespace

extern "C" {

// (B, H, W, 3) -> (B, 3, H, W), left to right where `mirrored` is.
void vit_planes(const uint8_t* batch, int64_t B, int64_t H, int64_t W, const uint8_t* mirrored, uint8_t* out) {
    const int64_t area = H * W;
    uint8_t* rows = scratch(static_cast<size_t>(CHANNELS * W));
    for (int64_t i = 0; i < B; i++, out += CHANNELS * area)
        for (int64_t y = 0; y < H; y++, batch += CHANNELS * W) {
            uint8_t* to = out + y * W;
            if (!mirrored[i]) {
                split(batch, static_cast<int>(W), to, to + area, to + 2 * area);
                continue;
            }
            split(batch, static_cast<int>(W), rows, rows + W, rows + 2 * W);
            for (int64_t c = 0; c < CHANNELS; c++) mirror(rows + c * W, static_cast<int>(W), to + c * area);
        }
}

// (B, 3, H, W) -> floats, with a mean and a deviation for each channel.
void vit_normalize(const uint8_t* images, int64_t B, int64_t H, int64_t W, const float* mean, const float* deviation, float* out) {
    const int64_t area = H * W;
    for (int64_t plane = 0; plane < B * CHANNELS; plane++)
        normalize(images + plane * area, area, mean[plane % CHANNELS], deviation[plane % CHANNELS], out + plane * area);
}

// sums: (count,), of truncated gray levels.
void vit_gray_sums(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, int64_t* sums) {
    each(images, at, count, H, W, [&](const uint8_t* image, int64_t i) { sums[i] = gray_sum(image, H * W); });
}

// found: (2, count, 3), the least and the greatest level of each channel.
void vit_extremes(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, uint8_t* found) {
    each(images, at, count, H, W, [&](const uint8_t* image, int64_t i) {
        for (int64_t c = 0; c < CHANNELS; c++)
            extremes(image + c * H * W, H * W, found + i * CHANNELS + c, found + (count + i) * CHANNELS + c);
    });
}

// counts: (count, 3, 256).
void vit_histogram(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, int32_t* counts) {
    each(images, at, count, H, W, [&](const uint8_t* image, int64_t i) {
        for (int64_t c = 0; c < CHANNELS; c++) histogram(image + c * H * W, H * W, counts + (i * CHANNELS + c) * LEVELS);
    });
}

// tables: (count, 3, 256).
void vit_lookup(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, const uint8_t* tables) {
    each(images, at, count, H, W, [&](uint8_t* image, int64_t i) {
        for (int64_t c = 0; c < CHANNELS; c++) lookup(image + c * H * W, H * W, tables + (i * CHANNELS + c) * LEVELS);
    });
}

// amounts: (count,), away from gray.
void vit_color(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, const float* amounts) {
    each(images, at, count, H, W, [&](uint8_t* image, int64_t i) { color(image, static_cast<size_t>(H * W), amounts[i]); });
}

// amounts: (count,), away from the smoothed image.
void vit_sharpness(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, const float* amounts) {
    each(images, at, count, H, W, [&](uint8_t* image, int64_t i) {
        for (int64_t c = 0; c < CHANNELS; c++, image += H * W) sharpen(image, static_cast<int>(H), static_cast<int>(W), amounts[i]);
    });
}

// matrices: (count, 6); fill: (3,).
void vit_warp(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, const double* matrices, const uint8_t* fill) {
    const uint32_t color = fill[0] | static_cast<uint32_t>(fill[1]) << 8 | static_cast<uint32_t>(fill[2]) << 16;
    each(images, at, count, H, W, [&](uint8_t* image, int64_t i) { warp(image, static_cast<int>(H), static_cast<int>(W), matrices + 6 * i, color); });
}

// by: (count, 2), whole pixels to the right and down; fill: (3,).
void vit_shift(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, const int64_t* by, const uint8_t* fill) {
    each(images, at, count, H, W, [&](uint8_t* image, int64_t i) {
        const auto [right, down] = std::array{static_cast<int>(by[2 * i]), static_cast<int>(by[2 * i + 1])};
        for (int64_t c = 0; c < CHANNELS; c++, image += H * W) shift(image, static_cast<int>(H), static_cast<int>(W), right, down, fill[c]);
    });
}

}  // extern "C"
