// Pixel operations of augmentation on CPUs: the same bytes as the torch implementations in `pixel_ops.py`, several times
// as fast.
//
// Images are planes of bytes, (B, 3, H, W), and are changed in place: the `count` images whose indices are in `at`, one
// after the other, so that each stays in the cache.  Floating-point arithmetic is that of torch's kernels: fused
// multiply-add where torch uses `addcmul`, and nowhere else.
//
// The functions are called through ctypes, without Python's global lock.

#include <array>
#include <cstddef>
#include <cstdint>

#include "../data/resize.h"
#include "pixel_kernels.h"
#include "warp.h"

using namespace pixels;

namespace {

// Calls run(image, i) for the i-th of the `count` images in `at`.
template <class Run>
void for_each_image(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, Run run) {
    for (int64_t i = 0; i < count; i++) run(images + at[i] * CHANNELS * H * W, i);
}

// Resizes an image of planes: the rows of interleaved pixels, then the columns.  The weights are those of both axes.
void resize_planes(const uint8_t* image, const resize::Weights& weights, int side, int S, uint8_t* out) {
    const size_t area = static_cast<size_t>(side) * side, stride = static_cast<size_t>(side) * CHANNELS;
    const size_t width = static_cast<size_t>(S) * CHANNELS, pitch = width + 1, out_area = static_cast<size_t>(S) * S;
    uint8_t* lines = scratch(resize::ROWS * stride + weights.padding() + (side + resize::ROWS) * pitch + width);
    uint8_t *resized = lines + resize::ROWS * stride + weights.padding(), *row = resized + (side + resize::ROWS) * pitch;
    for (int y = 0; y < side; y += resize::ROWS) {
        for (int i = 0; i < resize::ROWS && y + i < side; i++) {
            const uint8_t* red = image + static_cast<size_t>(y + i) * side;
            interleave(red, red + area, red + 2 * area, side, lines + i * stride);
        }
        resize::rows(lines, stride, weights, S, resized + y * pitch, pitch);
    }
    for (int y = 0; y < S; y++, out += S) {
        resize::columns(resized + weights.first[y] * pitch, pitch, weights.of(y), weights.count[y], static_cast<int>(width), row);
        deinterleave(row, S, out, out + out_area, out + 2 * out_area);
    }
}

}  // namespace

extern "C" {

// (B, H, W, 3) -> (B, 3, H, W); images whose entry in `mirrored` (B,) is true are flipped left to right.
void vit_planes(const uint8_t* batch, int64_t B, int64_t H, int64_t W, const uint8_t* mirrored, uint8_t* out) {
    const int64_t area = H * W;
    uint8_t* rows = scratch(static_cast<size_t>(CHANNELS * W));
    for (int64_t i = 0; i < B; i++, out += CHANNELS * area)
        for (int64_t y = 0; y < H; y++, batch += CHANNELS * W) {
            uint8_t* to = out + y * W;
            if (!mirrored[i]) {
                deinterleave(batch, static_cast<int>(W), to, to + area, to + 2 * area);
                continue;
            }
            deinterleave(batch, static_cast<int>(W), rows, rows + W, rows + 2 * W);
            for (int64_t c = 0; c < CHANNELS; c++) mirror(rows + c * W, static_cast<int>(W), to + c * area);
        }
}

// (B, 3, H, W) -> float32, with the mean and the standard deviation of each channel.
void vit_normalize(const uint8_t* images, int64_t B, int64_t H, int64_t W, const float* mean, const float* std_dev, float* out) {
    const int64_t area = H * W;
    for (int64_t plane = 0; plane < B * CHANNELS; plane++)
        normalize(images + plane * area, area, mean[plane % CHANNELS], std_dev[plane % CHANNELS], out + plane * area);
}

// (B, 3, side, side) -> (B, 3, S, S), by Lanczos's filter.
void vit_lanczos(const uint8_t* images, int64_t B, int64_t side, int64_t S, uint8_t* out) {
    resize::Weights weights;
    weights.set(resize::LANCZOS, 0.0, static_cast<double>(side), static_cast<int>(side), S, 0, static_cast<int>(S));
    weights.split();
    for (int64_t i = 0; i < B; i++, images += CHANNELS * side * side, out += CHANNELS * S * S)
        resize_planes(images, weights, static_cast<int>(side), static_cast<int>(S), out);
}

// sums: (count,), of each image's gray levels, truncated to integers.
void vit_gray_sums(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, int64_t* sums) {
    for_each_image(images, at, count, H, W, [&](const uint8_t* image, int64_t i) { sums[i] = gray_sum(image, H * W); });
}

// found: (2, count, 3), the lowest and the highest level of each channel.
void vit_extremes(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, uint8_t* found) {
    for_each_image(images, at, count, H, W, [&](const uint8_t* image, int64_t i) {
        for (int64_t c = 0; c < CHANNELS; c++)
            extremes(image + c * H * W, H * W, found + i * CHANNELS + c, found + (count + i) * CHANNELS + c);
    });
}

// counts: (count, 3, 256).
void vit_histogram(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, int32_t* counts) {
    for_each_image(images, at, count, H, W, [&](const uint8_t* image, int64_t i) {
        for (int64_t c = 0; c < CHANNELS; c++) histogram(image + c * H * W, H * W, counts + (i * CHANNELS + c) * LEVELS);
    });
}

// tables: (count, 3, 256).
void vit_lookup(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, const uint8_t* tables) {
    for_each_image(images, at, count, H, W, [&](uint8_t* image, int64_t i) {
        for (int64_t c = 0; c < CHANNELS; c++) lookup(image + c * H * W, H * W, tables + (i * CHANNELS + c) * LEVELS);
    });
}

// amounts: (count,); positive: away from the grayscale image, negative: toward it.
void vit_color(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, const float* amounts) {
    for_each_image(images, at, count, H, W, [&](uint8_t* image, int64_t i) { color(image, static_cast<size_t>(H * W), amounts[i]); });
}

// amounts: (count,); positive: away from the smoothed image, negative: toward it.
void vit_sharpness(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, const float* amounts) {
    for_each_image(images, at, count, H, W, [&](uint8_t* image, int64_t i) {
        for (int64_t c = 0; c < CHANNELS; c++, image += H * W) sharpness(image, static_cast<int>(H), static_cast<int>(W), amounts[i]);
    });
}

// matrices: (count, 6), see `locate`; fill: (3,), the color outside of the image.
void vit_warp(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, const double* matrices, const uint8_t* fill) {
    const uint32_t color = fill[0] | static_cast<uint32_t>(fill[1]) << 8 | static_cast<uint32_t>(fill[2]) << 16;
    for_each_image(images, at, count, H, W, [&](uint8_t* image, int64_t i) {
        warp(image, static_cast<int>(H), static_cast<int>(W), matrices + 6 * i, color);
    });
}

// by: (count, 2), whole pixels to the right and down; fill: (3,), the color outside of the image.
void vit_shift(uint8_t* images, const int64_t* at, int64_t count, int64_t H, int64_t W, const int64_t* by, const uint8_t* fill) {
    for_each_image(images, at, count, H, W, [&](uint8_t* image, int64_t i) {
        const auto [right, down] = std::array{static_cast<int>(by[2 * i]), static_cast<int>(by[2 * i + 1])};
        for (int64_t c = 0; c < CHANNELS; c++, image += H * W) shift(image, static_cast<int>(H), static_cast<int>(W), right, down, fill[c]);
    });
}

}  // extern "C"
