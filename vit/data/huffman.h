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

#include <jpeglib.h>

#define INLINE inline __attribute__((always_inline))

namespace huffman {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the bit reader assumes a little-endian processor");

constexpr int LOOKUP_BITS = 11;        // bits that index the lookup tables
constexpr int MAX_BLOCKS = 10;         // blocks in an MCU, at most
constexpr uint8_t END = 2 * DCTSIZE2;  // a position past the end of every block: an end-of-block symbol was read
constexpr size_t CHUNK = 16384;        // bytes whose stuffing is removed at a time
// More than the longest MCU by 80 bytes: a coefficient has at most 31 bits.
constexpr size_t MCU_BYTES = MAX_BLOCKS * DCTSIZE2 * 4;

// Whether an AC symbol ends the block: it has no value bits and is not the symbol for sixteen zeros.
inline bool is_end_of_block(int symbol) { return (symbol & 15) == 0 && symbol != 0xF0; }

// Position of each coefficient in its block, in zigzag order.  Positions past the end, which damaged data can reach, map to
// the last coefficient.
constexpr uint8_t ZIGZAG[DCTSIZE2 + 32] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63};

// Bit reader.  The next bit is the highest bit of `word`, which holds at least 56 bits after a refill.  The refill is
// branch-free: variant 4 of https://fgiesen.wordpress.com/2018/02/20/reading-bits-in-far-too-many-ways-part-2/
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
    INLINE void skip(int bits) { word <<= bits; count -= bits; }
    INLINE unsigned peek() const { return static_cast<unsigned>(word >> (64 - LOOKUP_BITS)); }
    // The signed value encoded in the `63 - unused` bits that follow the first `skipped` bits.  A leading 0 marks a negative
    // value, stored as a complement (F.2.2.1).
    INLINE int value(int skipped, int unused) const {
        const uint64_t top = word << skipped;
        const int64_t sign = ~(static_cast<int64_t>(top) >> 63);
        return static_cast<int>((static_cast<int64_t>((top ^ static_cast<uint64_t>(sign)) >> 1 >> unused) ^ sign) - sign);
    }
};

// Huffman table: symbols indexed by the next LOOKUP_BITS bits.  A length of 0 marks codes that are longer than that.
struct HuffmanTable {
    struct Code { uint8_t length, symbol; };
    Code code[1 << LOOKUP_BITS];
    // For the codes of each length: one past the last code, left-aligned to 16 bits; index of the first symbol minus first code.
    int end[18], shift[17];
    JHUFF_TBL table{};

    // Builds the lookup table.  False if it was built from the same table before, as is usual: few encoders optimize theirs.
    bool set(const JHUFF_TBL& from) {
        if (!std::memcmp(table.bits, from.bits, sizeof from.bits) && !std::memcmp(table.huffval, from.huffval, sizeof from.huffval))
            return false;
        table = from;
        std::memset(code, 0, sizeof code);
        for (int length = 1, next = 0, k = 0; length <= 16; length++, next <<= 1) {
            shift[length] = k - next;
            for (int i = 0; i < from.bits[length]; i++, k++, next++)
                for (int low = 0; length <= LOOKUP_BITS && low < 1 << (LOOKUP_BITS - length); low++)
                    code[(next << (LOOKUP_BITS - length)) + low] = {static_cast<uint8_t>(length), from.huffval[k]};
            end[length] = next << (16 - length);
        }
        end[17] = 1 << 16;
        return true;
    }

    // Reads the next symbol; -1 if the bits are not a valid code.
    INLINE int read(Bits& bits) const {
        const Code found = code[bits.peek()];
        if (__builtin_expect(found.length != 0, 1)) {
            bits.skip(found.length);
            return found.symbol;
        }
        const int top = static_cast<int>(bits.word >> 48);
        int length = LOOKUP_BITS + 1;
        while (top >= end[length]) length++;
        if (length > 16) return -1;
        bits.skip(length);
        return table.huffval[((top >> (16 - length)) + shift[length]) & 255];
    }
};

// One or two coefficients, looked up by the next bits.  The first one's value is read from the bit stream, the second one's
// is stored here.
struct Pair {
    uint8_t bits;                 // length of both together; 0 marks a code longer than LOOKUP_BITS
    uint8_t code, unused;         // length of the first one's code; 63 minus the number of its value bits
    uint8_t first, second, next;  // positions relative to the current one: of the coefficients, and of the one after them
    int16_t value;                // of the second one
};

struct PairTable : HuffmanTable {
    Pair pair[1 << LOOKUP_BITS];

    void set(const JHUFF_TBL& from) {
        if (HuffmanTable::set(from))
            for (int i = 0; i < 1 << LOOKUP_BITS; i++) pair[i] = make_pair(i);
    }

    // End-of-block and zero-run symbols are treated as coefficients of value 0; what they overwrite is still 0.
    Pair make_pair(int index) const {
        const Code a = code[index];
        if (a.length == 0) return Pair{};
        const int size = a.symbol & 15, used = a.length + size, run = a.symbol >> 4;
        Pair pair{static_cast<uint8_t>(used), a.length, static_cast<uint8_t>(63 - size), 0, 0, END, 0};
        if (is_end_of_block(a.symbol)) return pair;
        pair.first = static_cast<uint8_t>(run);
        pair.second = pair.next = static_cast<uint8_t>(run + 1);
        if (used >= LOOKUP_BITS) return pair;
        const Code b = code[(index << used) & ((1 << LOOKUP_BITS) - 1)];
        const int both = used + b.length + (b.symbol & 15);
        if (b.length == 0 || both > LOOKUP_BITS) return pair;
        pair.bits = static_cast<uint8_t>(both);
        pair.next = END;
        if (is_end_of_block(b.symbol)) return pair;
        pair.second = static_cast<uint8_t>(run + 1 + (b.symbol >> 4));
        pair.next = static_cast<uint8_t>(pair.second + 1);
        Bits rest;
        rest.word = static_cast<uint64_t>(index) << (64 - LOOKUP_BITS);
        pair.value = static_cast<int16_t>(rest.value(used + b.length, 63 - (b.symbol & 15)));
        return pair;
    }
};

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

    void fail() { info_->err->error_exit(reinterpret_cast<j_common_ptr>(info_)); }  // does not return

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
        const ptrdiff_t read = (scan.bits_.next - scan.bytes_.data()) * 8 - scan.bits_.count;
        if (read > static_cast<ptrdiff_t>(scan.ready_) * 8) scan.fail();  // the data ends before the image does
        return TRUE;
    }

public:
    // Installs this decoder for the MCUs of columns `from` to `to`; call it after jpeg_start_decompress.  Images other than
    // baseline JPEGs with a single scan and no restart markers are left to libjpeg.  Damage in the scan is an error here,
    // where libjpeg only warns.
    void install(j_decompress_ptr info, int from, int to) {
        const bool spectral = info->Ss == 0 && info->Se == DCTSIZE2 - 1 && info->Ah == 0 && info->Al == 0;
        if (info->progressive_mode || info->arith_code || info->restart_interval || !spectral || jpeg_has_multiple_scans(info)) return;
        for (int c = 0; c < info->comps_in_scan; c++) {
            const jpeg_component_info& component = *info->cur_comp_info[c];
            const JHUFF_TBL *dc = info->dc_huff_tbl_ptrs[component.dc_tbl_no], *ac = info->ac_huff_tbl_ptrs[component.ac_tbl_no];
            if (!dc || !ac) return;
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
    }
};

}  // namespace huffman
