// Low-rank adapters of several requests in one batch; kernels/lora.py says what is computed.
//
// Rows come ordered by their adapter. First every row is multiplied with its `down`, which leaves R
// numbers of it, then these with `up`. Both read an adapter once for several of its rows, and no
// adapter without rows. A sum is made of the same numbers in the same order however many rows there
// are, so a row's result does not depend on the others.

#include <algorithm>

#include "abi.h"
#include "lanes.h"

namespace {

constexpr int ROWS_OF_TASK = 32;
constexpr int RANKS_OF_TASK = 8;
constexpr int OUTPUTS_OF_TASK = 256;
constexpr size_t MUCH = 131072;  // products that are worth waking other threads for

// Rows of one adapter: `count` places from `first` on, in the order of rows.
struct Tile {
    int adapter, rank, first, count;
};

// Adds to `partial` the products of STEP numbers of two rows.
struct Float32Pairs {
    static constexpr int STEP = LANES;
    static void add(Lanes& partial, const float* a, const float* b) { partial += load(a) * load(b); }
};

struct BFloat16Pairs {
    static constexpr int STEP = 2 * LANES;
    static void add(Lanes& partial, const bfloat16* a, const bfloat16* b) {
#if defined(__AVX512BF16__)
        partial = (Lanes)_mm512_dpbf16_ps((__m512)partial, load_raw<__m512bh>(a),
                                          load_raw<__m512bh>(b));
#else
        const Words left = load_raw<Words>(a), right = load_raw<Words>(b);
        partial += number_of<bfloat16, 0>(left) * number_of<bfloat16, 0>(right);
        partial += number_of<bfloat16, 1>(left) * number_of<bfloat16, 1>(right);
#endif
    }
};

// Calls several(number) with the largest of NUMBERS, in falling order, while it fits into what is
// left, and goes on from there.
template <int... NUMBERS, typename Several>
inline void in_steps(int first, int last, Several several) {
    const auto while_it_fits = [&](auto number) {
        for (; first + decltype(number)::value <= last; first += decltype(number)::value)
            several(first, number);
    };
    (while_it_fits(std::integral_constant<int, NUMBERS>()), ...);
}

template <typename Number>
struct Lora {
    Number* out;            // (N, O), rows `out_stride` apart
    const Number* x;        // (N, I), rows `x_stride` apart
    const Number* down;     // (L, R, I)
    const Number* up;       // (L, R, O)
    const float* scale;     // (L,)
    const int64_t* rows;    // (N,)
    const int32_t* starts;  // (L + 1,)
    const int32_t* ranks;   // (L,), or null where all are R
    float* narrow;          // (N, R), what lies between
    int L, R, I, O;
    int64_t out_stride, x_stride;

    std::vector<Tile> tiles() const {
        std::vector<Tile> found;
        for (int adapter = 0; adapter < L; ++adapter) {
            const int rank = ranks ? ranks[adapter] : R;
            for (int at = starts[adapter]; rank && at < starts[adapter + 1]; at += ROWS_OF_TASK)
                found.push_back(
                    {adapter, rank, at, std::min(starts[adapter + 1] - at, ROWS_OF_TASK)});
        }
        return found;
    }

    template <int NUM_ROWS, int NUM_RANKS>
    void shrink(const Number* weights, int place, int rank) const {
        typedef std::conditional_t<std::is_same_v<Number, float>, Float32Pairs, BFloat16Pairs> Pairs;
        const Number* from[NUM_ROWS];
        for (int row = 0; row < NUM_ROWS; ++row) from[row] = x + rows[place + row] * x_stride;
        weights += size_t(rank) * I;
        Lanes partial[NUM_ROWS][NUM_RANKS] = {};
        int at = 0;
        for (; at + Pairs::STEP <= I; at += Pairs::STEP)
            for (int row = 0; row < NUM_ROWS; ++row)
                for (int r = 0; r < NUM_RANKS; ++r)
                    Pairs::add(partial[row][r], from[row] + at, weights + size_t(r) * I + at);
        for (int row = 0; row < NUM_ROWS; ++row)
            for (int r = 0; r < NUM_RANKS; ++r) {
                float total = sum(partial[row][r]);
                for (int rest = at; rest < I; ++rest)
                    total += to_float(from[row][rest]) * to_float(weights[size_t(r) * I + rest]);
                narrow[size_t(place + row) * R + rank + r] = total;
            }
    }

    void shrink(const Tile& tile, int first) const {
        const Number* weights = down + size_t(tile.adapter) * R * I;
        in_steps<4, 1>(first, std::min(first + RANKS_OF_TASK, tile.rank), [&](int rank, auto ranks) {
            in_steps<4, 1>(tile.first, tile.first + tile.count, [&](int place, auto rows) {
                shrink<decltype(rows)::value, decltype(ranks)::value>(weights, place, rank);
            });
        });
    }

    template <int NUM_ROWS, int VECTORS>
    void expand(const Number* weights, const Tile& tile, int place, int output) const {
        Lanes sums[NUM_ROWS][VECTORS] = {};
        for (int r = 0; r < tile.rank; ++r)
            for (int v = 0; v < VECTORS; ++v) {
                const Lanes wide = load(weights + size_t(r) * O + output + v * LANES);
                for (int row = 0; row < NUM_ROWS; ++row)
                    sums[row][v] += wide * narrow[size_t(place + row) * R + r];
            }
        for (int row = 0; row < NUM_ROWS; ++row) {
            Number* to = out + rows[place + row] * out_stride + output;
            for (int v = 0; v < VECTORS; ++v)
                store(to + v * LANES, load(to + v * LANES) + sums[row][v] * scale[tile.adapter]);
        }
    }

    void expand_one(const Number* weights, const Tile& tile, int place, int output) const {
        float total = 0;
        for (int r = 0; r < tile.rank; ++r)
            total += to_float(weights[size_t(r) * O + output]) * narrow[size_t(place) * R + r];
        Number* to = out + rows[place] * out_stride + output;
        from_float(to_float(*to) + total * scale[tile.adapter], to);
    }

    void expand(const Tile& tile, int first) const {
        const Number* weights = up + size_t(tile.adapter) * R * O;
        const int last = std::min(first + OUTPUTS_OF_TASK, O), end = tile.first + tile.count;
        const int whole = first + (last - first) / LANES * LANES;
        const auto vectors = [&](int output, auto width) {
            constexpr int VECTORS = decltype(width)::value / LANES;
            in_steps<4, 1>(tile.first, end, [&](int place, auto rows) {
                expand<decltype(rows)::value, VECTORS>(weights, tile, place, output);
            });
        };
        in_steps<4 * LANES, LANES>(first, whole, vectors);
        for (int output = whole; output < last; ++output)
            for (int place = tile.first; place < end; ++place)
                expand_one(weights, tile, place, output);
    }

    void run() const {
        const std::vector<Tile> all = tiles();
        size_t products = 0;
        for (const Tile& tile : all) products += size_t(tile.count) * tile.rank * (size_t(I) + O);
        const int shrinks = (R + RANKS_OF_TASK - 1) / RANKS_OF_TASK;
        const int expands = (O + OUTPUTS_OF_TASK - 1) / OUTPUTS_OF_TASK;
#pragma omp parallel if (products > MUCH)
        {
#pragma omp for schedule(static, 1)
            for (int task = 0; task < int(all.size()) * shrinks; ++task)
                shrink(all[task / shrinks], task % shrinks * RANKS_OF_TASK);
#pragma omp for schedule(static, 1)
            for (int task = 0; task < int(all.size()) * expands; ++task)
                expand(all[task / expands], task % expands * OUTPUTS_OF_TASK);
        }
    }
};

template <typename Number>
void add_lora(Number* out, const Number* x, const Number* down, const Number* up, const float* scale,
              const int64_t* rows, const int32_t* starts, const int32_t* ranks, float* narrow, int L,
              int R, int I, int O, int64_t out_stride, int64_t x_stride) {
    if (starts[0] == starts[L]) return;
    Lora<Number>{out, x, down, up, scale, rows, starts, ranks, narrow, L, R, I, O, out_stride,
                 x_stride}
        .run();
}

}  // namespace

EXPORT(add_lora_float32, add_lora<float>)
EXPORT(add_lora_bfloat16, add_lora<bfloat16>)
