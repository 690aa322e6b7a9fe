// Attention of packed new tokens over a paged cache; kernels/paged_attention.py says what it is.
//
// A task is some rows (the query heads of a key/value head, of neighbouring tokens) and the keys
// they see, read in tiles: a tile holds all heads, as memory does, and its keys are widened to
// float32 once for all rows of a head. The softmax is kept as it goes.
// Keys fall into blocks whose results are merged in order, by whoever computed them, so that a
// token's result depends neither on the number of threads nor on the other sequences.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "abi.h"
#include "lanes.h"
#include "prefetch.h"
#include "softmax.h"

namespace {

constexpr int ROWS = 48;
constexpr int KEYS = 64;
constexpr int BLOCK = 512;
constexpr int FETCHED = 8;  // cache lines at a time
constexpr int MANY = 1 << 20;
constexpr float LOG2_E = 1.44269504f;

struct Shape {
    int num_seqs, H, G, D, page_len, most_pages;
    int most_new;  // sequences with more new tokens are left out
    int window;
    float scale, softcap;

    int group() const { return H / G; }
};

// Rows of each key/value head of one sequence.
struct Task {
    int seq, first_row, num_rows;
    int first_block, num_blocks;
    size_t place;  // where the results of its blocks wait to be merged, or DIRECT
};
constexpr size_t DIRECT = -1;

struct Plan {
    std::vector<Task> tasks;  // what threads share
    std::vector<Task> split;  // what is merged afterwards
    size_t waiting = 0;       // numbers
    int most_rows = 0;
};

// What one thread works in.
template <typename Stored>
struct Workspace {
    Floats queries, scores, keys, block, result;
    std::vector<Stored> padded;      // a head's keys and values where a row is no whole vectors
    const Stored* positions[KEYS];   // of the tile: where all heads of a position begin
    size_t scale_at[KEYS];           // and their scales
    const Stored* key_rows[KEYS];    // of one head of the tile
    const Stored* value_rows[KEYS];
    float key_scale[KEYS], value_scale[KEYS];  // of one head of the tile; with int8 only

    Workspace(int rows, int G, int width)
        : queries(G * rows * width), scores(rows * KEYS), keys(width * KEYS),
          block(Softmax::size(G * rows, width)), result(Softmax::size(G * rows, width)),
          padded((2 * KEYS + 1) * width) {}
};

template <typename Query, typename Stored>
struct Attention {
    Shape shape;
    Query* out;
    const Query* q;
    const Stored* cache;
    const float* kv_scale;
    const int32_t *page_table, *context_lens, *cu_new;

    // D, padded to what fills whole vectors.
    int width() const { return round_up(shape.D, LANES * 4 / sizeof(Stored)); }
    int num_new(int seq) const { return cu_new[seq + 1] - cu_new[seq]; }
    int position(int seq, int row) const {
        return context_lens[seq] - num_new(seq) + row / shape.group();
    }
    int first_seen(int position) const {
        return shape.window ? std::max(0, position - shape.window + 1) : 0;
    }
    size_t query_at(const Task& task, int g, int row) const {
        const int at = task.first_row + row, group = shape.group();
        const size_t token = cu_new[task.seq] + at / group;
        return (token * shape.H + g * group + at % group) * shape.D;
    }

    Plan plan() const {
        Plan plan;
        for (int seq = 0; seq < shape.num_seqs; ++seq) {
            const int num_rows = num_new(seq) * shape.group();
            if (num_new(seq) > shape.most_new) continue;
            if (!context_lens[seq]) {
                const size_t row = size_t(shape.H) * shape.D;
                std::fill(out + cu_new[seq] * row, out + cu_new[seq + 1] * row, Query{});
                continue;
            }
            for (int first = round_up(num_rows, ROWS) - ROWS; first >= 0; first -= ROWS) {
                Task task{seq, first, std::min(ROWS, num_rows - first), 0, 0, DIRECT};
                task.first_block = first_seen(position(seq, first)) / BLOCK;
                const int last = position(seq, first + task.num_rows - 1);
                task.num_blocks = last / BLOCK + 1 - task.first_block;
                if (num_rows <= ROWS && task.num_blocks > 1)
                    split(task, plan);
                else
                    plan.tasks.push_back(task);
                plan.most_rows = std::max(plan.most_rows, task.num_rows);
            }
        }
        return plan;
    }

    void split(Task task, Plan& plan) const {
        task.place = plan.waiting;
        plan.split.push_back(task);
        const int num_blocks = std::exchange(task.num_blocks, 1);
        for (int block = 0; block < num_blocks; ++block, ++task.first_block) {
            task.place = plan.waiting;
            plan.tasks.push_back(task);
            plan.waiting += Softmax::size(shape.G * task.num_rows, width());
        }
    }

    // The row of the first head's key of a position, of all rows of D numbers in the cache.
    size_t row_of(const Task& task, int key) const {
        const int32_t* pages = page_table + size_t(task.seq) * shape.most_pages;
        const size_t place =
            size_t(pages[key / shape.page_len]) * shape.page_len + key % shape.page_len;
        return place * 2 * shape.G;
    }

    Ahead ahead(const Task& task, int from, int end) const {
        const size_t row_bytes = 2 * shape.G * shape.D * sizeof(Stored);
        return {reinterpret_cast<const char*>(cache),
                page_table + size_t(task.seq) * shape.most_pages,
                row_bytes,
                shape.page_len,
                from,
                std::min(from + KEYS, end)};
    }

    // Finds the rows of one head's keys and values; what pads the tile is a row of zeros.
    void find_head(int g, int count, Workspace<Stored>& space) const {
        const int width = this->width(), D = shape.D;
        Stored* copy = space.padded.data();
        const Stored* zeros = copy + 2 * KEYS * width;
        for (int key = 0; key < KEYS; ++key) {
            const bool is_padding = key >= count;
            const Stored* row = space.positions[key];
            space.key_rows[key] = is_padding ? zeros : row + g * D;
            space.value_rows[key] = is_padding ? zeros : row + (shape.G + g) * D;
            if (kv_scale) {
                const float* scales = is_padding ? nullptr : kv_scale + space.scale_at[key];
                space.key_scale[key] = is_padding ? 0 : scales[g];
                space.value_scale[key] = is_padding ? 0 : scales[shape.G + g];
            }
            if (width == D || is_padding) continue;
            std::copy_n(space.key_rows[key], D, copy + key * width);
            std::copy_n(space.value_rows[key], D, copy + (KEYS + key) * width);
            space.key_rows[key] = copy + key * width;
            space.value_rows[key] = copy + (KEYS + key) * width;
        }
    }

    // keys[d][key] as float32, for a tile.
    void transpose_keys(int count, Workspace<Stored>& space, Ahead& next) const {
        constexpr int PER_WORD = 4 / sizeof(Stored);
        for (int key = 0; key < count; key += LANES)
            for (int d = 0; d < width(); d += LANES * PER_WORD) {
                Words rows[LANES];
                for (int row = 0; row < LANES; ++row)
                    rows[row] = load_raw<Words>(space.key_rows[key + row] + d);
                next.fetch(FETCHED);
                transpose(rows);
                float* to = space.keys.data() + d * KEYS + key;
                for (int row = 0; row < LANES; ++row, to += PER_WORD * KEYS) {
                    store(to, number_of<Stored, 0>(rows[row]));
                    if constexpr (PER_WORD > 1) store(to + KEYS, number_of<Stored, 1>(rows[row]));
                    if constexpr (PER_WORD > 2) {
                        store(to + 2 * KEYS, number_of<Stored, 2>(rows[row]));
                        store(to + 3 * KEYS, number_of<Stored, 3>(rows[row]));
                    }
                }
            }
    }

    // Scores of a tile, log2 e times, in space.scores; -inf where a row does not see a key.
    void score(const Task& task, int g, int from, int count, Workspace<Stored>& space,
               Ahead& next) const {
        const int width = this->width(), padded = round_up(count, LANES);
        transpose_keys(padded, space, next);
        float* scores = space.scores.data();
        const float* keys = space.keys.data();
        std::fill(scores, scores + task.num_rows * KEYS, 0.0f);
        multiply(space.queries.data() + g * task.num_rows * width, width,
                 [keys](int d) { return keys + d * KEYS; }, scores, KEYS, task.num_rows, shape.D,
                 padded);
        for (int row = 0; row < task.num_rows; ++row) {
            float* line = scores + row * KEYS;
            if (kv_scale) rescale(line, space.key_scale);
            if (shape.softcap)
                for (int key = 0; key < padded; key += LANES)
                    store(line + key, cap(load(line + key)));
            const int at = position(task.seq, task.first_row + row);
            std::fill(line + std::clamp(at + 1 - from, 0, padded), line + padded, -INFINITY);
            std::fill(line, line + std::clamp(first_seen(at) - from, 0, padded), -INFINITY);
        }
    }

    static void rescale(float* line, const float* scale) {
        for (int key = 0; key < KEYS; key += LANES)
            store(line + key, load(line + key) * load(scale + key));
    }

    // softcap * tanh(x / softcap) * log2 e
    Lanes cap(Lanes x) const {
        const Lanes zero = {};
        const Lanes size = x < zero ? -x : x;
        const Lanes e = exp2_lanes(size * (-2 * LOG2_E / shape.softcap));
        const Lanes capped = shape.softcap * LOG2_E * (1.0f - e) / (1.0f + e);
        return x < zero ? -capped : capped;
    }

    void attend(const Task& task, int g, int from, int count, Softmax& block,
                Workspace<Stored>& space, Ahead& next) const {
        const int width = this->width(), padded = round_up(count, LANES);
        find_head(g, count, space);
        score(task, g, from, count, space, next);
        for (int row = 0; row < task.num_rows; ++row) {
            float* line = space.scores.data() + row * KEYS;
            const int at = g * task.num_rows + row;
            Lanes tops = load(line);
            for (int key = LANES; key < padded; key += LANES) {
                const Lanes x = load(line + key);
                tops = x > tops ? x : tops;
            }
            const float top = std::max(block.top[at], largest(tops));
            if (top == -INFINITY) {
                std::fill(line, line + padded, 0.0f);
                continue;
            }
            Lanes totals = {};
            for (int key = 0; key < padded; key += LANES) {
                const Lanes weights = exp2_lanes(load(line + key) - top);
                totals += weights;
                store(line + key, weights);
            }
            const float shrink = std::exp2(block.top[at] - top);
            block.top[at] = top;
            block.total[at] = block.total[at] * shrink + sum(totals);
            for (int d = 0; d < width; ++d) block.values[at * width + d] *= shrink;
            if (kv_scale) rescale(line, space.value_scale);
        }
        const auto values = [&](int key) {
            next.fetch(1);
            return space.value_rows[key];
        };
        multiply(space.scores.data(), KEYS, values,
                 block.values + g * task.num_rows * width, width, task.num_rows, count, width);
    }

    void run(const Task& task, float* waiting, Workspace<Stored>& space) const {
        const int width = this->width(), rows = task.num_rows;
        const float scale = shape.softcap ? shape.scale : shape.scale * LOG2_E;
        for (int at = 0; at < shape.G * rows; ++at) {
            const Query* query = q + query_at(task, at / rows, at % rows);
            for (int d = 0; d < shape.D; ++d)
                space.queries[at * width + d] = to_float(query[d]) * scale;
        }
        const int seen = position(task.seq, task.first_row + rows - 1) + 1;
        const int unseen = first_seen(position(task.seq, task.first_row));
        ahead(task, std::max(task.first_block * BLOCK, unseen / KEYS * KEYS), seen).fetch(MANY);
        Softmax result(task.place == DIRECT ? space.result.data() : waiting + task.place,
                       shape.G * rows, width);
        result.clear();
        for (int block = task.first_block; block < task.first_block + task.num_blocks; ++block) {
            Softmax part(space.block.data(), shape.G * rows, width);
            part.clear();
            const int end = std::min((block + 1) * BLOCK, seen);
            for (int from = std::max(block * BLOCK, unseen / KEYS * KEYS); from < end;
                 from += KEYS) {
                const int count = std::min(KEYS, end - from);
                for (int key = 0; key < count; ++key) {
                    space.scale_at[key] = row_of(task, from + key);
                    space.positions[key] = cache + space.scale_at[key] * shape.D;
                }
                Ahead next = ahead(task, from + count, end);
                for (int g = 0; g < shape.G; ++g) attend(task, g, from, count, part, space, next);
            }
            result.merge(part);
        }
        if (task.place == DIRECT) write(task, result);
    }

    void merge(const Task& task, float* waiting, Workspace<Stored>& space) const {
        const int rows = shape.G * task.num_rows, width = this->width();
        Softmax result(space.result.data(), rows, width);
        result.clear();
        for (int block = 0; block < task.num_blocks; ++block)
            result.merge(
                Softmax(waiting + task.place + block * Softmax::size(rows, width), rows, width));
        write(task, result);
    }

    void write(const Task& task, const Softmax& result) const {
        for (int at = 0; at < result.rows; ++at) {
            Query* to = out + query_at(task, at / task.num_rows, at % task.num_rows);
            for (int d = 0; d < shape.D; ++d)
                from_float(result.values[at * result.width + d] / result.total[at], to + d);
        }
    }

    void run() const {
        const Plan all = plan();
        Floats waiting(all.waiting);
#pragma omp parallel
        {
            Workspace<Stored> space(all.most_rows, shape.G, width());
#pragma omp for schedule(dynamic)
            for (size_t at = 0; at < all.tasks.size(); ++at)
                run(all.tasks[at], waiting.data(), space);
#pragma omp for schedule(dynamic)
            for (size_t at = 0; at < all.split.size(); ++at)
                merge(all.split[at], waiting.data(), space);
        }
    }
};

template <typename Query, typename Stored>
void store_rows(Stored* cache, float* kv_scale, const int64_t* slots, const Query* k,
                const Query* v, int num_tokens, int G, int D, int64_t k_stride,
                int64_t v_stride) {
#pragma omp parallel for if (num_tokens > 64)
    for (int token = 0; token < num_tokens; ++token) {
        if (slots[token] < 0) continue;
        for (int which = 0; which < 2; ++which)
            for (int g = 0; g < G; ++g) {
                const Query* from = (which ? v + token * v_stride : k + token * k_stride) + g * D;
                const size_t row = (size_t(slots[token]) * 2 + which) * G + g;
                Stored* to = cache + row * D;
                if constexpr (std::is_same_v<Stored, int8_t>)
                    kv_scale[row] = round_to_int8(from, to, D);
                else
                    std::copy_n(from, D, to);
            }
    }
}

template <typename Query, typename Stored>
void attend(Query* out, const Query* q, const Stored* cache, const float* kv_scale,
            const int32_t* page_table, const int32_t* context_lens, const int32_t* cu_new,
            int num_seqs, int H, int G, int D, int page_len, int most_pages, int most_new, int window,
            float scale, float softcap) {
    const Shape shape{num_seqs, H,        G,      D,     page_len,
                      most_pages, most_new, window, scale, softcap};
    Attention<Query, Stored>{shape,    out,        q,            cache,
                             kv_scale, page_table, context_lens, cu_new}
        .run();
}

}  // namespace

#define EXPORT_ATTENTION(NAME, QUERY, STORED)              \
    EXPORT(paged_attention_##NAME, attend<QUERY, STORED>)  \
    EXPORT(write_kv_##NAME, store_rows<QUERY, STORED>)

EXPORT_ATTENTION(float32, float, float)
EXPORT_ATTENTION(bfloat16, bfloat16, bfloat16)
EXPORT_ATTENTION(int8_float32, float, int8_t)
EXPORT_ATTENTION(int8_bfloat16, bfloat16, int8_t)
