// Reading pages ahead of time: they lie anywhere, so the processor cannot guess what comes next.

#pragma once

#include <cstddef>
#include <cstdint>

// Has the processor fetch memory long before it is read, a few cache lines at a time: all heads of
// the positions from `key` to `end`.
struct Ahead {
    const char* cache;
    const int32_t* pages;
    size_t row_bytes;
    int page_len, key, end;
    const char *line = nullptr, *row_end = nullptr;

    void fetch(int num_lines) {
        for (; num_lines > 0; --num_lines, line += 64) {
            if (line >= row_end) {
                if (key >= end) return;
                const size_t place = size_t(pages[key / page_len]) * page_len + key % page_len;
                line = cache + place * row_bytes;
                row_end = line + row_bytes;
                ++key;
            }
            __builtin_prefetch(line);
        }
    }
};
