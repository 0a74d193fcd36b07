// Decodes a whole JPEG of any kind to Pillow's pixels, and tells whether any of them are lost.
//
// Called through ctypes, without Python's global lock, from several threads at once.

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "huffman.h"
#include "jpeg_damage.h"
#include "jpeg_library.h"

namespace {

enum Result { CLEAN = 0, HARMLESS = 1, LOST = 2, UNREADABLE = 3 };

struct Worker {
    jpeg_decompress_struct info;
    damage::Failure failure;
    huffman::ScanDecoder scan;
    std::vector<uint8_t> line;

    Worker() {
        failure.install(*reinterpret_cast<jpeg_common_struct*>(&info));
        jpeg_create_decompress(&info);
    }
    ~Worker() { jpeg_destroy_decompress(&info); }

    // Decodes into `out` (height, width, 3), or only checks the file if `out` is null.  `fast`: with our Huffman decoder,
    // which fails where libjpeg warns.
    Result decode(const uint8_t* bytes, size_t size, int height, int width, bool fast, uint8_t* out) {
        failure.reset(bytes);
        scan.failed = false;
        if (setjmp(failure.return_point)) {
            jpeg_abort_decompress(&info);
            return UNREADABLE;
        }
        jpeg_mem_src(&info, bytes, size);
        jpeg_read_header(&info, TRUE);
        if (static_cast<int>(info.image_width) != width || static_cast<int>(info.image_height) != height) {
            std::strcpy(failure.message, "its size differs from its record");
            jpeg_abort_decompress(&info);
            return UNREADABLE;
        }
        if (out) info.out_color_space = JCS_RGB;
        info.dct_method = JDCT_ISLOW;
        const bool several_scans = jpeg_has_multiple_scans(&info);
        info.buffered_image = several_scans;  // to see each scan
        jpeg_start_decompress(&info);
        if (several_scans) read_scans();
        if (fast && !scan.install(&info, 0, static_cast<int>(info.MCUs_per_row) - 1)) fast = false;
        line.resize(static_cast<size_t>(info.output_width) * static_cast<size_t>(info.output_components));
        while (info.output_scanline < info.output_height) {
            JSAMPROW row = out ? out + static_cast<size_t>(info.output_scanline) * line.size() : line.data();
            jpeg_read_scanlines(&info, &row, 1);
        }
        if (fast) {
            if (!scan.ends_cleanly()) failure.harmless = true;  // libjpeg will tell
            jpeg_abort_decompress(&info);
        } else {
            if (several_scans) jpeg_finish_output(&info);
            jpeg_finish_decompress(&info);  // reads up to the end-of-image marker
        }
        return failure.lost ? LOST : failure.harmless ? HARMLESS : CLEAN;
    }

    // Reads all scans of an image that has several.  Each component must have one with its DC coefficients, and if the file
    // has no end, all bits of all coefficients must be there.
    void read_scans() {
        unsigned seen = 0;
        for (int status = JPEG_REACHED_SOS; status != JPEG_REACHED_EOI; status = jpeg_consume_input(&info))
            if (status == JPEG_REACHED_SOS && info.Ss == 0)
                for (int i = 0; i < info.comps_in_scan; i++) seen |= 1u << info.cur_comp_info[i]->component_index;
        bool complete = seen == (1u << info.num_components) - 1;
        if (failure.ended_early && info.progressive_mode)
            for (int i = 0; i < info.num_components; i++)
                for (const int missing : info.coef_bits[i]) complete &= missing == 0;
        if (!complete && !failure.lost) {
            failure.lost = true;
            std::strcpy(failure.message, "scans are missing");
        }
        jpeg_start_output(&info, info.input_scan_number);
    }
};

}  // namespace

// Decodes the `size` bytes of a JPEG of `height` x `width` pixels into `out` (height, width, 3), or only checks it if `out`
// is null.  Returns 0 if it has no defect, 1 if its defects are harmless, 2 if pixels are lost, 3 if it cannot be decoded;
// then `message` (JMSG_LENGTH_MAX) says why.
extern "C" int64_t vit_decode_jpeg(const uint8_t* bytes, int64_t size, int64_t height, int64_t width, uint8_t* out, char* message) {
    thread_local Worker worker;
    const auto decode = [&](bool fast) {
        return worker.decode(bytes, static_cast<size_t>(size), static_cast<int>(height), static_cast<int>(width), fast, out);
    };
    Result result = decode(true);
    if (result != CLEAN) {
        const bool is_damaged = worker.scan.failed;  // even if libjpeg ignores it
        result = decode(false);
        if (is_damaged && result < LOST) {
            result = LOST;
            std::strcpy(worker.failure.message, "Corrupt JPEG data: a block has too many coefficients");
        }
    }
    std::memcpy(message, worker.failure.message, sizeof worker.failure.message);
    return result;
}
