// Crops of images, decoded and resized: the pixels of Pillow at less than half of its cost.
//
// A JPEG is decoded only where the crop lies (libjpeg-turbo skips the rows above and below it and the columns beside it),
// and each row is resized while it is in the cache.  The resize is Pillow's antialiased bilinear one: the same triangle
// weights in 22 bits, horizontal first, each pass rounded to 8 bits.  Hence `Image.crop(box).resize(size, BILINEAR)`, and
// torchvision's RandomResizedCrop and Resize on PIL images, give these pixels exactly, up to Pillow 12.  Pillow 13 takes
// the columns of some tall crops first, and then differs by one level at most.
// Pillow: https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c
//
// Called through ctypes, without Python's lock, by several threads at once.

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cmath>
#include <cstring>
#include <vector>

#include <jpeglib.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(PORTABLE)
#define X86
#include <immintrin.h>
#define FOR_EACH_CPU __attribute__((target_clones("avx2", "default")))  // chosen when the library is loaded
#else
#define FOR_EACH_CPU
#endif

namespace {

constexpr int BITS = 32 - 8 - 2;  // of a weight after the point, as Pillow's
constexpr int CHANNELS = 3;
constexpr int JPEG = 0;  // FFCV's image modes; 1 is raw

// Where each output pixel comes from along one axis: `first[i]`, `count[i]` and `taps` weights each.
struct Weights {
    int taps = 0;
    std::vector<int> first, count;
    std::vector<int32_t> weight;

    void set(int in_size, int out_size) {
        const double scale = static_cast<double>(in_size) / out_size, support = scale < 1.0 ? 1.0 : scale;
        taps = static_cast<int>(std::ceil(support)) * 2 + 1;
        first.assign(out_size, 0);
        count.assign(out_size, 0);
        weight.assign(static_cast<size_t>(out_size) * taps, 0);
        std::vector<double> exact(taps);
        for (int i = 0; i < out_size; i++) {
            const double centre = (i + 0.5) * scale, inverse = 1.0 / support;
            int low = static_cast<int>(centre - support + 0.5), high = static_cast<int>(centre + support + 0.5);
            if (low < 0) low = 0;
            if (high > in_size) high = in_size;
            double sum = 0.0;
            for (int k = 0; k < high - low; k++) {
                const double x = std::fabs((k + low - centre + 0.5) * inverse);
                exact[k] = x < 1.0 ? 1.0 - x : 0.0;
                sum += exact[k];
            }
            for (int k = 0; k < high - low; k++) {
                if (sum != 0.0) exact[k] /= sum;
                weight[static_cast<size_t>(i) * taps + k] = static_cast<int32_t>(0.5 + exact[k] * (1 << BITS));
            }
            first[i] = low;
            count[i] = high - low;
        }
    }
};

constexpr int ROWS = 4;  // that are resized side by side

// ROWS rows of pixels, `stride` bytes apart, from w to S wide.  Each pixel is read with the byte that follows it: the rows
// have a byte to spare at their end.
void resize_rows_anywhere(const uint8_t* in, size_t stride, const Weights& across, int S, uint8_t* out) {
    for (int row = 0; row < ROWS; row++, in += stride)
        for (int x = 0; x < S; x++, out += CHANNELS) {
            const int32_t* weight = &across.weight[static_cast<size_t>(x) * across.taps];
            const uint8_t* pixel = in + CHANNELS * across.first[x];
            int32_t sum[CHANNELS] = {1 << (BITS - 1), 1 << (BITS - 1), 1 << (BITS - 1)};
            for (int k = 0; k < across.count[x]; k++, pixel += CHANNELS)
                for (int c = 0; c < CHANNELS; c++) sum[c] += weight[k] * pixel[c];
            // Weights are not negative and add up to one and a rounding: all is within 0 to 255.
            for (int c = 0; c < CHANNELS; c++) out[c] = static_cast<uint8_t>(sum[c] >> BITS);
        }
}

#ifdef X86
// The same sums, the four rows side by side: a lane for each channel of each row, and one for the byte behind it.
__attribute__((target("avx2"))) void resize_rows_avx2(const uint8_t* in, size_t stride, const Weights& across, int S, uint8_t* out) {
    const size_t width = static_cast<size_t>(S) * CHANNELS;
    const auto four = [](const uint8_t* bytes) { int32_t word; std::memcpy(&word, bytes, 4); return word; };
    for (int x = 0; x < S; x++, out += CHANNELS) {
        const int32_t* weight = &across.weight[static_cast<size_t>(x) * across.taps];
        const uint8_t* pixel = in + CHANNELS * across.first[x];
        __m256i upper = _mm256_set1_epi32(1 << (BITS - 1)), lower = upper;  // rows 0 and 1, rows 2 and 3
        for (int k = 0; k < across.count[x]; k++, pixel += CHANNELS) {
            const __m128i bytes = _mm_set_epi32(four(pixel + 3 * stride), four(pixel + 2 * stride), four(pixel + stride), four(pixel));
            const __m256i factor = _mm256_set1_epi32(weight[k]);
            upper = _mm256_add_epi32(upper, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), factor));
            lower = _mm256_add_epi32(lower, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)), factor));
        }
        const __m256i words = _mm256_packus_epi32(_mm256_srli_epi32(upper, BITS), _mm256_srli_epi32(lower, BITS));
        const __m256i levels = _mm256_packus_epi16(words, words);  // rows 0 and 2, then rows 1 and 3
        const int32_t rows[ROWS] = {_mm256_extract_epi32(levels, 0), _mm256_extract_epi32(levels, 4),
                                    _mm256_extract_epi32(levels, 1), _mm256_extract_epi32(levels, 5)};
        for (int row = 0; row < ROWS; row++) std::memcpy(out + row * width, &rows[row], CHANNELS);
    }
}
#endif

void resize_rows(const uint8_t* in, size_t stride, const Weights& across, int S, uint8_t* out) {
#ifdef X86
    static const bool avx2 = __builtin_cpu_supports("avx2");
    if (avx2) return resize_rows_avx2(in, stride, across, S, out);
#endif
    resize_rows_anywhere(in, stride, across, S, out);
}

template <int COUNT>
inline __attribute__((always_inline)) void add(const uint8_t* rows, const int32_t* weight, int count, int width, uint8_t* out) {
    const int taps = COUNT ? COUNT : count;
    for (int i = 0; i < width; i++) {
        int32_t sum = 1 << (BITS - 1);
        for (int k = 0; k < taps; k++) sum += weight[k] * rows[static_cast<size_t>(k) * width + i];
        out[i] = static_cast<uint8_t>(sum >> BITS);
    }
}

// The pass down the columns: `count` rows of `width` bytes, weighted and added up.
FOR_EACH_CPU void add_rows(const uint8_t* rows, const int32_t* weight, int count, int width, uint8_t* out) {
    switch (count) {  // with few and known taps the compiler keeps the sums in registers
        case 1: return add<1>(rows, weight, count, width, out);
        case 2: return add<2>(rows, weight, count, width, out);
        case 3: return add<3>(rows, weight, count, width, out);
        case 4: return add<4>(rows, weight, count, width, out);
        case 5: return add<5>(rows, weight, count, width, out);
        default: return add<0>(rows, weight, count, width, out);
    }
}

struct Failure {
    jpeg_error_mgr manager;  // first, so that libjpeg's pointer is a pointer to this
    std::jmp_buf back;
};

void fail(j_common_ptr info) { std::longjmp(reinterpret_cast<Failure*>(info->err)->back, 1); }
void be_quiet(j_common_ptr) {}

// What one thread works with; it is freed when the thread ends.
struct Worker {
    Weights across, down;
    std::vector<uint8_t> lines;    // ROWS decoded rows
    std::vector<uint8_t> resized;  // all rows of the crop, S wide
    jpeg_decompress_struct info;
    Failure failure;

    Worker() {
        info.err = jpeg_std_error(&failure.manager);
        failure.manager.error_exit = fail;
        failure.manager.output_message = be_quiet;
        jpeg_create_decompress(&info);
    }
    ~Worker() { jpeg_destroy_decompress(&info); }

    void begin(int h, int w, int S) {
        across.set(w, S);
        down.set(h, S);
        resized.resize(static_cast<size_t>(h + ROWS) * S * CHANNELS);
    }

    // Rows of the crop, `stride` bytes apart and with a byte to spare behind the last; the y-th is the first of them.
    void take(const uint8_t* rows, size_t stride, int y, int S) {
        resize_rows(rows, stride, across, S, &resized[static_cast<size_t>(y) * S * CHANNELS]);
    }

    void finish(int S, uint8_t* out) {
        const size_t width = static_cast<size_t>(S) * CHANNELS;
        for (int y = 0; y < S; y++)
            add_rows(&resized[down.first[y] * width], &down.weight[static_cast<size_t>(y) * down.taps], down.count[y],
                     static_cast<int>(width), out + y * width);
    }

    void raw(const uint8_t* pixels, int width, int top, int left, int h, int w, int S, uint8_t* out) {
        begin(h, w, S);
        const size_t stride = static_cast<size_t>(w) * CHANNELS + 1;
        lines.resize(stride * ROWS);
        for (int y = 0; y < h; y += ROWS) {
            // Copied, because behind the last row of the last image the file may end.
            for (int row = 0; row < ROWS && y + row < h; row++)
                std::memcpy(&lines[row * stride], pixels + (static_cast<size_t>(top + y + row) * width + left) * CHANNELS, stride - 1);
            take(lines.data(), stride, y, S);
        }
        finish(S, out);
    }

    // False if the bytes are no JPEG of this size, or end before the crop does.
    bool jpeg(const uint8_t* bytes, size_t size, int height, int width, int top, int left, int h, int w, int S, uint8_t* out) {
        begin(h, w, S);
        if (setjmp(failure.back)) {
            jpeg_abort_decompress(&info);
            return false;
        }
        jpeg_mem_src(&info, bytes, size);
        jpeg_read_header(&info, TRUE);
        info.out_color_space = JCS_RGB;
        info.dct_method = JDCT_ISLOW;
        if (static_cast<int>(info.image_width) != width || static_cast<int>(info.image_height) != height) {
            jpeg_abort_decompress(&info);
            return false;
        }
        jpeg_start_decompress(&info);
        // libjpeg-turbo widens the columns to whole blocks.  A block more on either side, because smooth upsampling of
        // the colours looks at the neighbours, and the edge of what is decoded has none.
        const int block = info.max_h_samp_factor * DCTSIZE;
        const int from = left - block > 0 ? left - block : 0, to = left + w + block < width ? left + w + block : width;
        JDIMENSION start = from, columns = to - from;
        if (columns < static_cast<JDIMENSION>(width)) jpeg_crop_scanline(&info, &start, &columns);
        const size_t stride = static_cast<size_t>(columns) * CHANNELS + 1;
        lines.resize(stride * ROWS);
        if (top > 0) jpeg_skip_scanlines(&info, top);
        for (int y = 0; y < h; y += ROWS) {
            for (int row = 0; row < ROWS && y + row < h; row++) {
                JSAMPROW line = &lines[row * stride];
                jpeg_read_scanlines(&info, &line, 1);
            }
            take(&lines[static_cast<size_t>(left - start) * CHANNELS], stride, y, S);
        }
        const bool whole = failure.manager.num_warnings == 0;  // libjpeg fills what is missing with grey, and warns
        jpeg_abort_decompress(&info);
        finish(S, out);
        return whole;
    }
};

}  // namespace

// Fills `out` (count, S, S, 3) from a mapped file.  Of each image: mode, height, width, offset and size of its bytes, and
// the crop's top, left, height and width.  Returns -1, or the place in the batch of the first image that is damaged.
extern "C" int64_t vit_decode(const uint8_t* file, int64_t count, const int64_t* images, int64_t S, uint8_t* out) {
    thread_local Worker worker;
    const int side = static_cast<int>(S);
    for (int64_t i = 0; i < count; i++, images += 9, out += S * S * CHANNELS) {
        const int height = static_cast<int>(images[1]), width = static_cast<int>(images[2]);
        const uint8_t* bytes = file + images[3];
        const int top = static_cast<int>(images[5]), left = static_cast<int>(images[6]);
        const int h = static_cast<int>(images[7]), w = static_cast<int>(images[8]);
        if (images[0] != JPEG)
            worker.raw(bytes, width, top, left, h, w, side, out);
        else if (!worker.jpeg(bytes, static_cast<size_t>(images[4]), height, width, top, left, h, w, side, out))
            return i;
    }
    return -1;
}
