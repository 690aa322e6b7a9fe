// What a decoder does between its products: norms, rotations, gates, sums, rows of tables.

#include <algorithm>

#include "abi.h"
#include "pointwise.h"

namespace {

constexpr size_t MUCH = 32768;  // numbers that are worth waking other threads for

// Calls whole(at) for each LANES numbers of a row, and single(at) for those left over.
template <typename Whole, typename Single>
inline void for_numbers(int count, Whole whole, Single single) {
    int at = 0;
    for (; at + LANES <= count; at += LANES) whole(at);
    for (; at < count; ++at) single(at);
}

template <typename Number>
inline float round_one(float x) {
    Number y;
    from_float(x, &y);
    return to_float(y);
}

// Rows are `inner` pieces of E numbers in a row, one row every `stride` numbers; out is dense.
template <typename Number, typename Weight>
void rms_norm(Number* out, float* scale, const Number* x, const Weight* weight, float eps, int outer,
              int64_t stride, int inner, int E) {
#pragma omp parallel for if (size_t(outer) * inner * E > MUCH)
    for (int piece = 0; piece < outer * inner; ++piece) {
        const Number* from = x + piece / inner * stride + size_t(piece % inner) * E;
        Number* to = out + size_t(piece) * E;
        Lanes squares = {};
        float rest = 0;
        for_numbers(
            E, [&](int at) { squares += load(from + at) * load(from + at); },
            [&](int at) { rest += to_float(from[at]) * to_float(from[at]); });
        const float factor = 1 / std::sqrt((sum(squares) + rest) / E + eps);
        scale[piece] = factor;
        for_numbers(
            E,
            [&](int at) {
                store(to + at, rounded<Number>(load(from + at) * factor) *
                                   rounded<Number>(load(weight + at)));
            },
            [&](int at) {
                from_float(round_one<Number>(to_float(from[at]) * factor) *
                               round_one<Number>(to_float(weight[at])),
                           to + at);
            });
    }
}

// x[d] cos[d] - x[d + D/2] sin[d], x[d + D/2] cos[d] + x[d] sin[d]; out is (tokens, heads, D).
template <typename Number>
void rotate(Number* out, const Number* x, const Number* cos, const Number* sin, int tokens, int heads,
            int D, int64_t token_stride, int64_t head_stride) {
    const int half = D / 2;
#pragma omp parallel for if (size_t(tokens) * heads * D > MUCH)
    for (int row = 0; row < tokens * heads; ++row) {
        const int token = row / heads;
        const Number* a = x + token * token_stride + row % heads * head_stride;
        const Number* c = cos + size_t(token) * D;
        const Number* s = sin + size_t(token) * D;
        Number* to = out + size_t(row) * D;
        const auto turned = [&](auto get, auto round, int at) {
            const auto first = get(a + at), second = get(a + half + at);
            return std::pair(
                round(first * get(c + at)) - round(second * get(s + at)),
                round(second * get(c + half + at)) + round(first * get(s + half + at)));
        };
        for_numbers(
            half,
            [&](int at) {
                const auto [low, high] =
                    turned([](const Number* from) { return load(from); }, rounded<Number>, at);
                store(to + at, low);
                store(to + half + at, high);
            },
            [&](int at) {
                const auto [low, high] =
                    turned([](const Number* from) { return to_float(*from); }, round_one<Number>, at);
                from_float(low, to + at);
                from_float(high, to + half + at);
            });
    }
}

template <typename Number>
void swiglu(Number* out, const Number* gate, const Number* up, int64_t count) {
    constexpr int PIECE = 1024;
#pragma omp parallel for if (size_t(count) > MUCH)
    for (int64_t start = 0; start < count; start += PIECE)
        for_numbers(
            int(std::min<int64_t>(PIECE, count - start)),
            [&](int at) {
                store(out + start + at,
                      rounded<Number>(silu(load(gate + start + at))) * load(up + start + at));
            },
            [&](int at) {
                const float x = to_float(gate[start + at]);
                from_float(round_one<Number>(x / (1 + std::exp(-x))) * to_float(up[start + at]),
                           out + start + at);
            });
}

template <typename Number>
void add(Number* out, const Number* a, const Number* b, int64_t count) {
    constexpr int PIECE = 1024;
#pragma omp parallel for if (size_t(count) > MUCH)
    for (int64_t start = 0; start < count; start += PIECE)
        for_numbers(
            int(std::min<int64_t>(PIECE, count - start)),
            [&](int at) { store(out + start + at, load(a + start + at) + load(b + start + at)); },
            [&](int at) {
                from_float(to_float(a[start + at]) + to_float(b[start + at]), out + start + at);
            });
}

template <typename Number>
void embed(Number* out, const Number* table, const int64_t* ids, int count, int E) {
    for (int row = 0; row < count; ++row)
        std::copy_n(table + size_t(ids[row]) * E, E, out + size_t(row) * E);
}

}  // namespace

#define EXPORT_POINTWISE(NUMBER, NAME)                                 \
    EXPORT(rms_norm_##NAME, rms_norm<NUMBER, NUMBER>)                  \
    EXPORT(rotate_##NAME, rotate<NUMBER>)                              \
    EXPORT(swiglu_##NAME, swiglu<NUMBER>)                              \
    EXPORT(add_##NAME, add<NUMBER>)                                    \
    EXPORT(embed_##NAME, embed<NUMBER>)

EXPORT_POINTWISE(float, float32)
EXPORT_POINTWISE(bfloat16, bfloat16)
