// Which of libjpeg's warnings mean that pixels of a JPEG are lost, and which are harmless.
//
// libjpeg fills in missing data with gray and only warns.  It also warns about defects that change no pixel.

#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "jpeg_library.h"

namespace damage {

// After the data of a scan, some cameras write a few more bytes, or pad the file with one value.  Many other bytes are data of
// blocks: the decoder has taken damaged data for more blocks than they held.
constexpr size_t FEW_BYTES = 4;
constexpr size_t READ_AHEAD = 8;  // libjpeg may have read so many bytes more than it decoded

// Whether the `count` bytes before `end` are padding, which begins at most `ahead` bytes before them.  A damaged range of one
// value begins long before the end of the data.
inline bool is_padding(const uint8_t* start, const uint8_t* end, size_t count, size_t ahead) {
    const uint8_t* at = end;
    while (at > start && at[-1] == end[-1]) at--;
    const size_t equal = static_cast<size_t>(end - at);
    return equal >= count && equal <= count + ahead;
}

// libjpeg's error manager: errors return to `return_point`, and warnings are classified.
struct Failure {
    jpeg_error_mgr manager;  // the first member, so that libjpeg's pointer to it also points to this struct
    std::jmp_buf return_point;
    const uint8_t* start = nullptr;    // of the file
    bool lost = false, harmless = false;  // whether there was a warning of each kind
    bool ended_early = false;             // the file has no end-of-image marker
    char message[JMSG_LENGTH_MAX];        // the first warning of the worse kind, or the error

    void install(jpeg_common_struct& info) {
        info.err = jpeg_std_error(&manager);
        manager.error_exit = fail;
        manager.emit_message = classify;
    }

    // To be called before each file.
    void reset(const uint8_t* bytes) {
        start = bytes;
        lost = harmless = ended_early = false;
        message[0] = 0;
    }

    static Failure& of(j_common_ptr info) { return *reinterpret_cast<Failure*>(info->err); }

    static void fail(j_common_ptr info) {
        Failure& failure = of(info);
        failure.manager.format_message(info, failure.message);
        std::longjmp(failure.return_point, 1);
    }

    static void classify(j_common_ptr info, int level) {
        if (level >= 0) return;  // a trace
        Failure& failure = of(info);
        failure.manager.num_warnings++;
        const bool is_lost = !failure.is_harmless(reinterpret_cast<j_decompress_ptr>(info));
        if (is_lost ? !failure.lost : !failure.lost && !failure.harmless) failure.manager.format_message(info, failure.message);
        (is_lost ? failure.lost : failure.harmless) = true;
    }

    bool is_harmless(j_decompress_ptr info) {
        switch (manager.msg_code) {
        case JWRN_JFIF_MAJOR:      // a version of JFIF that libjpeg does not know
        case JWRN_ADOBE_XFORM:     // a color transform that it does not know
        case JWRN_NOT_SEQUENTIAL:  // baseline files with zeros in fields that have only one possible value
            return true;
        case JWRN_JPEG_EOF:  // followed by JWRN_HIT_MARKER if the scan is not complete, but not with arithmetic coding
            ended_early = true;
            return !info->arith_code;
        case JWRN_EXTRANEOUS_DATA: {  // bytes before a marker
            const size_t count = static_cast<size_t>(manager.msg_parm.i[0]);
            const int marker = manager.msg_parm.i[1];
            const bool is_restart = marker >= 0xD0 && marker <= 0xD7;  // no camera pads there
            return info->input_scan_number == 0 || count <= FEW_BYTES ||
                   (!is_restart && is_padding(start, info->src->next_input_byte, count, READ_AHEAD));
        }
        default:
            return false;
        }
    }
};

}  // namespace damage
