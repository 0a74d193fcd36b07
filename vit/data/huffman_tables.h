// Lookup tables of the Huffman decoder for JPEGs (`huffman.h`), and its bit reader.
// Section numbers refer to ITU T.81, https://www.w3.org/Graphics/JPEG/itu-t81.pdf

#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "jpeg_library.h"

#define INLINE inline __attribute__((always_inline))

namespace huffman {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the bit reader assumes a little-endian processor");

constexpr int LOOKUP_BITS = 11;        // bits that index the lookup tables
constexpr uint8_t END = 2 * DCTSIZE2;  // a position past the end of every block: an end-of-block symbol was read

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

}  // namespace huffman
