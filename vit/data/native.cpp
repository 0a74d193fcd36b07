// Crops of images, decoded and resized: the pixels of Pillow at a third of its cost.
//
// A JPEG is decoded only where the crop lies: libjpeg-turbo skips the rows above and below it and the columns beside it.
// All bytes up to the crop's end have to be read nevertheless, which is most of the cost; `huffman.h` does that.  The
// resize is Pillow's (`resize.h`).  Hence `Image.crop(box).resize(size, filter)`, and torchvision's RandomResizedCrop,
// Resize and CenterCrop on PIL images, give these pixels exactly, up to Pillow 12.  Pillow 13 takes the columns of some
// tall crops first, and then differs by one level at most.
//
// Called through ctypes, without Python's lock, by several threads at once.

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include <jpeglib.h>

#include "huffman.h"
#include "resize.h"

namespace {

using resize::CHANNELS;
using resize::ROWS;

constexpr int JPEG = 0;  // FFCV's image modes; 1 is raw

// What is wanted of one image: a box of it is resized to `rows` x `columns`, of which S x S from (down, right) on are taken.
struct Image {
    int64_t mode, height, width, offset, size;
    int64_t top, left, box_height, box_width;
    int64_t rows, columns, down, right;
};

struct Failure {
    jpeg_error_mgr manager;  // first, so that libjpeg's pointer is a pointer to this
    std::jmp_buf back;
};

void fail(j_common_ptr info) { std::longjmp(reinterpret_cast<Failure*>(info->err)->back, 1); }
void be_quiet(j_common_ptr) {}

// What one thread works with; it is freed when the thread ends.
struct Worker {
    resize::Weights across, down;
    std::vector<uint8_t> lines;    // ROWS decoded rows
    std::vector<uint8_t> resized;  // all rows of the crop, S wide
    int top = 0, left = 0, h = 0, w = 0;  // the pixels that are needed, scaled
    int scale = 1;                        // pixels of the image on a side of a decoded one
    const resize::Filter* filter = &resize::BILINEAR;
    int S = 0;
    size_t pitch = 0;  // bytes from a resized row to the next
    jpeg_decompress_struct info;
    Failure failure;
    huffman::Scan scan;

    Worker() {
        info.err = jpeg_std_error(&failure.manager);
        failure.manager.error_exit = fail;
        failure.manager.output_message = be_quiet;
        jpeg_create_decompress(&info);
    }
    ~Worker() { jpeg_destroy_decompress(&info); }

    // False if the image is damaged.
    bool decode(const Image& image, const uint8_t* bytes, int side, bool scaled, uint8_t* out) {
        S = side;
        scale = 1;
        if (scaled && image.mode == JPEG)
            while (scale < DCTSIZE && image.box_height >= 2 * scale * image.rows && image.box_width >= 2 * scale * image.columns) scale *= 2;
        top = locate(down, image.top, image.box_height, image.rows, image.down);
        left = locate(across, image.left, image.box_width, image.columns, image.right);
        across.halve();
        h = down.size;
        w = across.size;
        pitch = static_cast<size_t>(S) * CHANNELS + 1;
        resized.resize((h + ROWS) * pitch);
        if (image.mode != JPEG)
            raw(bytes, static_cast<int>(image.width));
        else if (!jpeg(bytes, static_cast<size_t>(image.size), static_cast<int>(image.height), static_cast<int>(image.width)))
            return false;
        for (int y = 0; y < S; y++, out += S * CHANNELS)
            resize::columns(&resized[down.first[y] * pitch], pitch, &down.weight[static_cast<size_t>(y) * down.taps], down.count[y],
                            S * CHANNELS, out);
        return true;
    }

    // Weights along one axis; returns the first pixel that they need.  A box may begin and end within a scaled pixel.
    int locate(resize::Weights& weights, int64_t start, int64_t length, int64_t resized_to, int64_t skip) const {
        const int64_t low = start / scale, high = (start + length + scale - 1) / scale;
        weights.set(*filter, static_cast<double>(start) / scale - static_cast<double>(low), static_cast<double>(length) / scale,
                    static_cast<int>(high - low), static_cast<int>(resized_to), static_cast<int>(skip), S);
        return static_cast<int>(low) + weights.from;
    }

    // Rows of the crop, `stride` bytes apart; the y-th is the first of them.
    void take(const uint8_t* rows, size_t stride, int y) { resize::rows(rows, stride, across, S, &resized[y * pitch], pitch); }

    void raw(const uint8_t* pixels, int width) {
        const size_t stride = static_cast<size_t>(w) * CHANNELS;
        lines.resize(stride * ROWS + across.spare());
        for (int y = 0; y < h; y += ROWS) {
            // Copied, because behind the last row of the last image the file may end.
            for (int row = 0; row < ROWS && y + row < h; row++)
                std::memcpy(&lines[row * stride], pixels + (static_cast<size_t>(top + y + row) * width + left) * CHANNELS, stride);
            take(lines.data(), stride, y);
        }
    }

    // False if the bytes are no JPEG of this size, or end before the crop does.
    bool jpeg(const uint8_t* bytes, size_t size, int height, int width) {
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
        info.scale_denom = static_cast<unsigned>(scale);
        jpeg_start_decompress(&info);
        width = static_cast<int>(info.output_width);
        // libjpeg-turbo widens the columns to whole blocks.  A block more on either side, because smooth upsampling of
        // the colors looks at the neighbors, and the edge of what is decoded has none.
        const int block = info.max_h_samp_factor * DCTSIZE / scale;
        const int from = left - block > 0 ? left - block : 0, to = left + w + block < width ? left + w + block : width;
        JDIMENSION start = from, columns = to - from;
        if (columns < static_cast<JDIMENSION>(width)) jpeg_crop_scanline(&info, &start, &columns);
        scan.take_over(&info, static_cast<int>(start) / block, static_cast<int>(start + columns - 1) / block);
        const size_t stride = static_cast<size_t>(columns) * CHANNELS;
        lines.resize(stride * ROWS + across.spare());
        if (top > 0) jpeg_skip_scanlines(&info, top);
        for (int y = 0; y < h; y += ROWS) {
            for (int row = 0; row < ROWS && y + row < h; row++) {
                JSAMPROW line = &lines[row * stride];
                jpeg_read_scanlines(&info, &line, 1);
            }
            take(&lines[static_cast<size_t>(left - static_cast<int>(start)) * CHANNELS], stride, y);
        }
        const bool whole = failure.manager.num_warnings == 0;  // libjpeg fills what is missing with gray, and warns
        jpeg_abort_decompress(&info);
        return whole;
    }
};

}  // namespace

// Fills `out` (count, S, S, 3) from a mapped file.  Returns -1, or the place in the batch of the first image that is damaged.
// `cubic`: by the bicubic filter, not the bilinear one.  `scaled`: where a box is twice as large as wanted, or more, the inverse DCT yields fewer pixels; faster and less exact.
extern "C" int64_t vit_decode_windows(const uint8_t* file, int64_t count, const Image* images, int64_t S, int64_t scaled, int64_t cubic,
                                      uint8_t* out) {
    thread_local Worker worker;
    worker.filter = cubic ? &resize::BICUBIC : &resize::BILINEAR;
    for (int64_t i = 0; i < count; i++)
        if (!worker.decode(images[i], file + images[i].offset, static_cast<int>(S), scaled != 0, out + i * S * S * CHANNELS)) return i;
    return -1;
}
