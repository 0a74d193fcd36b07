// Huffman decoding of baseline JPEGs, twice as fast as libjpeg-turbo's, which is two thirds of the cost of an image.
//
// libjpeg calls its entropy decoder through a pointer, once for each MCU (the blocks that cover one square of the image);
// this one takes its place and the rest of libjpeg stays: headers, inverse DCT, colors.  Three things make it fast.
// The bytes are copied without their stuffing first, so that 8 of them are loaded at once and no byte is looked at.
// A table of 2,048 entries holds a whole coefficient, and the next one too where its bits are few.  And values are
// computed without a branch, since a branch on noise is guessed wrongly every other time.
// Sections are those of ITU T.81, https://www.w3.org/Graphics/JPEG/itu-t81.pdf

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include <jpeglib.h>

#define INLINE inline __attribute__((always_inline))

namespace huffman {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "bytes are swapped as they are loaded");

constexpr int LOOK = 11;                             // bits that are looked up at once
constexpr int BLOCKS = 10;                           // in an MCU, at most
constexpr size_t MCU_BYTES = BLOCKS * DCTSIZE2 * 4;  // an MCU is 80 bytes shorter: a coefficient has 31 bits at most
constexpr uint8_t ENDED = 2 * DCTSIZE2;              // past all places of a block: a symbol has ended it
constexpr size_t CHUNK = 16384;                      // bytes whose stuffing is removed at a time

// Of a block: a symbol without a value, but for that of sixteen zeros.
inline bool is_end(int symbol) { return (symbol & 15) == 0 && symbol != 0xF0; }

// Places of coefficients in their block, from low frequencies to high; what damaged bytes may reach behind it is the last.
constexpr uint8_t ZIGZAG[DCTSIZE2 + 32] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63};

// A stream of bits, the next one on top of `word`.  At least 56 are there after a refill, which has no branch: variant 4 of
// https://fgiesen.wordpress.com/2018/02/20/reading-bits-in-far-too-many-ways-part-2/
struct Bits {
    const uint8_t* next = nullptr;
    uint64_t word = 0;
    int count = 0;

    INLINE void refill() {
        uint64_t bytes;
        std::memcpy(&bytes, next, sizeof bytes);
        word |= __builtin_bswap64(bytes) >> count;
        next += static_cast<unsigned>(63 - count) >> 3;
        count |= 56;
    }
    INLINE void drop(int bits) { word <<= bits; count -= bits; }
    INLINE unsigned look() const { return static_cast<unsigned>(word >> (64 - LOOK)); }
    // The value of `63 - unused` bits behind the first `skipped`: with a leading 0 it is negative, a complement (F.2.2.1).
    INLINE int value(int skipped, int unused) const {
        const uint64_t top = word << skipped;
        const int64_t sign = ~(static_cast<int64_t>(top) >> 63);
        return static_cast<int>((static_cast<int64_t>((top ^ static_cast<uint64_t>(sign)) >> 1 >> unused) ^ sign) - sign);
    }
};

// Symbols by the bits that begin with their code; a length of 0 stands for longer codes.
struct Codes {
    struct Code { uint8_t length, symbol; };
    Code code[1 << LOOK];
    int end[18], shift[17];  // of the codes of each length: one past the last, as 16 bits; the first symbol less the first code
    JHUFF_TBL table{};

    // False if it is made of this table already, as it mostly is: few encoders make their own.
    bool set(const JHUFF_TBL& from) {
        if (!std::memcmp(table.bits, from.bits, sizeof from.bits) && !std::memcmp(table.huffval, from.huffval, sizeof from.huffval))
            return false;
        table = from;
        std::memset(code, 0, sizeof code);
        for (int length = 1, next = 0, k = 0; length <= 16; length++, next <<= 1) {
            shift[length] = k - next;
            for (int i = 0; i < from.bits[length]; i++, k++, next++)
                for (int low = 0; length <= LOOK && low < 1 << (LOOK - length); low++)
                    code[(next << (LOOK - length)) + low] = {static_cast<uint8_t>(length), from.huffval[k]};
            end[length] = next << (16 - length);
        }
        end[17] = 1 << 16;
        return true;
    }

    // The next symbol, or -1 for bits that are no code.
    INLINE int read(Bits& bits) const {
        const Code found = code[bits.look()];
        if (__builtin_expect(found.length != 0, 1)) {
            bits.drop(found.length);
            return found.symbol;
        }
        const int top = static_cast<int>(bits.word >> 48);
        int length = LOOK + 1;
        while (top >= end[length]) length++;
        if (length > 16) return -1;
        bits.drop(length);
        return table.huffval[((top >> (16 - length)) + shift[length]) & 255];
    }
};

// One coefficient, or two, by the bits they begin with.  The first one's value is among the bits, the second one's here.
struct Pair {
    uint8_t bits;          // of all; 0 stands for a longer code
    uint8_t code, unused;  // bits of the first one's code; 63 less those of its value
    uint8_t first, second, next;  // places after the current one: theirs, and where to go on
    int16_t value;
};

struct Pairs : Codes {
    Pair pair[1 << LOOK];

    void set(const JHUFF_TBL& from) {
        if (Codes::set(from))
            for (int i = 0; i < 1 << LOOK; i++) pair[i] = of(i);
    }

    // The end of a block, and zeros, are coefficients of value 0: what they overwrite is 0 still.
    Pair of(int look) const {
        const Code a = code[look];
        if (a.length == 0) return Pair{};
        const int size = a.symbol & 15, used = a.length + size, run = a.symbol >> 4;
        Pair pair{static_cast<uint8_t>(used), a.length, static_cast<uint8_t>(63 - size), 0, 0, ENDED, 0};
        if (is_end(a.symbol)) return pair;
        pair.first = static_cast<uint8_t>(run);
        pair.second = pair.next = static_cast<uint8_t>(run + 1);
        if (used >= LOOK) return pair;
        const Code b = code[(look << used) & ((1 << LOOK) - 1)];
        const int both = used + b.length + (b.symbol & 15);
        if (b.length == 0 || both > LOOK) return pair;
        pair.bits = static_cast<uint8_t>(both);
        pair.next = ENDED;
        if (is_end(b.symbol)) return pair;
        pair.second = static_cast<uint8_t>(run + 1 + (b.symbol >> 4));
        pair.next = static_cast<uint8_t>(pair.second + 1);
        Bits rest;
        rest.word = static_cast<uint64_t>(look) << (64 - LOOK);
        pair.value = static_cast<int16_t>(rest.value(used + b.length, 63 - (b.symbol & 15)));
        return pair;
    }
};

// Decodes the one scan of a baseline JPEG in libjpeg's place.
class Scan {
    // How libjpeg's entropy decoders begin, in every version of it (jpegint.h, which is not installed everywhere).
    struct Entropy {
        void (*start_pass)(j_decompress_ptr);
        boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW*);
    };
    struct Block { const Codes* dc; const Pairs* ac; const Pair* pairs; int32_t* last; };

    j_decompress_ptr info_ = nullptr;
    const uint8_t *source_ = nullptr, *end_ = nullptr;  // bytes as they are in the file
    std::vector<uint8_t> bytes_;                        // without their stuffing
    size_t ready_ = 0;                                  // bytes of it; behind them are zeros once `all_` are there
    bool all_ = false;
    Bits bits_;
    Block blocks_[BLOCKS];  // of an MCU
    int32_t last_[MAX_COMPS_IN_SCAN];
    Codes dc_[NUM_HUFF_TBLS];
    Pairs ac_[NUM_HUFF_TBLS];
    int column_ = 0, from_ = 0, to_ = 0;  // MCUs

    void fail() { info_->err->error_exit(reinterpret_cast<j_common_ptr>(info_)); }  // does not come back

    // Up to the marker that ends the scan, or to the end of the bytes (F.1.2.3).
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

    // One MCU into blocks of zeros, or passed over.
    template <bool KEEP> INLINE void read(JBLOCKROW* mcu) {
        Bits bits = bits_;  // in registers
        for (int i = 0; i < info_->blocks_in_MCU; i++) {
            const Block& block = blocks_[i];
            JCOEF* out = KEEP ? *mcu[i] : nullptr;
            bits.refill();
            const int size = block.dc->read(bits);
            if (size < 0) fail();
            // Unsigned, because damaged bytes may add up to anything.
            const uint32_t level = static_cast<uint32_t>(*block.last) + static_cast<uint32_t>(bits.value(0, 63 - size));
            bits.drop(size);
            *block.last = static_cast<int32_t>(level);
            if (KEEP) out[0] = static_cast<JCOEF>(level);
            int k = 1;
            while (k < DCTSIZE2) {
                bits.refill();
                const Pair& pair = block.pairs[bits.look()];  // a reference: 8% faster than a copy
                if (__builtin_expect(pair.bits == 0, 0)) {  // a long code
                    const int symbol = block.ac->read(bits), value_bits = symbol & 15;
                    if (symbol < 0) fail();
                    if (is_end(symbol)) {
                        k = ENDED;
                        break;
                    }
                    k += symbol >> 4;
                    if (KEEP && value_bits) out[ZIGZAG[k]] = static_cast<JCOEF>(bits.value(0, 63 - value_bits));
                    bits.drop(value_bits);
                    k++;
                    continue;
                }
                const JCOEF value = static_cast<JCOEF>(bits.value(pair.code, pair.unused));
                const int first = k + pair.first;
                if (first >= DCTSIZE2 - 1) {  // the block is full: what follows the first one is the next block's
                    bits.drop(pair.code + 63 - pair.unused);
                    if (KEEP) out[DCTSIZE2 - 1] = value;
                    k = first + 1;
                    break;
                }
                bits.drop(pair.bits);
                if (KEEP) {
                    out[ZIGZAG[k + pair.second]] = pair.value;  // before the first: it may be an end, in the first one's place
                    out[ZIGZAG[first]] = value;
                }
                k += pair.next;
            }
            if (k > DCTSIZE2 && k < ENDED) fail();  // damage that libjpeg passes over
        }
        bits_ = bits;
    }

    static boolean decode_mcu(j_decompress_ptr info, JBLOCKROW* mcu) {
        Scan& scan = *static_cast<Scan*>(info->client_data);
        const size_t done = static_cast<size_t>(scan.bits_.next - scan.bytes_.data());
        if (!scan.all_ && scan.ready_ < done + MCU_BYTES) scan.remove_stuffing();
        if (mcu && scan.column_ >= scan.from_ && scan.column_ <= scan.to_)
            scan.read<true>(mcu);
        else
            scan.read<false>(mcu);
        if (++scan.column_ == static_cast<int>(info->MCUs_per_row)) scan.column_ = 0;
        const ptrdiff_t read = (scan.bits_.next - scan.bytes_.data()) * 8 - scan.bits_.count;
        if (read > static_cast<ptrdiff_t>(scan.ready_) * 8) scan.fail();  // it ends before the image does
        return TRUE;
    }

public:
    // To be called after jpeg_start_decompress, for the MCUs of columns `from` to `to`.  Anything but a baseline JPEG in one
    // scan without restart markers is left to libjpeg.  Then a damaged scan is an error, where libjpeg only warns.
    void take_over(j_decompress_ptr info, int from, int to) {
        const bool spectral = info->Ss == 0 && info->Se == DCTSIZE2 - 1 && info->Ah == 0 && info->Al == 0;
        if (info->progressive_mode || info->arith_code || info->restart_interval || !spectral || jpeg_has_multiple_scans(info)) return;
        for (int c = 0; c < info->comps_in_scan; c++) {
            const jpeg_component_info& component = *info->cur_comp_info[c];
            const JHUFF_TBL *dc = info->dc_huff_tbl_ptrs[component.dc_tbl_no], *ac = info->ac_huff_tbl_ptrs[component.ac_tbl_no];
            if (!dc || !ac) return;
            dc_[component.dc_tbl_no].set(*dc);  // libjpeg has checked them
            ac_[component.ac_tbl_no].set(*ac);
        }
        for (int i = 0; i < info->blocks_in_MCU; i++) {
            const int c = info->MCU_membership[i];
            const Pairs& ac = ac_[info->cur_comp_info[c]->ac_tbl_no];
            blocks_[i] = {&dc_[info->cur_comp_info[c]->dc_tbl_no], &ac, ac.pair, &last_[c]};
        }
        std::memset(last_, 0, sizeof last_);
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
    }
};

}  // namespace huffman
