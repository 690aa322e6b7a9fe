// How Python calls: every exported function takes an array of words, one for each argument.
//
// One signature for all, so that calls can be written down and repeated (tape.cpp).

#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

union Word {
    void* pointer;
    int64_t integer;
    double real;
};

template <typename T>
inline T argument(Word word) {
    if constexpr (std::is_pointer_v<T>)
        return static_cast<T>(word.pointer);
    else if constexpr (std::is_floating_point_v<T>)
        return T(word.real);
    else
        return T(word.integer);
}

template <typename... Arguments, size_t... AT>
inline void call(void (*function)(Arguments...), const Word* words, std::index_sequence<AT...>) {
    function(argument<Arguments>(words[AT])...);
}

template <typename... Arguments>
inline void call(void (*function)(Arguments...), const Word* words) {
    call(function, words, std::index_sequence_for<Arguments...>());
}

#define EXPORT(NAME, ...) \
    extern "C" void NAME(const Word* words) { call(__VA_ARGS__, words); }
