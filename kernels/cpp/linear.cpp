// Linear layers with int8 and int4 weights; kernels/int8.py and kernels/int4.py say what they are.
//
// Few rows of activations: reading the weights is what takes time, so each is read once, widened to
// float32 in a register and multiplied by every row. A sum depends on its own rows alone: LANES
// partial sums over k, added in order. Int8 rows have a few more rows in them before the products
// take longer; from there on they are PyTorch's (_int_mm), and here is what comes before and after.

#include "abi.h"
#include "lanes.h"

namespace {

constexpr int ROWS = 4;   // of activations that share a reading of the weights
constexpr int STEPS = 4;  // vectors of a row of weights in flight
constexpr int AHEAD = 2048;  // bytes of weights the processor is told of in advance

struct Int8Weight {
    const int8_t* numbers;  // (N, K)
    const float* scale;     // (N,)
    int K;

    // The dot products of a row of weights and NUM_ROWS rows of x.
    template <int NUM_ROWS>
    void dot(const float* x, int output, float* sums) const {
        const int8_t* weight = numbers + size_t(output) * K;
        Lanes partial[NUM_ROWS][STEPS] = {};
        int k = 0;
        for (; k + STEPS * LANES <= K; k += STEPS * LANES) {
            __builtin_prefetch(weight + k + AHEAD);
            for (int step = 0; step < STEPS; ++step) {
                const Lanes wide = load(weight + k + step * LANES);
                for (int row = 0; row < NUM_ROWS; ++row)
                    partial[row][step] += load(x + size_t(row) * K + k + step * LANES) * wide;
            }
        }
        for (int row = 0; row < NUM_ROWS; ++row) {
            for (int step = 1; step < STEPS; ++step) partial[row][0] += partial[row][step];
            float total = sum(partial[row][0]);
            for (int rest = k; rest < K; ++rest) total += x[size_t(row) * K + rest] * weight[rest];
            sums[row] = total * scale[output];
        }
    }
};

struct Int4Weight {
    const uint8_t* packed;  // (N, K / 2)
    const float* scale;     // (N, num_groups)
    int K, num_groups;

    // x holds the even numbers of a row, then the odd ones.
    template <int NUM_ROWS>
    void dot(const float* x, int output, float* sums) const {
        const int half = K / 2, group = half / num_groups;
        const uint8_t* weight = packed + size_t(output) * half;
        const float* scales = scale + size_t(output) * num_groups;
        Lanes partial[NUM_ROWS] = {};
        float rest[NUM_ROWS] = {};
        for (int g = 0; g < num_groups; ++g) {
            Lanes even[NUM_ROWS] = {}, odd[NUM_ROWS] = {};
            int k = g * group;
            for (; k + LANES <= (g + 1) * group; k += LANES) {
                __builtin_prefetch(weight + k + AHEAD);
                const Words bytes = load_words(weight + k);
                const Lanes low = int4_values(bytes), high = int4_values(bytes >> 4);
                for (int row = 0; row < NUM_ROWS; ++row) {
                    even[row] += load(x + size_t(row) * K + k) * low;
                    odd[row] += load(x + size_t(row) * K + half + k) * high;
                }
            }
            for (int row = 0; row < NUM_ROWS; ++row)
                partial[row] += (even[row] + odd[row]) * scales[g];
            for (; k < (g + 1) * group; ++k)
                for (int row = 0; row < NUM_ROWS; ++row) {
                    const float* numbers = x + size_t(row) * K + k;
                    rest[row] += scales[g] * (numbers[0] * ((weight[k] & 15) - 8) +
                                              numbers[half] * ((weight[k] >> 4) - 8));
                }
        }
        for (int row = 0; row < NUM_ROWS; ++row) sums[row] = sum(partial[row]) + rest[row];
    }
};

template <int NUM_ROWS, typename Number, typename Weight>
void some_rows(Number* out, const float* x, const Weight& weight, int N) {
#pragma omp parallel for schedule(static)
    for (int output = 0; output < N; ++output) {
        float sums[NUM_ROWS];
        weight.template dot<NUM_ROWS>(x, output, sums);
        for (int row = 0; row < NUM_ROWS; ++row)
            from_float(sums[row], out + size_t(row) * N + output);
    }
}

template <typename Number, typename Weight>
void linear(Number* out, const float* x, const Weight& weight, int M, int N) {
    const size_t K = weight.K;
    int row = 0;
    for (; row + ROWS <= M; row += ROWS)
        some_rows<ROWS>(out + size_t(row) * N, x + row * K, weight, N);
    Number* rest = out + size_t(row) * N;
    if (M - row == 3) some_rows<3>(rest, x + row * K, weight, N);
    if (M - row == 2) some_rows<2>(rest, x + row * K, weight, N);
    if (M - row == 1) some_rows<1>(rest, x + row * K, weight, N);
}

template <typename Number>
void linear_int8(Number* out, const Number* x, const int8_t* weight, const float* scale, int M,
                 int N, int K) {
    Floats wide(size_t(M) * K);
    for (size_t at = 0; at < size_t(M) * K; ++at) wide[at] = to_float(x[at]);
    linear(out, wide.data(), Int8Weight{weight, scale, K}, M, N);
}

template <typename Number>
void linear_int4(Number* out, const Number* x, const uint8_t* packed, const float* scale, int M,
                 int N, int K, int num_groups) {
    Floats wide(size_t(M) * K);
    for (int row = 0; row < M; ++row)
        for (int k = 0; k < K; ++k)
            wide[size_t(row) * K + k / 2 + (k % 2) * (K / 2)] = to_float(x[size_t(row) * K + k]);
    linear(out, wide.data(), Int4Weight{packed, scale, K, num_groups}, M, N);
}

// Sums of products of NUM_ROWS rows of x, to which 128 was added, and a row of weights.
template <int NUM_ROWS>
inline void dot_int8(const uint8_t* x, const int8_t* weight, int K, int32_t* sums) {
    int32_t weights = 0;
    int k = 0;
    for (int row = 0; row < NUM_ROWS; ++row) sums[row] = 0;
#if defined(__AVX512VNNI__)
    __m512i partial[NUM_ROWS] = {}, total = {};
    const __m512i ones = _mm512_set1_epi8(1);
    for (; k + 64 <= K; k += 64) {
        __builtin_prefetch(weight + k + AHEAD);
        const __m512i numbers = load_raw<__m512i>(weight + k);
        total = _mm512_dpbusd_epi32(total, ones, numbers);
        for (int row = 0; row < NUM_ROWS; ++row)
            partial[row] = _mm512_dpbusd_epi32(
                partial[row], load_raw<__m512i>(x + size_t(row) * K + k), numbers);
    }
    weights = _mm512_reduce_add_epi32(total);
    for (int row = 0; row < NUM_ROWS; ++row) sums[row] = _mm512_reduce_add_epi32(partial[row]);
#endif
    for (; k < K; ++k) {
        weights += weight[k];
        for (int row = 0; row < NUM_ROWS; ++row) sums[row] += x[size_t(row) * K + k] * weight[k];
    }
    for (int row = 0; row < NUM_ROWS; ++row) sums[row] -= 128 * weights;
}

template <int NUM_ROWS, typename Number>
void some_int8_rows(Number* out, const uint8_t* x, const float* x_scale, const int8_t* weight,
                    const float* scale, int N, int K) {
#pragma omp parallel for schedule(static)
    for (int output = 0; output < N; ++output) {
        int32_t sums[NUM_ROWS];
        dot_int8<NUM_ROWS>(x, weight + size_t(output) * K, K, sums);
        for (int row = 0; row < NUM_ROWS; ++row)
            from_float(sums[row] * x_scale[row] * scale[output], out + size_t(row) * N + output);
    }
}

template <typename Number>
void linear_int8_rows(Number* out, const int8_t* x, const float* x_scale, const int8_t* weight,
                      const float* scale, int M, int N, int K) {
    std::vector<uint8_t> shifted(size_t(M) * K);
    for (size_t at = 0; at < shifted.size(); ++at) shifted[at] = uint8_t(x[at] + 128);
    int row = 0;
    const auto several = [&](auto count) {
        constexpr int NUM_ROWS = decltype(count)::value;
        for (; row + NUM_ROWS <= M; row += NUM_ROWS)
            some_int8_rows<NUM_ROWS>(out + size_t(row) * N, shifted.data() + size_t(row) * K,
                                     x_scale + row, weight, scale, N, K);
    };
    several(std::integral_constant<int, 16>());
    several(std::integral_constant<int, 8>());
    several(std::integral_constant<int, 4>());
    several(std::integral_constant<int, 2>());
    several(std::integral_constant<int, 1>());
}

template <typename Number>
void quantize(int8_t* out, float* scale, const Number* x, int M, int K) {
#pragma omp parallel for if (size_t(M) * K > 32768)
    for (int row = 0; row < M; ++row)
        scale[row] = round_to_int8(x + size_t(row) * K, out + size_t(row) * K, K);
}

template <typename Number>
void rescale(Number* out, const int32_t* sums, const float* row_scale, const float* scale, int M,
             int N) {
#pragma omp parallel for if (size_t(M) * N > 32768)
    for (int row = 0; row < M; ++row)
        for (int n = 0; n < N; ++n) {
            const size_t at = size_t(row) * N + n;
            from_float(sums[at] * row_scale[row] * scale[n], out + at);
        }
}

}  // namespace

#define EXPORT_LINEAR(NUMBER, NAME)                          \
    EXPORT(w8a16_linear_##NAME, linear_int8<NUMBER>)         \
    EXPORT(w4a16_linear_##NAME, linear_int4<NUMBER>)         \
    EXPORT(quantize_rows_##NAME, quantize<NUMBER>)           \
    EXPORT(w8a8_linear_##NAME, linear_int8_rows<NUMBER>)     \
    EXPORT(rescale_##NAME, rescale<NUMBER>)

EXPORT_LINEAR(float, float32)
EXPORT_LINEAR(bfloat16, bfloat16)
