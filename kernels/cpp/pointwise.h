// Numbers as a model of Hugging Face rounds them on the way: to its dtype after every operation.

#pragma once

#include "lanes.h"

// LANES numbers rounded to the nearest Number, ties to even.
template <typename Number>
inline Lanes rounded(Lanes x) {
    if constexpr (std::is_same_v<Number, float>) return x;
    const Words bits = bit_cast<Words>(x);
    return bit_cast<Lanes>((bits + 0x7fff + ((bits >> 16) & 1)) & ~0xffff);
}

// x / (1 + e^-x)
inline Lanes silu(Lanes x) {
    const Lanes zero = {}, size = x < zero ? -x : x;
    const Lanes e = exp2_lanes(size * -1.44269504f);
    return x < zero ? x * e / (1.0f + e) : x / (1.0f + e);
}
