// The processor's matrix unit (Intel AMX), where it has one and the system lets us use it.

#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)
#define HAS_MATRIX_UNIT 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

// Asks the system once: the unit's registers are large, and Linux saves them only on request.
inline bool may_use_matrix_unit() {
    static const bool allowed = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
    return allowed;
}

// The tiles of one thread: 0 to 3 hold sums, 4 and 5 left rows, 6 and 7 weights.
class MatrixUnit {
    struct alignas(64) Shapes {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    };
    int rows = 0;

   public:
    // Sets the tiles up for products of 1 to 32 rows.
    void set_rows(int wanted) {
        if (wanted == rows) return;
        rows = wanted;
        const int first = std::min(rows, 16), second = std::max(rows - 16, 1);
        const int tile_rows[8] = {first, first, second, second, first, second, 16, 16};
        Shapes shapes;
        for (int tile = 0; tile < 8; ++tile) {
            shapes.rows[tile] = uint8_t(tile_rows[tile]);
            shapes.row_bytes[tile] = 64;
        }
        _tile_loadconfig(&shapes);
    }

    // Leaves the unit as it was found; other users set it up for themselves.
    ~MatrixUnit() {
        if (rows) _tile_release();
    }
};

#else
#define HAS_MATRIX_UNIT 0
inline bool may_use_matrix_unit() { return false; }
struct MatrixUnit {};
#endif
