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

// Weights as they are multiplied.
struct Stored {
    const char* weights;
    int num_tiles;

    const char* pair(int number, std::vector<char>&) const {
        return weights + size_t(number) * 2 * num_tiles * TILE_BYTES;
    }
};

// Int4 weights with a scale for every 32 along k, which is a tile of bfloat16: a tile is a byte for
// each word and output, then its scales stand in an array of their own. Widened for each use.
struct Int4 {
    const uint8_t* weights;
    const float* scale;
    int num_tiles;

    const char* pair(int number, std::vector<char>& space) const {
        space.resize(size_t(2) * num_tiles * TILE_BYTES);
        for (int tile = 0; tile < 2 * num_tiles; ++tile) {
            const size_t at = size_t(number) * 2 * num_tiles + tile;
            const uint8_t* from = weights + at * TILE_WORDS * OUTPUTS;
            __builtin_prefetch(from + AHEAD_BYTES / 4);
            for (int part = 0; part < OUTPUTS; part += LANES) {
                const Lanes scales = load(scale + at * OUTPUTS + part);
                char* to = space.data() + size_t(tile) * TILE_BYTES + 4 * part;
                for (int word = 0; word < TILE_WORDS; ++word) {
                    const Words bytes = load_words(from + word * OUTPUTS + part);
                    const Words words = pairs_of(int4_values(bytes) * scales,
                                                 int4_values(bytes >> 4) * scales);
                    std::memcpy(to + word * 4 * OUTPUTS, &words, sizeof words);
                }
            }
        }
        return space.data();
    }
};

// Calls finish(pair, first row, rows, sums) for all pairs of blocks and all rows.
template <typename Numbers, typename Weights, typename Finish>
void for_all_sums(const Rows& rows, int count, const Weights& weights, int num_pairs,
                  Finish finish) {
    const int chunks = (count + ROWS_OF_TASK - 1) / ROWS_OF_TASK;
#pragma omp parallel
    {
        Products products;
        PairSums<typename Numbers::Sum> sums;
        std::vector<char> space;
#pragma omp for schedule(static)
        for (int task = 0; task < num_pairs * chunks; ++task) {
            const int pair = task / chunks, start = task % chunks * ROWS_OF_TASK;
            const int end = std::min(start + ROWS_OF_TASK, count);
            const char* right = weights.pair(pair, space);
            for (int row = start; row < end; row += MOST_ROWS) {
                const int some = std::min(end - row, MOST_ROWS);
                products.multiply<Numbers>(rows.data + row * rows.stride, rows.stride, some, right,
                                           weights.num_tiles, sums);
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

int num_tiles_of(size_t row_bytes) {
    return int((row_bytes + 4 * TILE_WORDS - 1) / (4 * TILE_WORDS));
}

// out = x weights, of words of x and sums in float32.
template <typename Numbers, typename Weights, typename Result>
void multiply_all(const Output<Result>& output, const Rows& rows, const Weights& weights, int M) {
    for_all_sums<Numbers>(
        rows, M, weights, num_pairs(output.N, output.is_gated),
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

// Weights of the dtype of x.
template <typename Number, typename Result>
void linear(Result* out, const Number* x, const char* weights, const float* bias, int M, int N,
            int K, int is_gated) {
    typedef std::conditional_t<std::is_same_v<Number, float>, Float32Words, BFloat16Words> Numbers;
    const size_t row_bytes = size_t(K) * sizeof(Number);
    const int num_tiles = num_tiles_of(row_bytes);
    multiply_all<Numbers>(Output<Result>{out, bias, N, bool(is_gated)},
                          Rows(x, M, row_bytes, num_tiles), Stored{weights, num_tiles}, M);
}

// Int4 weights; the activations are bfloat16, or become it.
template <typename Number, typename Result>
void linear_int4(Result* out, const Number* x, const uint8_t* weights, const float* scale,
                 const float* bias, int M, int N, int K, int is_gated) {
    const size_t row_bytes = size_t(K) * sizeof(bfloat16);
    const int num_tiles = num_tiles_of(row_bytes);
    std::vector<bfloat16> narrow;
    const void* rows = x;
    if constexpr (!std::is_same_v<Number, bfloat16>) {
        narrow.resize(size_t(M) * K);
        for (size_t at = 0; at < narrow.size(); ++at) from_float(to_float(x[at]), &narrow[at]);
        rows = narrow.data();
    }
    multiply_all<BFloat16Words>(Output<Result>{out, bias, N, bool(is_gated)},
                                Rows(rows, M, row_bytes, num_tiles),
                                Int4{weights, scale, num_tiles}, M);
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
    const int num_tiles = num_tiles_of(K);
    const size_t stride = size_t(num_tiles) * 4 * TILE_WORDS;
    std::vector<int8_t> numbers(stride * M * digits);
    std::vector<float> row_scale(M);
#pragma omp parallel for if (size_t(M) * K > 32768)
    for (int row = 0; row < M; ++row)
        row_scale[row] =
            to_digits(x + size_t(row) * K, K, digits, &numbers[row * digits * stride], stride);
    const Output<Result> output{out, bias, N, bool(is_gated)};
    for_all_sums<Int8Words>(
        Rows(numbers.data(), M * digits, stride, num_tiles), M * digits,
        Stored{weights, num_tiles}, num_pairs(N, is_gated),
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
EXPORT(packed_linear_int4_float32, linear_int4<float, float>)
EXPORT(packed_linear_int4_bfloat16, linear_int4<bfloat16, bfloat16>)
EXPORT(packed_linear_int4_wide_bfloat16, linear_int4<bfloat16, float>)
