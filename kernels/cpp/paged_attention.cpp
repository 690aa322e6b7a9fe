// Attention of packed new tokens over a paged cache; kernels/paged_attention.py says what it is.
//
// A task is some rows (the query heads of a key/value head, of neighbouring tokens) and the keys
// they see, read in tiles: a tile holds all heads, as memory does, and its keys and values are laid
// out once for the products with all rows of a head (products.h). The softmax is kept as it goes.
// Keys fall into blocks whose results are merged in order, by whoever computed them, so that a
// token's result depends neither on the number of threads nor on the other sequences.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "abi.h"
#include "lanes.h"
#include "prefetch.h"
#include "products.h"
#include "softmax.h"

namespace {

constexpr int ROWS = 96;
constexpr int KEYS = 64;
constexpr int BLOCK = 512;
constexpr int FETCHED = 8;  // cache lines at a time
constexpr int MANY = 1 << 20;
constexpr float LOG2_E = 1.44269504f;

struct Shape {
    int num_seqs, H, G, D, page_len, most_pages, window;
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
template <typename Query, typename Stored>
struct Workspace {
    static constexpr int PER_WORD = 4 / sizeof(Query);
    Floats scores, keys, values, block, result;  // keys and values as products want them, packed
    std::vector<Query> queries, weights;         // rows of one head each
    std::vector<Query> copies;       // a head's keys and values where they are not as in the cache
    const Stored* positions[KEYS];   // of the tile: where all heads of a position begin
    size_t scale_at[KEYS];           // and their scales
    const Query* key_rows[KEYS];     // of one head of the tile
    const Query* value_rows[KEYS];
    float key_scale[KEYS], value_scale[KEYS];  // of one head of the tile; with int8 only
    PairSums<float> sums;
    Products unit;

    Workspace(int rows, int G, int width)
        : scores(rows * KEYS), keys(KEYS * width / PER_WORD), values(KEYS * width / PER_WORD),
          block(Softmax::size(G * rows, width)), result(Softmax::size(G * rows, width)),
          queries(size_t(G * rows) * width), weights(rows * KEYS),
          copies((2 * KEYS + 1) * width) {}
};

template <typename Query, typename Stored>
struct Attention {
    Shape shape;
    Query* out;
    const Query* q;
    const Stored* cache;
    const float* kv_scale;
    const int32_t *page_table, *context_lens, *cu_new;

    typedef std::conditional_t<std::is_same_v<Query, float>, Float32Words, BFloat16Words> Numbers;
    typedef Workspace<Query, Stored> Space;
    static constexpr int PER_WORD = Space::PER_WORD;
    static constexpr int PER_TILE = PER_WORD * TILE_WORDS;  // numbers of a row in a tile

    // D, padded to whole tiles and to whole pairs of blocks.
    int width() const { return round_up(shape.D, 2 * OUTPUTS); }
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
    void find_head(int g, int count, Space& space) const {
        const int width = this->width(), D = shape.D;
        Query* copy = space.copies.data();
        const Query* zeros = copy + 2 * KEYS * width;
        for (int key = 0; key < KEYS; ++key) {
            if (key >= count) {
                space.key_rows[key] = space.value_rows[key] = zeros;
                space.key_scale[key] = space.value_scale[key] = 0;
                continue;
            }
            const Stored* row = space.positions[key];
            if (kv_scale) {
                space.key_scale[key] = kv_scale[space.scale_at[key] + g];
                space.value_scale[key] = kv_scale[space.scale_at[key] + shape.G + g];
            }
            space.key_rows[key] = row_of_head(row + g * D, copy + key * width);
            space.value_rows[key] = row_of_head(row + (shape.G + g) * D, copy + (KEYS + key) * width);
        }
    }

    // A head's numbers as they lie in the cache, or a copy of another type or width.
    const Query* row_of_head(const Stored* row, Query* copy) const {
        if constexpr (std::is_same_v<Query, Stored>) {
            if (shape.D == width()) return row;
            std::copy_n(row, shape.D, copy);
        } else {
            int d = 0;
            for (; d + LANES <= shape.D; d += LANES) store(copy + d, load(row + d));
            for (; d < shape.D; ++d) from_float(to_float(row[d]), copy + d);
        }
        return copy;
    }

    // Packs the keys: a block's outputs are 16 keys, its words run along D.
    void pack_keys(int num_keys, Space& space, Ahead& next) const {
        const int num_words = width() / PER_WORD;
        for (int key = 0; key < num_keys; key += LANES) {
            float* block = space.keys.data() + key / OUTPUTS * num_words * OUTPUTS + key % OUTPUTS;
            for (int word = 0; word < num_words; word += LANES) {
                Words rows[LANES];
                for (int row = 0; row < LANES; ++row)
                    rows[row] = load_raw<Words>(space.key_rows[key + row] + word * PER_WORD);
                next.fetch(FETCHED);
                transpose(rows);
                for (int row = 0; row < LANES; ++row)
                    std::memcpy(block + (word + row) * OUTPUTS, &rows[row], sizeof(Words));
            }
        }
    }

    // Packs the values: a block's outputs are 16 of D, its words run along the keys.
    void pack_values(int num_tiles, Space& space, Ahead& next) const {
        const int width = this->width(), num_words = num_tiles * TILE_WORDS;
        for (int word = 0; word < num_words; ++word) {
            const Query* const* rows = space.value_rows + word * PER_WORD;
            next.fetch(PER_WORD);
            for (int d = 0; d < width; d += LANES) {
                Words words;
                if constexpr (PER_WORD == 1)
                    words = load_raw<Words>(rows[0] + d);
                else
                    words = load_words(&rows[0][d].bits) | load_words(&rows[1][d].bits) << 16;
                float* block = space.values.data() + d / OUTPUTS * num_words * OUTPUTS;
                std::memcpy(block + word * OUTPUTS + d % OUTPUTS, &words, sizeof words);
            }
        }
    }

    // Scores of a tile, log2 e times, in space.scores; -inf where a row does not see a key.
    void score(const Task& task, int g, int from, int count, Space& space, Ahead& next) const {
        const int width = this->width(), padded = round_up(count, 2 * OUTPUTS);
        const int num_tiles = width / PER_TILE;
        pack_keys(padded, space, next);
        const float factor = shape.softcap ? shape.scale : shape.scale * LOG2_E;
        const Query* queries = space.queries.data() + size_t(g) * task.num_rows * width;
        for (int first = 0; first < task.num_rows; first += MOST_ROWS) {
            const int some = std::min(MOST_ROWS, task.num_rows - first);
            for (int key = 0; key < padded; key += 2 * OUTPUTS) {
                space.unit.template multiply<Numbers>(
                    queries + first * width, width, some,
                    space.keys.data() + key / PER_WORD * width, num_tiles, space.sums);
                for (int row = 0; row < some; ++row)
                    for (int block = 0; block < 2; ++block)
                        for (int part = 0; part < OUTPUTS; part += LANES)
                            store(space.scores.data() + (first + row) * KEYS + key +
                                      block * OUTPUTS + part,
                                  load(space.sums.of[block][row] + part) * factor);
            }
        }
        for (int row = 0; row < task.num_rows; ++row) {
            float* line = space.scores.data() + row * KEYS;
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

    void attend(const Task& task, int g, int from, int count, Softmax& block, Space& space,
                Ahead& next) const {
        const int width = this->width(), num_tiles = round_up(count, PER_TILE) / PER_TILE;
        const int padded = round_up(count, std::max(PER_TILE, 2 * OUTPUTS));
        find_head(g, count, space);
        score(task, g, from, count, space, next);
        for (int row = 0; row < task.num_rows; ++row) {
            float* line = space.scores.data() + row * KEYS;
            Query* weights = space.weights.data() + row * KEYS;
            const int at = g * task.num_rows + row;
            Lanes tops = load(line);
            for (int key = LANES; key < padded; key += LANES) {
                const Lanes x = load(line + key);
                tops = x > tops ? x : tops;
            }
            const float top = std::max(block.top[at], largest(tops));
            if (top == -INFINITY) {
                std::fill(weights, weights + padded, Query{});
                continue;
            }
            Lanes totals = {};
            for (int key = 0; key < padded; key += LANES) {
                Lanes x = exp2_lanes(load(line + key) - top);
                totals += x;
                if (kv_scale) x *= load(space.value_scale + key);
                store(weights + key, x);
            }
            const float shrink = std::exp2(block.top[at] - top);
            block.top[at] = top;
            block.total[at] = block.total[at] * shrink + sum(totals);
            for (int d = 0; d < width; d += LANES)
                store(block.values + at * width + d, load(block.values + at * width + d) * shrink);
        }
        pack_values(num_tiles, space, next);
        for (int first = 0; first < task.num_rows; first += MOST_ROWS) {
            const int some = std::min(MOST_ROWS, task.num_rows - first);
            for (int d = 0; d < width; d += 2 * OUTPUTS) {
                space.unit.template multiply<Numbers>(
                    space.weights.data() + first * KEYS, KEYS, some,
                    space.values.data() + d * num_tiles * TILE_WORDS, num_tiles, space.sums);
                for (int row = 0; row < some; ++row) {
                    float* to = block.values + (g * task.num_rows + first + row) * width + d;
                    for (int part = 0; part < 2 * OUTPUTS; part += LANES)
                        store(to + part, load(to + part) + load(space.sums.of[part / OUTPUTS][row] +
                                                                part % OUTPUTS));
                }
            }
        }
    }

    void run(const Task& task, float* waiting, Space& space) const {
        const int width = this->width(), rows = task.num_rows;
        for (int at = 0; at < shape.G * rows; ++at)
            std::copy_n(q + query_at(task, at / rows, at % rows), shape.D,
                        &space.queries[size_t(at) * width]);
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

    void merge(const Task& task, float* waiting, Space& space) const {
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
            Space space(all.most_rows, shape.G, width());
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
            int num_seqs, int H, int G, int D, int page_len, int most_pages, int window, float scale,
            float softcap) {
    const Shape shape{num_seqs, H, G, D, page_len, most_pages, window, scale, softcap};
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
