// Vectors of floats as wide as the processor's registers, and what the kernels here share.
//
// Compiled for the machine that runs it (-march=native), by GCC or Clang: their vector extensions
// become AVX-512, AVX2 or NEON instructions. Numbers are float32 throughout.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Lanes __attribute__((vector_size(LANES * 4)));
typedef int32_t Words __attribute__((vector_size(LANES * 4)));  // also raw memory, 4 bytes a lane

// Memory for floats that begins where a cache line does, so that no vector lies across two.
class Floats {
    struct alignas(64) Line {
        float numbers[16];
    };
    std::vector<Line> lines;

   public:
    explicit Floats(size_t count) : lines((count + 15) / 16) {}
    float* data() { return lines.data()->numbers; }
    float& operator[](size_t at) { return data()[at]; }
};

struct bfloat16 {
    uint16_t bits;
};

template <typename To, typename From>
inline To bit_cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <typename Vector, typename Number>
inline Vector load_raw(const Number* from) {
    Vector x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

// LANES integers as words. GCC 12 takes vectors apart for this, so there the instruction is named.
#if defined(__AVX512F__)
inline Words load_words(const int8_t* from) {
    return (Words)_mm512_cvtepi8_epi32(load_raw<__m128i>(from));
}
inline Words load_words(const uint8_t* from) {
    return (Words)_mm512_cvtepu8_epi32(load_raw<__m128i>(from));
}
inline Words load_words(const uint16_t* from) {
    return (Words)_mm512_cvtepu16_epi32(load_raw<__m256i>(from));
}
#elif defined(__AVX2__)
inline Words load_words(const int8_t* from) {
    return (Words)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from));
}
inline Words load_words(const uint8_t* from) {
    return (Words)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
}
inline Words load_words(const uint16_t* from) {
    return (Words)_mm256_cvtepu16_epi32(load_raw<__m128i>(from));
}
#else
template <typename Integer>
inline Words load_words(const Integer* from) {
    typedef Integer Integers __attribute__((vector_size(LANES * sizeof(Integer))));
    return __builtin_convertvector(load_raw<Integers>(from), Words);
}
#endif

// What the lowest four bits of each word stand for in int4: 0 to 15 are -8 to 7.
inline Lanes int4_values(Words bits) {
#if defined(__AVX512F__)
    const Lanes values = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    return (Lanes)_mm512_permutexvar_ps((__m512i)bits, (__m512)values);
#else
    return __builtin_convertvector((bits & 15) - 8, Lanes);
#endif
}

// LANES numbers as float32.
inline Lanes load(const float* from) { return load_raw<Lanes>(from); }
inline Lanes load(const bfloat16* from) {
    return bit_cast<Lanes>(load_words(&from->bits) << 16);
}
inline Lanes load(const int8_t* from) {
    return __builtin_convertvector(load_words(from), Lanes);
}

inline Lanes load(const int32_t* from) {
    return __builtin_convertvector(load_raw<Words>(from), Lanes);
}

inline void store(float* to, Lanes x) { std::memcpy(to, &x, sizeof x); }

// The numbers a word holds, the first in its lowest bits: number AT of every lane.
template <typename Number, int AT>
inline Lanes number_of(Words words) {
    if constexpr (sizeof(Number) == 4)
        return bit_cast<Lanes>(words);
    else if constexpr (sizeof(Number) == 2)
        return bit_cast<Lanes>(AT ? words & ~0xffff : words << 16);
    else
        return __builtin_convertvector((words << (24 - 8 * AT)) >> 24, Lanes);
}

inline float to_float(float x) { return x; }
inline float to_float(int8_t x) { return x; }
inline float to_float(bfloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

inline void from_float(float x, float* to) { *to = x; }
inline void from_float(float x, bfloat16* to) {  // to the nearest, ties to even
    const uint32_t bits = bit_cast<uint32_t>(x);
    to->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Rounded to the nearest, ties to even.
inline void store(bfloat16* to, Lanes x) {
#if defined(__AVX512BF16__)
    const __m256bh narrow = _mm512_cvtneps_pbh((__m512)x);
    std::memcpy(to, &narrow, sizeof narrow);
#else
    const Words bits = bit_cast<Words>(x);
    typedef uint16_t Narrow __attribute__((vector_size(LANES * 2)));
    const Narrow narrow =
        __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Narrow);
    std::memcpy(to, &narrow, sizeof narrow);
#endif
}

inline int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

// 2 to the power of x, for x <= 0; relative error under 2e-7; 0 below -126.
inline Lanes exp2_lanes(Lanes x) {
    const Lanes zero = {};
    const Lanes lowest = zero - 127.0f;
    x = x > lowest ? x : lowest;
    const Words whole = __builtin_convertvector(x - 0.5f, Words);  // nearest, from below
    const Lanes f = x - __builtin_convertvector(whole, Lanes);     // -0.5 to 0.5
    Lanes p = zero + 1.326472615e-3f;                              // a minimax polynomial
    p = p * f + 9.671512991e-3f;
    p = p * f + 5.550733581e-2f;
    p = p * f + 2.402224243e-1f;
    p = p * f + 6.931470037e-1f;
    p = p * f + 1.0f;
    return p * bit_cast<Lanes>((whole + 127) << 23);
}

// All lanes folded into one, halves upon halves.
template <int STEP, typename Fold, int... LANE>
inline float fold(Lanes x, Fold combine, std::integer_sequence<int, LANE...> lanes) {
    x = combine(x, Lanes(__builtin_shufflevector(x, x, (LANE ^ STEP)...)));
    if constexpr (STEP == 1)
        return x[0];
    else
        return fold<STEP / 2>(x, combine, lanes);
}

inline float sum(Lanes x) {
    return fold<LANES / 2>(x, [](Lanes a, Lanes b) { return a + b; },
                           std::make_integer_sequence<int, LANES>());
}

inline float largest(Lanes x) {
    return fold<LANES / 2>(x, [](Lanes a, Lanes b) { return a > b ? a : b; },
                           std::make_integer_sequence<int, LANES>());
}

template <typename Number>
inline float largest_size(const Number* x, int count) {
    Lanes largest_of_lane = {};
    int at = 0;
    for (; at + LANES <= count; at += LANES) {
        const Lanes y = load(x + at), size = y < 0 ? -y : y;
        largest_of_lane = size > largest_of_lane ? size : largest_of_lane;
    }
    float most = largest(largest_of_lane);
    for (; at < count; ++at) most = std::fmax(most, std::fabs(to_float(x[at])));
    return most;
}

// Rounds to the nearest, ties to even, and returns the scale: x ~ to * scale.
template <typename Number>
inline float round_to_int8(const Number* x, int8_t* to, int count) {
    const float scale = largest_size(x, count) / 127;
    const float inverse = scale > 0 ? 1 / scale : 0.0f;
    for (int at = 0; at < count; ++at) to[at] = int8_t(std::rint(to_float(x[at]) * inverse));
    return scale;
}

// One stage of the transposition of LANES vectors: bit STEP of row and lane change places.
template <int STEP, int... LANE>
inline void exchange(Words& a, Words& b, std::integer_sequence<int, LANE...>) {
    const Words first =
        __builtin_shufflevector(a, b, (LANE & STEP ? LANES + (LANE ^ STEP) : LANE)...);
    b = __builtin_shufflevector(a, b, (LANE & STEP ? LANES + LANE : LANE | STEP)...);
    a = first;
}

// rows[i][j] becomes rows[j][i].
template <int STEP = 1>
inline void transpose(Words* rows) {
    if constexpr (STEP < LANES) {
        for (int row = 0; row < LANES; ++row)
            if (!(row & STEP))
                exchange<STEP>(rows[row], rows[row | STEP],
                               std::make_integer_sequence<int, LANES>());
        transpose<2 * STEP>(rows);
    }
}

// Words of two bfloat16, the first in the lowest bits, rounded to the nearest, ties to even.
inline Words pairs_of(Lanes first, Lanes second) {
#if defined(__AVX512BF16__)
    const __m512i order = (__m512i)Words{
        16 << 16 | 0, 17 << 16 | 1, 18 << 16 | 2, 19 << 16 | 3, 20 << 16 | 4, 21 << 16 | 5,
        22 << 16 | 6, 23 << 16 | 7, 24 << 16 | 8, 25 << 16 | 9, 26 << 16 | 10, 27 << 16 | 11,
        28 << 16 | 12, 29 << 16 | 13, 30 << 16 | 14, 31 << 16 | 15};
    return (Words)_mm512_permutexvar_epi16(
        order, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
#else
    const Words low = bit_cast<Words>(first), high = bit_cast<Words>(second);
    return (((low + 0x7fff + ((low >> 16) & 1)) >> 16) & 0xffff) |
           ((high + 0x7fff + ((high >> 16) & 1)) & ~0xffff);
#endif
}
