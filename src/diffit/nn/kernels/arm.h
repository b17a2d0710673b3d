// NEON with integer dot products (ARMv8.2; all 64-bit processors of Apple, servers since 2019).
#pragma once

#include <arm_neon.h>

#include "common.h"
#ifdef __linux__
#include <sys/auxv.h>
#endif

namespace ternary::neon {

#ifdef __clang__
#define DOTPROD __attribute__((target("dotprod")))
#else
#define DOTPROD __attribute__((target("+dotprod")))
#endif

inline bool supported() {
#if defined(__APPLE__)
    return true;
#elif defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#else
    return false;
#endif
}

template <int R>
DOTPROD void sixteen(const uint8_t* codes, const int8_t* q, int64_t rows, int64_t steps,
                     int32_t* sums) {
    int32x4_t total[R][4];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int o = 0; o < 4; ++o) total[r][o] = vdupq_n_s32(0);
    for (int64_t s = 0; s < steps; ++s) {
        int8x16_t four[4];
#pragma GCC unroll 4
        for (int o = 0; o < 4; ++o)
            four[o] = vreinterpretq_s8_u8(vld1q_u8(codes + s * TILE_BYTES + 16 * o));
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            int32_t bytes;
            std::memcpy(&bytes, q + 4 * (s * rows + r), 4);
            const int8x16_t inputs = vreinterpretq_s8_s32(vdupq_n_s32(bytes));
#pragma GCC unroll 4
            for (int o = 0; o < 4; ++o) total[r][o] = vdotq_s32(total[r][o], four[o], inputs);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int o = 0; o < 4; ++o) vst1q_s32(sums + r * PANEL + 4 * o, total[r][o]);
}

inline void many(const uint8_t* half0, const uint8_t* half1, const int8_t* q, int64_t rows,
                 int64_t steps, int32_t* sums) {
    by_fours({sixteen<1>, sixteen<2>, sixteen<3>, sixteen<4>}, half0, half1, q, rows, steps, sums);
}

inline void widen(const uint8_t* tiles, int64_t columns, uint8_t* wide) {
    widen_tiles(tiles, columns, wide);
}

inline void round(const Job& job, int64_t block) { round_block(job, block); }

inline void multiply(const Job& job, const Panel& panel, Dots dots, int64_t block) {
    multiply_block(job, panel, dots, block);
}

inline void dequantise(const Matrix& matrix, int64_t output) { dequantise_row(matrix, output); }

constexpr Level LEVEL = {nullptr, many, widen, round, multiply, dequantise};

}  // namespace ternary::neon
