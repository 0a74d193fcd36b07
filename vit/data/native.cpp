// Crops of images, decoded and resized: the pixels of Pillow, to the bit, at less than half of its cost.
//
// A JPEG is decoded only where the crop lies (libjpeg-turbo skips the rows above and below it and the columns beside it),
// and each row is resized while it is in the cache.  The resize is Pillow's antialiased bilinear one: the same triangle
// weights in 22 bits, horizontal first, each pass rounded to 8 bits.  Hence `Image.crop(box).resize(size, BILINEAR)`, and
// torchvision's RandomResizedCrop and Resize on PIL images, give these pixels exactly.
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

#if defined(__x86_64__) && defined(__GNUC__)
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

// One row of pixels, w to S wide.  Four lanes hold the three channels of a pixel; `row` has a byte to spare at its end.
FOR_EACH_CPU void resize_row(const uint8_t* row, const Weights& across, int S, uint8_t* out) {
    typedef int32_t Lanes __attribute__((vector_size(16)));
    typedef uint8_t Bytes __attribute__((vector_size(4)));
    for (int x = 0; x < S; x++) {
        const int32_t* weight = &across.weight[static_cast<size_t>(x) * across.taps];
        const uint8_t* pixel = row + CHANNELS * across.first[x];
        const int32_t half = 1 << (BITS - 1);
        Lanes sum = {half, half, half, half};
        for (int k = 0; k < across.count[x]; k++, pixel += CHANNELS) {
            Bytes bytes;
            std::memcpy(&bytes, pixel, 4);
            sum += __builtin_convertvector(bytes, Lanes) * weight[k];
        }
        sum >>= BITS;  // weights are not negative and add up to at most one and a rounding: 0 to 255
        for (int c = 0; c < CHANNELS; c++) out[CHANNELS * x + c] = static_cast<uint8_t>(sum[c] > 255 ? 255 : sum[c]);
    }
}

// The column pass: rows of `width` bytes, weighted and added up.
FOR_EACH_CPU void add_rows(const uint8_t* rows, const int32_t* weight, int count, int width, int32_t* sum, uint8_t* out) {
    for (int i = 0; i < width; i++) sum[i] = 1 << (BITS - 1);
    for (int k = 0; k < count; k++, rows += width)
        for (int i = 0; i < width; i++) sum[i] += weight[k] * rows[i];
    for (int i = 0; i < width; i++) {
        const int32_t level = sum[i] >> BITS;
        out[i] = static_cast<uint8_t>(level > 255 ? 255 : level);
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
    std::vector<uint8_t> line;     // one decoded row
    std::vector<uint8_t> resized;  // all rows of the crop, S wide
    std::vector<int32_t> sum;
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
        resized.resize(static_cast<size_t>(h) * S * CHANNELS);
        sum.resize(static_cast<size_t>(S) * CHANNELS);
    }

    void finish(int S, uint8_t* out) {
        const int width = S * CHANNELS;
        for (int y = 0; y < S; y++)
            add_rows(&resized[static_cast<size_t>(down.first[y]) * width], &down.weight[static_cast<size_t>(y) * down.taps],
                     down.count[y], width, sum.data(), out + static_cast<size_t>(y) * width);
    }

    void raw(const uint8_t* pixels, int width, int top, int left, int h, int w, int S, uint8_t* out) {
        begin(h, w, S);
        line.resize(static_cast<size_t>(w) * CHANNELS + 1);
        for (int y = 0; y < h; y++) {
            std::memcpy(line.data(), pixels + (static_cast<size_t>(top + y) * width + left) * CHANNELS, static_cast<size_t>(w) * CHANNELS);
            resize_row(line.data(), across, S, &resized[static_cast<size_t>(y) * S * CHANNELS]);
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
        line.resize(static_cast<size_t>(columns) * CHANNELS + 1);
        if (top > 0) jpeg_skip_scanlines(&info, top);
        for (int y = 0; y < h; y++) {
            JSAMPROW row = line.data();
            jpeg_read_scanlines(&info, &row, 1);
            resize_row(row + static_cast<size_t>(left - start) * CHANNELS, across, S, &resized[static_cast<size_t>(y) * S * CHANNELS]);
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
