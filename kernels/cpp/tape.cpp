// Runs the calls of a tape (kernels/tape.py), one after the other.

#include "abi.h"

namespace {

struct Call {
    void (*function)(const Word*);
    const Word* words;
};

void run(const Call* calls, int count) {
    for (int at = 0; at < count; ++at) calls[at].function(calls[at].words);
}

}  // namespace

EXPORT(run_tape, run)
