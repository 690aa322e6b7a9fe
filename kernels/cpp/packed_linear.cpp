// Linear layers over packed weights; kernels/packed_linear.py says how they are laid out.
//
// Every thread takes pairs of blocks, 32 outputs, and reads their weights once for 32 rows. A row's
// result depends on that row alone, bit for bit, however many there are and whoever computes them.

#include "abi.h"
#include "pointwise.h"
#include "products.h"

namespace {

constexpr int ROWS_OF_TASK = 256;  // that share a reading of weights from memory

// Rows of activations as the products want them: words of 4 bytes, filled up with zeros to tiles.
class Rows {
    std::vector<char> memory;

   public:
    const char* data;
    size_t stride;

    Rows(const void* x, int M, size_t row_bytes, int num_tiles) {
        data = static_cast<const char*>(x);
        stride = size_t(num_tiles) * 4 * TILE_WORDS;
        if (row_bytes == stride) return;
        memory.resize(stride * M);
        for (int row = 0; row < M; ++row)
            std::memcpy(&memory[row * stride], data + row * row_bytes, row_bytes);
        data = memory.data();
    }
};

// Calls finish(pair, first row, rows, sums) for all pairs of blocks and all rows.
template <typename Numbers, typename Finish>
void for_all_sums(const Rows& rows, int count, const char* weights, int num_pairs, int num_tiles,
                  Finish finish) {
    const int chunks = (count + ROWS_OF_TASK - 1) / ROWS_OF_TASK;
#pragma omp parallel
    {
        Products products;
        PairSums<typename Numbers::Sum> sums;
#pragma omp for schedule(static)
        for (int task = 0; task < num_pairs * chunks; ++task) {
            const int pair = task / chunks, start = task % chunks * ROWS_OF_TASK;
            const int end = std::min(start + ROWS_OF_TASK, count);
            for (int row = start; row < end; row += MOST_ROWS) {
                const int some = std::min(end - row, MOST_ROWS);
                products.multiply<Numbers>(rows.data + row * rows.stride, rows.stride, some,
                                           weights + size_t(pair) * 2 * num_tiles * TILE_BYTES,
                                           num_tiles, sums);
                finish(pair, row, some, sums);
            }
        }
    }
}

// What becomes of the sums of a row: bias, gate, and their place in the result.
template <typename Number>
struct Output {
    Number* out;
    const float* bias;  // (outputs,), or null
    int N;              // outputs of a row of the result
    bool is_gated;      // of a pair of blocks, the first gates the second: silu(first) * second

    void put(int row, int pair, Lanes (&values)[2][PARTS]) const {
        for (int block = 0; block < 2; ++block) {
            const int first = (is_gated ? pair : 2 * pair + block) * OUTPUTS;
            Number* to = out + size_t(row) * N + first;
            for (int part = 0; part < PARTS; ++part) {
                const int width = std::clamp(N - first - part * LANES, 0, LANES);
                Lanes value = values[block][part];
                if (is_gated)
                    value = rounded<Number>(silu(rounded<Number>(value))) *
                            rounded<Number>(values[1][part]);
                else if (bias && width == LANES)
                    value += load(bias + first + part * LANES);
                else if (bias)
                    for (int lane = 0; lane < width; ++lane)
                        value[lane] += bias[first + part * LANES + lane];
                if (width == LANES)
                    store(to + part * LANES, value);
                else
                    for (int lane = 0; lane < width; ++lane)
                        from_float(value[lane], to + part * LANES + lane);
            }
            if (is_gated) return;
        }
    }
};

int num_pairs(int N, bool is_gated) {
    const int outputs = is_gated ? OUTPUTS : 2 * OUTPUTS;
    return (N + outputs - 1) / outputs;
}

// Weights of the dtype of x.
template <typename Number, typename Result>
void linear(Result* out, const Number* x, const char* weights, const float* bias, int M, int N,
            int K, int is_gated) {
    typedef std::conditional_t<std::is_same_v<Number, float>, Float32Words, BFloat16Words> Numbers;
    const size_t row_bytes = size_t(K) * sizeof(Number);
    const int num_tiles = round_up(int(row_bytes), 4 * TILE_WORDS) / (4 * TILE_WORDS);
    const Output<Result> output{out, bias, N, bool(is_gated)};
    for_all_sums<Numbers>(
        Rows(x, M, row_bytes, num_tiles), M, weights, num_pairs(N, is_gated), num_tiles,
        [&](int pair, int first, int count, const PairSums<float>& sums) {
            for (int row = 0; row < count; ++row) {
                Lanes values[2][PARTS];
                for (int block = 0; block < 2; ++block)
                    for (int part = 0; part < PARTS; ++part)
                        values[block][part] = load(sums.of[block][row] + part * LANES);
                output.put(first + row, pair, values);
            }
        });
}

// Rounds a row to `digits` digits of base 256, the highest first, each a row of int8; returns its scale.
template <typename Number>
float to_digits(const Number* x, int K, int digits, int8_t* to, size_t stride) {
    if (digits == 1) return round_to_int8(x, to, K);
    const float scale = largest_size(x, K) / 32512;  // 127 * 256: the highest digit stays below 128
    const float inverse = scale > 0 ? 1 / scale : 0.0f;
    for (int k = 0; k < K; ++k) {
        const int number = int(std::rint(to_float(x[k]) * inverse));
        const int high = (number + 128) >> 8;
        to[k] = int8_t(high);
        to[stride + k] = int8_t(number - 256 * high);
    }
    return scale;
}

// Int8 weights with a scale for each output; of the activations one digit (8 bits) or two (16).
template <typename Number, typename Result>
void linear_int8(Result* out, const Number* x, const char* weights, const float* scale,
                 const float* bias, int M, int N, int K, int is_gated, int digits) {
    const int num_tiles = round_up(K, 4 * TILE_WORDS) / (4 * TILE_WORDS);
    const size_t stride = size_t(num_tiles) * 4 * TILE_WORDS;
    std::vector<int8_t> numbers(stride * M * digits);
    std::vector<float> row_scale(M);
#pragma omp parallel for if (size_t(M) * K > 32768)
    for (int row = 0; row < M; ++row)
        row_scale[row] =
            to_digits(x + size_t(row) * K, K, digits, &numbers[row * digits * stride], stride);
    const Output<Result> output{out, bias, N, bool(is_gated)};
    for_all_sums<Int8Words>(
        Rows(numbers.data(), M * digits, stride, num_tiles), M * digits, weights,
        num_pairs(N, is_gated), num_tiles,
        [&](int pair, int first, int count, const PairSums<int32_t>& sums) {
            for (int row = 0; row < count; row += digits) {
                const int of = (first + row) / digits;
                Lanes values[2][PARTS];
                for (int block = 0; block < 2; ++block)
                    for (int part = 0; part < PARTS; ++part) {
                        const int at = part * LANES;
                        Lanes sum = load(sums.of[block][row] + at);
                        if (digits == 2) sum = sum * 256.0f + load(sums.of[block][row + 1] + at);
                        values[block][part] = sum * row_scale[of] *
                                              load(scale + (2 * pair + block) * OUTPUTS + at);
                    }
                output.put(of, pair, values);
            }
        });
}

}  // namespace

EXPORT(packed_linear_float32, linear<float, float>)
EXPORT(packed_linear_bfloat16, linear<bfloat16, bfloat16>)
EXPORT(packed_linear_wide_bfloat16, linear<bfloat16, float>)
EXPORT(packed_linear_int8_float32, linear_int8<float, float>)
EXPORT(packed_linear_int8_bfloat16, linear_int8<bfloat16, bfloat16>)
EXPORT(packed_linear_int8_wide_bfloat16, linear_int8<bfloat16, float>)
