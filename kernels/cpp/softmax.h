// A softmax that is kept as it goes, and merged with others of the same rows.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

// The softmax of some rows over some keys: largest score, sum of exponentials, weighted values.
struct Softmax {
    float *top, *total, *values;
    int rows, width;

    Softmax(float* memory, int rows, int width)
        : top(memory), total(memory + rows), values(memory + 2 * rows), rows(rows), width(width) {}

    static size_t size(int rows, int width) { return size_t(rows) * (2 + width); }

    void clear() {
        std::fill(top, top + rows, -INFINITY);
        std::fill(total, total + rows * (1 + width), 0.0f);
    }

    void merge(const Softmax& other) {
        for (int row = 0; row < rows; ++row) {
            if (other.top[row] == -INFINITY) continue;
            const float highest = std::max(top[row], other.top[row]);
            const float mine = std::exp2(top[row] - highest);
            const float theirs = std::exp2(other.top[row] - highest);
            top[row] = highest;
            total[row] = mine * total[row] + theirs * other.total[row];
            for (int at = row * width; at < (row + 1) * width; ++at)
                values[at] = mine * values[at] + theirs * other.values[at];
        }
    }
};
