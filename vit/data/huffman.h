// Huffman decoder for baseline JPEGs, twice as fast as libjpeg-turbo's.  Huffman decoding is two thirds of the cost of an
// image.
//
// libjpeg calls its entropy decoder through a function pointer, once per MCU (minimum coded unit: the blocks that cover one
// square of the image).  This decoder replaces that function; libjpeg still does headers, inverse DCT and colors.  It is
// fast for three reasons.  Byte stuffing is removed in a first pass, so that 8 bytes are loaded at once without inspecting
// each.  A lookup in a table of 2,048 entries yields a whole coefficient, or two if their codes are short.  Values are
// computed without branches, since branches on noise are mispredicted half of the time.
// Section numbers refer to ITU T.81, https://www.w3.org/Graphics/JPEG/itu-t81.pdf

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "huffman_tables.h"
#include "jpeg_damage.h"
#include "jpeg_library.h"

namespace huffman {

constexpr int MAX_BLOCKS = 10;         // blocks in an MCU, at most
constexpr size_t CHUNK = 16384;        // bytes whose stuffing is removed at a time
// More than the longest MCU by 80 bytes: a coefficient has at most 31 bits.
constexpr size_t MCU_BYTES = MAX_BLOCKS * DCTSIZE2 * 4;

// Decodes the single scan of a baseline JPEG in place of libjpeg's entropy decoder.
class ScanDecoder {
    // The first members of libjpeg's entropy decoders, in every version of it (jpegint.h, which is not installed everywhere).
    struct Entropy {
        void (*start_pass)(j_decompress_ptr);
        boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW*);
    };
    struct Block { const HuffmanTable* dc; const PairTable* ac; const Pair* pairs; int32_t* last_dc; };

    j_decompress_ptr info_ = nullptr;
    const uint8_t *source_ = nullptr, *end_ = nullptr;  // bytes of the file that are not yet copied
    std::vector<uint8_t> bytes_;                        // the scan without byte stuffing
    size_t ready_ = 0;                                  // bytes in it; zeros follow them once `all_` is true
    bool all_ = false;                                  // the whole scan has been copied
    Bits bits_;
    Block blocks_[MAX_BLOCKS];  // tables and state of each block of an MCU
    int32_t last_dc_[MAX_COMPS_IN_SCAN];  // DC value of each component's previous block
    HuffmanTable dc_[NUM_HUFF_TBLS];
    PairTable ac_[NUM_HUFF_TBLS];
    int column_ = 0, from_ = 0, to_ = 0;  // columns of MCUs: the current one, the first and the last that are needed

    void fail() {  // does not return
        failed = true;
        info_->err->error_exit(reinterpret_cast<j_common_ptr>(info_));
    }

    // Bytes of the scan that are not read yet, and are in memory.
    size_t left_over() const { return ready_ - static_cast<size_t>((read_bits() + 7) / 8); }
    ptrdiff_t read_bits() const { return (bits_.next - bytes_.data()) * 8 - bits_.count; }

    // Copies the next bytes without stuffing, up to the marker that ends the scan or to the end of the file's bytes (F.1.2.3).
    void remove_stuffing() {
        for (const size_t enough = ready_ + CHUNK; !all_ && ready_ < enough;) {
            const size_t left = static_cast<size_t>(end_ - source_);
            const void* found = left ? std::memchr(source_, 0xFF, left) : nullptr;
            const size_t plain = found ? static_cast<size_t>(static_cast<const uint8_t*>(found) - source_) : left;
            if (plain) std::memcpy(&bytes_[ready_], source_, plain);
            ready_ += plain;
            source_ += plain;
            all_ = left - plain < 2 || source_[1] != 0;
            if (all_) break;
            bytes_[ready_++] = 0xFF;
            source_ += 2;
        }
        if (all_) std::memset(&bytes_[ready_], 0, MCU_BYTES);
    }

    // Decodes one MCU into zeroed blocks, or only skips it.
    template <bool KEEP> INLINE void read(JBLOCKROW* mcu) {
        Bits bits = bits_;  // in registers
        for (int i = 0; i < info_->blocks_in_MCU; i++) {
            const Block& block = blocks_[i];
            JCOEF* out = KEEP ? *mcu[i] : nullptr;
            bits.refill();
            const int size = block.dc->read(bits);
            if (size < 0) fail();
            // Unsigned, because sums of damaged values may overflow.
            const uint32_t dc = static_cast<uint32_t>(*block.last_dc) + static_cast<uint32_t>(bits.value(0, 63 - size));
            bits.skip(size);
            *block.last_dc = static_cast<int32_t>(dc);
            if (KEEP) out[0] = static_cast<JCOEF>(dc);
            int k = 1;
            while (k < DCTSIZE2) {
                bits.refill();
                const Pair& pair = block.pairs[bits.peek()];  // a reference: 8% faster than a copy
                if (__builtin_expect(pair.bits == 0, 0)) {  // a long code
                    const int symbol = block.ac->read(bits), value_bits = symbol & 15;
                    if (symbol < 0) fail();
                    if (is_end_of_block(symbol)) {
                        k = END;
                        break;
                    }
                    k += symbol >> 4;
                    if (KEEP && value_bits) out[ZIGZAG[k]] = static_cast<JCOEF>(bits.value(0, 63 - value_bits));
                    bits.skip(value_bits);
                    k++;
                    continue;
                }
                const JCOEF value = static_cast<JCOEF>(bits.value(pair.code, pair.unused));
                const int first = k + pair.first;
                if (first >= DCTSIZE2 - 1) {  // the block is full; the following bits belong to the next block
                    bits.skip(pair.code + 63 - pair.unused);
                    if (KEEP) out[DCTSIZE2 - 1] = value;
                    k = first + 1;
                    break;
                }
                bits.skip(pair.bits);
                if (KEEP) {
                    // The second one first: if the first symbol ends the block, both positions are the same.
                    out[ZIGZAG[k + pair.second]] = pair.value;
                    out[ZIGZAG[first]] = value;
                }
                k += pair.next;
            }
            if (k > DCTSIZE2 && k < END) fail();  // damage that libjpeg ignores
        }
        bits_ = bits;
    }

    static boolean decode_mcu(j_decompress_ptr info, JBLOCKROW* mcu) {
        ScanDecoder& scan = *static_cast<ScanDecoder*>(info->client_data);
        const size_t done = static_cast<size_t>(scan.bits_.next - scan.bytes_.data());
        if (!scan.all_ && scan.ready_ < done + MCU_BYTES) scan.remove_stuffing();
        if (mcu && scan.column_ >= scan.from_ && scan.column_ <= scan.to_)
            scan.read<true>(mcu);
        else
            scan.read<false>(mcu);
        if (++scan.column_ == static_cast<int>(info->MCUs_per_row)) scan.column_ = 0;
        if (scan.read_bits() > static_cast<ptrdiff_t>(scan.ready_) * 8) scan.fail();  // the data ends before the image does
        return TRUE;
    }

public:
    bool failed = false;  // whether it has found damage, since it was set

    // Installs this decoder for the MCUs of columns `from` to `to`; call it after jpeg_start_decompress.  Images other than
    // baseline JPEGs with a single scan and no restart markers are left to libjpeg.  Damage in the scan is an error here,
    // where libjpeg only warns.  Returns whether it was installed.
    bool install(j_decompress_ptr info, int from, int to) {
        const bool spectral = info->Ss == 0 && info->Se == DCTSIZE2 - 1 && info->Ah == 0 && info->Al == 0;
        if (info->progressive_mode || info->arith_code || info->restart_interval || !spectral || jpeg_has_multiple_scans(info)) return false;
        for (int c = 0; c < info->comps_in_scan; c++) {
            const jpeg_component_info& component = *info->cur_comp_info[c];
            const JHUFF_TBL *dc = info->dc_huff_tbl_ptrs[component.dc_tbl_no], *ac = info->ac_huff_tbl_ptrs[component.ac_tbl_no];
            if (!dc || !ac) return false;
            dc_[component.dc_tbl_no].set(*dc);  // libjpeg has validated them
            ac_[component.ac_tbl_no].set(*ac);
        }
        for (int i = 0; i < info->blocks_in_MCU; i++) {
            const int c = info->MCU_membership[i];
            const PairTable& ac = ac_[info->cur_comp_info[c]->ac_tbl_no];
            blocks_[i] = {&dc_[info->cur_comp_info[c]->dc_tbl_no], &ac, ac.pair, &last_dc_[c]};
        }
        std::memset(last_dc_, 0, sizeof last_dc_);
        info_ = info;
        source_ = info->src->next_input_byte;
        end_ = source_ + info->src->bytes_in_buffer;
        const size_t room = info->src->bytes_in_buffer + MCU_BYTES;
        if (bytes_.size() < room) bytes_.resize(room);
        ready_ = 0;
        all_ = false;
        bits_ = {};
        bits_.next = bytes_.data();
        column_ = 0;
        from_ = from;
        to_ = to;
        info->client_data = this;
        reinterpret_cast<Entropy*>(info->entropy)->decode_mcu = decode_mcu;
        return true;
    }

    // After the last MCU: whether nothing but the end-of-image marker follows.
    bool ends_cleanly() const { return all_ && left_over() == 0 && end_ - source_ >= 2 && source_[1] == 0xD9; }

    // After the last MCU: whether only harmless bytes follow.  Otherwise data of blocks were lost.
    bool ends_well() {
        while (!all_) remove_stuffing();
        const uint8_t* start = bytes_.data();
        return left_over() <= damage::FEW_BYTES + damage::READ_AHEAD || damage::is_padding(start, start + ready_, left_over(), 0);
    }
};

}  // namespace huffman
