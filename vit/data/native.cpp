// Decodes, crops and resizes images: the pixels of Pillow at a third of its cost.
//
// A JPEG is decoded only inside of the crop: libjpeg-turbo skips the rows above and below it and the columns to its left
// and right.  The entropy-coded data must still be decoded up to the end of the crop, which is most of the cost;
// `huffman.h` does that.  The resize is that of Pillow 13 (`resize.h`).  The pixels are therefore exactly those of
// `Image.crop(box).resize(size, filter)`, and of torchvision's RandomResizedCrop, Resize and CenterCrop on PIL images.
//
// Called through ctypes, without Python's global lock, from several threads at once.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include "huffman.h"
#include "jpeg_damage.h"
#include "jpeg_library.h"
#include "resize.h"

namespace {

using resize::CHANNELS;
using resize::ROWS;

constexpr int JPEG = 0;  // FFCV's image modes; 1 is raw

// One image and its crop, as in `decode.py`: a box is resized to resized_height x resized_width pixels, of which the
// S x S pixels at (out_top, out_left) are the output.
struct Image {
    int64_t mode, height, width, offset, size;
    int64_t top, left, box_height, box_width;
    int64_t resized_height, resized_width, out_top, out_left;
};

// The buffers and the decoder of one thread; freed when the thread ends.
struct Worker {
    resize::Weights across, down;
    std::vector<uint8_t> lines;    // decoded rows: ROWS of them, or those of a few outputs if the columns come first
    std::vector<uint8_t> mixed;    // ROWS rows whose columns are resized
    std::vector<uint8_t> resized;  // rows resized to S pixels: all rows of the crop, or ROWS if the columns come first
    int top = 0, left = 0, h = 0, w = 0;  // region of the decoded image that is needed
    int scale = 1;                        // side of a decoded pixel, in pixels of the image
    const resize::Filter* filter = &resize::BILINEAR;
    bool columns_first = false;
    int S = 0;
    size_t pitch = 0;  // bytes from one row of `resized` to the next
    jpeg_decompress_struct info;
    damage::Failure failure;
    huffman::ScanDecoder scan;

    Worker() {
        failure.install(*reinterpret_cast<jpeg_common_struct*>(&info));
        jpeg_create_decompress(&info);
    }
    ~Worker() { jpeg_destroy_decompress(&info); }

    // False if the image is damaged.
    bool decode(const Image& image, const uint8_t* bytes, int side, bool scaled, uint8_t* out) {
        S = side;
        scale = 1;
        if (scaled && image.mode == JPEG)
            while (scale < DCTSIZE && image.box_height >= 2 * scale * image.resized_height &&
                   image.box_width >= 2 * scale * image.resized_width)
                scale *= 2;
        top = locate(down, image.top, image.box_height, image.resized_height, image.out_top);
        left = locate(across, image.left, image.box_width, image.resized_width, image.out_left);
        across.split();
        columns_first = resize::columns_first(down.in, image.resized_height, across.in, image.resized_width);
        h = down.size;
        w = across.size;
        pitch = static_cast<size_t>(S) * CHANNELS + 1;
        if (image.mode == JPEG)
            return jpeg(bytes, static_cast<size_t>(image.size), static_cast<int>(image.height), static_cast<int>(image.width), out);
        raw(bytes, static_cast<int>(image.width), out);
        return true;
    }

    // Sets the weights along one axis; returns the first pixel that they need.  A box may begin and end inside of a decoded
    // pixel when the image is scaled.
    int locate(resize::Weights& weights, int64_t start, int64_t length, int64_t resized_to, int64_t skip) const {
        const int64_t low = start / scale, high = (start + length + scale - 1) / scale;
        weights.set(*filter, static_cast<double>(start) / scale - static_cast<double>(low), static_cast<double>(length) / scale,
                    static_cast<int>(high - low), resized_to, skip, S);
        return static_cast<int>(low) + weights.from;
    }

    // Resizes the crop.  `read(row)` decodes the next row of it into `stride` bytes, of which the first `before` are not needed.
    template <class Read>
    void resample(Read read, size_t stride, size_t before, uint8_t* out) {
        if (columns_first) return resample_columns_first(read, stride, before, out);
        resized.resize((h + ROWS) * pitch);
        lines.resize(stride * ROWS + across.padding());
        for (int y = 0; y < h; y += ROWS) {
            for (int row = 0; row < ROWS && y + row < h; row++) read(&lines[row * stride]);
            resize::rows(&lines[before], stride, across, S, &resized[y * pitch], pitch);
        }
        for (int y = 0; y < S; y++, out += S * CHANNELS)
            resize::columns(&resized[down.first[y] * pitch], pitch, down.of(y), down.count[y], S * CHANNELS, out);
    }

    template <class Read>
    void resample_columns_first(Read read, size_t stride, size_t before, uint8_t* out) {
        const int capacity = std::min(2 * down.taps, h);
        const size_t width = static_cast<size_t>(w) * CHANNELS, out_width = static_cast<size_t>(S) * CHANNELS;
        lines.resize(capacity * stride);
        mixed.resize(ROWS * width + across.padding());
        resized.resize(ROWS * pitch);
        int begin = 0, end = 0;  // the rows of the crop that `lines` holds
        for (int y = 0; y < S; y += ROWS) {
            const int count = std::min(ROWS, S - y);
            for (int row = 0; row < count; row++) {
                const int first = down.first[y + row], past = first + down.count[y + row];
                for (; end < past; end++) {
                    if (end - begin == capacity) {  // the rows before `first` are not needed anymore
                        std::memmove(lines.data(), &lines[(first - begin) * stride], (end - first) * stride);
                        begin = first;
                    }
                    read(&lines[(end - begin) * stride]);
                }
                resize::columns(&lines[(first - begin) * stride + before], stride, down.of(y + row), past - first,
                                static_cast<int>(width), &mixed[row * width]);
            }
            resize::rows(mixed.data(), width, across, S, resized.data(), pitch);
            for (int row = 0; row < count; row++, out += out_width) std::memcpy(out, &resized[row * pitch], out_width);
        }
    }

    void raw(const uint8_t* pixels, int width, uint8_t* out) {
        const size_t stride = static_cast<size_t>(w) * CHANNELS;
        const uint8_t* next = pixels + (static_cast<size_t>(top) * width + left) * CHANNELS;
        // Copied, because the file may end right after the last row of the last image.
        const auto read = [&](uint8_t* row) {
            std::memcpy(row, next, stride);
            next += static_cast<size_t>(width) * CHANNELS;
        };
        resample(read, stride, 0, out);
    }

    // False if the bytes are not a JPEG of this size, are damaged, or end before the crop does.
    bool jpeg(const uint8_t* bytes, size_t size, int height, int width, uint8_t* out) {
        failure.reset(bytes);
        if (setjmp(failure.return_point)) {
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
        info.scale_denom = static_cast<unsigned>(scale);
        jpeg_start_decompress(&info);
        width = static_cast<int>(info.output_width);
        // libjpeg-turbo widens the range of columns to whole blocks.  One more block is decoded on each side, because smooth
        // chroma upsampling reads neighboring pixels, which are missing at the edge of the decoded region.
        const int block = info.max_h_samp_factor * DCTSIZE / scale;
        const int from = left - block > 0 ? left - block : 0, to = left + w + block < width ? left + w + block : width;
        JDIMENSION start = from, columns = to - from;
        if (columns < static_cast<JDIMENSION>(width)) jpeg_crop_scanline(&info, &start, &columns);
        const bool fast = scan.install(&info, static_cast<int>(start) / block, static_cast<int>(start + columns - 1) / block);
        if (top > 0) jpeg_skip_scanlines(&info, top);
        const auto read = [this](uint8_t* row) { jpeg_read_scanlines(&info, &row, 1); };
        resample(read, static_cast<size_t>(columns) * CHANNELS, static_cast<size_t>(left - static_cast<int>(start)) * CHANNELS, out);
        bool complete = true;
        if (info.output_scanline == info.output_height) {  // what follows the image tells whether all of it was there
            if (fast)
                complete = scan.ends_well();
            else
                jpeg_finish_decompress(&info);
        }
        complete &= !failure.lost;
        jpeg_abort_decompress(&info);
        return complete;
    }
};

}  // namespace

// Decodes `count` images of the file at `file` into `out` (count, S, S, 3).  Returns -1, or the index in the batch of the
// first damaged image, or -2 if the memory is not enough.  `cubic` selects the bicubic filter, else bilinear.  `scaled`: boxes at least twice as large as the
// output are decoded at 1/2, 1/4 or 1/8 of their size by the inverse DCT, which is faster and less exact.
extern "C" int64_t vit_decode_windows(const uint8_t* file, int64_t count, const Image* images, int64_t S, int64_t scaled, int64_t cubic,
                                      uint8_t* out) {
    thread_local Worker worker;
    worker.filter = cubic ? &resize::BICUBIC : &resize::BILINEAR;
    try {
        for (int64_t i = 0; i < count; i++)
            if (!worker.decode(images[i], file + images[i].offset, static_cast<int>(S), scaled != 0, out + i * S * S * CHANNELS)) return i;
    } catch (const std::bad_alloc&) {
        jpeg_abort_decompress(&worker.info);
        return -2;
    }
    return -1;
}
