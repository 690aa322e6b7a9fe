// Products of rows and packed weights: the inner loops of packed_linear.cpp.
//
// Both sides are words of 4 bytes along k: one float32, two bfloat16 or four int8. Packed weights are
// blocks of 16 outputs; a block is [word][output], so that a tile of 16 words is 1 KB in one piece.
// Whatever the number of rows, a sum is made of the same numbers in the same order.

#pragma once

#include "lanes.h"
#include "matrix_unit.h"

constexpr int OUTPUTS = 16;                 // of a block
constexpr int TILE_WORDS = 16;              // of a tile
constexpr int TILE_BYTES = 4 * TILE_WORDS * OUTPUTS;
constexpr int MOST_ROWS = 32;               // of one product
constexpr int PARTS = OUTPUTS / LANES;      // vectors that hold a block's sums
constexpr int AHEAD_BYTES = 4096;           // weights the processor is told of in advance

// Which tile of sums: of the first or second 16 rows, of the first or second block. The numbers of
// tiles are part of an instruction, so they are chosen by type.
struct Sum00 {};
struct Sum01 {};
struct Sum10 {};
struct Sum11 {};

// What the words are made of. `add` multiplies a word of a row by LANES words of weights.
struct Float32Words {
    typedef float Sum;
    typedef Lanes Sums;
    static void add(Sums& sums, uint32_t word, const char* weights) {
        sums += load(reinterpret_cast<const float*>(weights)) * bit_cast<float>(word);
    }
};

struct BFloat16Words {
    typedef float Sum;
    typedef Lanes Sums;
    static void add(Sums& sums, uint32_t word, const char* weights) {
#if defined(__AVX512BF16__)
        sums = (Lanes)_mm512_dpbf16_ps((__m512)sums, (__m512bh)_mm512_set1_epi32(int(word)),
                                       load_raw<__m512bh>(weights));
#else
        const Words pairs = load_raw<Words>(weights);
        sums += number_of<bfloat16, 0>(pairs) * bit_cast<float>(word << 16);
        sums += number_of<bfloat16, 1>(pairs) * bit_cast<float>(word & 0xffff0000u);
#endif
    }
#if HAS_MATRIX_UNIT
    static void add_tile(Sum00) { _tile_dpbf16ps(0, 4, 6); }
    static void add_tile(Sum01) { _tile_dpbf16ps(1, 4, 7); }
    static void add_tile(Sum10) { _tile_dpbf16ps(2, 5, 6); }
    static void add_tile(Sum11) { _tile_dpbf16ps(3, 5, 7); }
#endif
};

struct Int8Words {
    typedef int32_t Sum;
    typedef Words Sums;
    static void add(Sums& sums, uint32_t word, const char* weights) {
        const Words fours = load_raw<Words>(weights), row = Words{} + int(word);
#if defined(__AVX512VNNI__)
        // The instruction wants its left side without sign: |row|, and row's sign on the weights.
        const __m512i left = (__m512i)row, right = (__m512i)fours;
        const __mmask64 negative = _mm512_movepi8_mask(left);
        sums = (Words)_mm512_dpbusd_epi32(
            (__m512i)sums, _mm512_abs_epi8(left),
            _mm512_mask_sub_epi8(right, negative, _mm512_setzero_si512(), right));
#else
        sums += ((row << 24) >> 24) * ((fours << 24) >> 24);
        sums += ((row << 16) >> 24) * ((fours << 16) >> 24);
        sums += ((row << 8) >> 24) * ((fours << 8) >> 24);
        sums += (row >> 24) * (fours >> 24);
#endif
    }
#if HAS_MATRIX_UNIT
    static void add_tile(Sum00) { _tile_dpbssd(0, 4, 6); }
    static void add_tile(Sum01) { _tile_dpbssd(1, 4, 7); }
    static void add_tile(Sum10) { _tile_dpbssd(2, 5, 6); }
    static void add_tile(Sum11) { _tile_dpbssd(3, 5, 7); }
#endif
};

// Sums of up to 32 rows and the two blocks of 16 outputs of a pair.
template <typename Number>
struct PairSums {
    alignas(64) Number of[2][MOST_ROWS][OUTPUTS];
};

template <typename Number, int ROWS>
inline void multiply_rows_of_pair(const char* rows, size_t stride, const char* weights, int num_tiles,
                                  int first, PairSums<typename Number::Sum>& sums) {
    const size_t block_bytes = size_t(num_tiles) * TILE_BYTES;
    typename Number::Sums all[ROWS][2][PARTS] = {};
    for (int word = 0; word < num_tiles * TILE_WORDS; ++word) {
        const char* at = weights + size_t(word) * 4 * OUTPUTS;
        __builtin_prefetch(at + AHEAD_BYTES);
        __builtin_prefetch(at + block_bytes + AHEAD_BYTES);
        for (int row = 0; row < ROWS; ++row) {
            uint32_t left;
            std::memcpy(&left, rows + row * stride + 4 * word, 4);
            for (int block = 0; block < 2; ++block)
                for (int part = 0; part < PARTS; ++part)
                    Number::add(all[row][block][part], left,
                                at + block * block_bytes + part * 4 * LANES);
        }
    }
    for (int row = 0; row < ROWS; ++row)
        for (int block = 0; block < 2; ++block)
            std::memcpy(sums.of[block][first + row], all[row][block], 4 * OUTPUTS);
}

// Multiplies `count` rows, at most MOST_ROWS, by the pair of blocks at `weights`.
template <typename Number>
inline void multiply_pair(const char* rows, size_t stride, int count, const char* weights,
                          int num_tiles, PairSums<typename Number::Sum>& sums) {
    int row = 0;
    const auto several = [&](auto number) {
        constexpr int ROWS = decltype(number)::value;
        for (; row + ROWS <= count; row += ROWS)
            multiply_rows_of_pair<Number, ROWS>(rows + row * stride, stride, weights, num_tiles, row,
                                                sums);
    };
    several(std::integral_constant<int, LANES == 16 ? 8 : 2>());
    several(std::integral_constant<int, LANES == 16 ? 4 : 1>());
    several(std::integral_constant<int, 1>());
}

#if HAS_MATRIX_UNIT
template <typename Number, bool HAS_SECOND>
inline void multiply_tiles(const char* rows, size_t stride, const char* weights, int num_tiles,
                           PairSums<typename Number::Sum>& sums) {
    const size_t block_bytes = size_t(num_tiles) * TILE_BYTES;
    _tile_zero(0);
    _tile_zero(1);
    if (HAS_SECOND) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int tile = 0; tile < num_tiles; ++tile, rows += 64, weights += TILE_BYTES) {
        if (!HAS_SECOND)  // few rows: reading the weights is what takes time
            for (int line = 0; line < TILE_BYTES; line += 64) {
                __builtin_prefetch(weights + line + AHEAD_BYTES);
                __builtin_prefetch(weights + block_bytes + line + AHEAD_BYTES);
            }
        _tile_loadd(4, rows, stride);
        _tile_loadd(6, weights, 64);
        Number::add_tile(Sum00());
        _tile_loadd(7, weights + block_bytes, 64);
        Number::add_tile(Sum01());
        if (HAS_SECOND) {
            _tile_loadd(5, rows + 16 * stride, stride);
            Number::add_tile(Sum10());
            Number::add_tile(Sum11());
        }
    }
    _tile_stored(0, sums.of[0][0], 64);
    _tile_stored(1, sums.of[1][0], 64);
    if (HAS_SECOND) {
        _tile_stored(2, sums.of[0][16], 64);
        _tile_stored(3, sums.of[1][16], 64);
    }
}

template <typename Number>
inline void multiply_pair(const char* rows, size_t stride, int count, const char* weights,
                          int num_tiles, PairSums<typename Number::Sum>& sums, MatrixUnit& unit) {
    unit.set_rows(count);
    if (count > 16)
        multiply_tiles<Number, true>(rows, stride, weights, num_tiles, sums);
    else
        multiply_tiles<Number, false>(rows, stride, weights, num_tiles, sums);
}
#endif

// The products of one thread, by the matrix unit or by vectors.
class Products {
    MatrixUnit unit;

   public:
    // Multiplies `count` rows of `width` numbers, at most MOST_ROWS, by a pair of blocks.
    template <typename Numbers, typename Number, typename Weights>
    void multiply(const Number* rows, size_t width, int count, const Weights* pair, int num_tiles,
                  PairSums<typename Numbers::Sum>& sums) {
        const char* left = reinterpret_cast<const char*>(rows);
        const char* right = reinterpret_cast<const char*>(pair);
#if HAS_MATRIX_UNIT
        if constexpr (!std::is_same_v<Numbers, Float32Words>)
            if (may_use_matrix_unit())
                return multiply_pair<Numbers>(left, width * sizeof(Number), count, right, num_tiles,
                                              sums, unit);
#endif
        multiply_pair<Numbers>(left, width * sizeof(Number), count, right, num_tiles, sums);
    }
};
