// Choosing tokens; kernels/sample.py says what is kept and how the draw is turned into a token.
//
// What a filter keeps is all above a threshold, which is found without sorting: numbers fall into
// buckets by the leading bits of their float32, and only the bucket in which the filter ends is sorted.

#include <algorithm>
#include <functional>

#include "abi.h"
#include "lanes.h"

namespace {

constexpr int SHIFT = 18;                               // bits of float32 a bucket leaves open
constexpr int NUM_BUCKETS = (0x3f800000 >> SHIFT) + 1;  // of numbers from 0 to 1
constexpr int PIECE = 256;

struct Buckets {
    std::vector<int> count = std::vector<int>(NUM_BUCKETS);
    std::vector<double> mass = std::vector<double>(NUM_BUCKETS);
    std::vector<float> some;

    static int of(float part) { return int(bit_cast<uint32_t>(part) >> SHIFT); }

    void fill(const float* parts, int V, float least) {
        std::fill(count.begin(), count.end(), 0);
        std::fill(mass.begin(), mass.end(), 0.0);
        for (int at = 0; at < V; ++at)
            if (parts[at] >= least) {
                const int bucket = of(parts[at]);
                ++count[bucket];
                mass[bucket] += parts[at];
            }
    }

    // The largest number such that `wanted` of amount(number) is not below it; `least` if there is
    // not that much.
    template <typename Number, typename Amount>
    float threshold(const float* parts, int V, float least, Number wanted,
                    const std::vector<Number>& amounts, Amount amount) {
        Number found = 0;
        int bucket = NUM_BUCKETS - 1;
        for (; bucket >= 0 && found + amounts[bucket] < wanted; --bucket) found += amounts[bucket];
        if (bucket < 0) return least;
        some.clear();
        for (int at = 0; at < V; ++at)
            if (parts[at] >= least && of(parts[at]) == bucket) some.push_back(parts[at]);
        std::sort(some.begin(), some.end(), std::greater<float>());
        for (float number : some) {
            found += amount(number);
            if (found >= wanted) return number;
        }
        return some.empty() ? least : some.back();  // sums in another order may fall short
    }
};

struct Row {
    float temperature, top_p, min_p, draw;
    int top_k;
};

int likeliest(const float* logits, int V) {
    Lanes tops = Lanes{} - INFINITY;
    int at = 0;
    for (; at + LANES <= V; at += LANES) {
        const Lanes x = load(logits + at);
        tops = x > tops ? x : tops;
    }
    float top = largest(tops);
    for (; at < V; ++at) top = std::max(top, logits[at]);
    for (at = 0; at < V; ++at)
        if (logits[at] == top) return at;
    return 0;
}

// parts = e^((logits - top) / temperature): shares of the likeliest token's probability.
void to_parts(const float* logits, int V, float top, float temperature, float* parts) {
    const float factor = 1.44269504f / temperature;
    int at = 0;
    for (; at + LANES <= V; at += LANES) store(parts + at, exp2_lanes((load(logits + at) - top) * factor));
    for (; at < V; ++at) parts[at] = std::exp2((logits[at] - top) * factor);
}

int choose(const float* logits, int V, const Row& row, float* parts, Buckets& buckets) {
    const int best = likeliest(logits, V);
    if (!(row.temperature > 0)) return best;
    to_parts(logits, V, logits[best], row.temperature, parts);
    const bool has_k = row.top_k > 0 && row.top_k < V, has_p = row.top_p < 1;
    float least = 0;
    if (has_k) {
        buckets.fill(parts, V, 0);
        least = buckets.threshold(parts, V, 0, row.top_k, buckets.count, [](float) { return 1; });
    }
    if (has_p) {
        buckets.fill(parts, V, least);
        double total = 0;
        for (double mass : buckets.mass) total += mass;
        least = buckets.threshold(parts, V, least, double(row.top_p) * total, buckets.mass,
                                  [](float part) { return double(part); });
    }
    least = std::max(least, row.min_p);
    double total = 0;
    std::vector<double> pieces((V + PIECE - 1) / PIECE);
    for (int start = 0; start < V; start += PIECE) {
        const int end = std::min(start + PIECE, V);
        Lanes sums = {};
        int at = start;
        for (; at + LANES <= end; at += LANES) {
            const Lanes x = load(parts + at), zero = {};
            sums += x >= least ? x : zero;
        }
        double piece = sum(sums);
        for (; at < end; ++at) piece += parts[at] >= least ? parts[at] : 0;
        total += pieces[start / PIECE] = piece;
    }
    double left = double(row.draw) * total;
    size_t piece = 0;
    while (piece + 1 < pieces.size() && left >= pieces[piece]) left -= pieces[piece++];
    int chosen = best;  // where rounding leaves nothing behind
    for (int at = int(piece) * PIECE; at < V; ++at) {
        if (parts[at] < least || parts[at] == 0) continue;
        chosen = at;
        left -= parts[at];
        if (left < 0) break;
    }
    return chosen;
}

void sample(int64_t* out, const float* logits, const float* temperature, const int32_t* top_k,
            const float* top_p, const float* min_p, const float* draw, int B, int V,
            int64_t stride) {
#pragma omp parallel if (B > 1)
    {
        Floats parts(V);
        Buckets buckets;
#pragma omp for schedule(dynamic)
        for (int row = 0; row < B; ++row)
            out[row] = choose(logits + row * stride, V,
                              {temperature[row], top_p[row], min_p[row], draw[row], top_k[row]},
                              parts.data(), buckets);
    }
}

}  // namespace

EXPORT(sample_float32, sample)
