// AVX-512 VNNI and AVX2.
#pragma once

#include <immintrin.h>

#include "common.h"

namespace ternary::avx512 {

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

// sum += the dot products of 16 x 4 unsigned and signed bytes. The intrinsic makes GCC 12 keep
// accumulators in memory, which takes twice the time.
AVX512 INLINE void dot(__m512i& sum, __m512i codes, __m512i q) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(q));
}

AVX512 INLINE __m512i four(const int8_t* q) {  // the same 4 inputs for all outputs
    int32_t bytes;
    std::memcpy(&bytes, q, 4);
    return _mm512_set1_epi32(bytes);
}

template <int R>
AVX512 void many_rows(const uint8_t* half0, const uint8_t* half1, const int8_t* q, int64_t,
                      int64_t steps, int32_t* sums) {
    __m512i a[R], b[R];
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) a[r] = b[r] = _mm512_setzero_si512();
    for (int64_t s = 0; s < steps; ++s) {
        const __m512i codes0 = _mm512_load_si512(half0 + s * TILE_BYTES);
        const __m512i codes1 = _mm512_load_si512(half1 + s * TILE_BYTES);
#pragma GCC unroll 14
        for (int r = 0; r < R; ++r) {
            const __m512i inputs = four(q + 4 * (s * R + r));
            dot(a[r], codes0, inputs);
            dot(b[r], codes1, inputs);
        }
    }
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
        _mm512_store_si512(sums + r * PANEL, a[r]);
        _mm512_store_si512(sums + r * PANEL + TILE, b[r]);
    }
}

// The codes of a page ahead are asked for in time: processors themselves stop at its end. Measured
// on a matrix from memory: 0.62 ms in place of 0.85.
constexpr int64_t AHEAD = 4096;

// Codes are masked and not shifted: at bits 2 g they count 4^g times, which the sums make good.
template <int R>
AVX512 void few_rows(const uint8_t* tiles, const int8_t* q, int64_t count, int32_t* sums) {
    constexpr int U = R <= 3 ? 2 : 1;  // tiles at once, so that sums need not wait for each other
    __m512i a[U][4][R];
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g)
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) a[u][g][r] = _mm512_setzero_si512();
    const auto add = [&](__m512i (&sum)[4][R], int64_t t) AVX512 __attribute__((always_inline)) {
        _mm_prefetch(reinterpret_cast<const char*>(tiles + t * TILE_BYTES + AHEAD), _MM_HINT_T0);
        const __m512i tile = _mm512_loadu_si512(tiles + t * TILE_BYTES);
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) {
            const __m512i mask = _mm512_set1_epi8(static_cast<char>(3 << 2 * g));
            const __m512i codes = _mm512_and_si512(tile, mask);
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) dot(sum[g][r], codes, four(q + 4 * ((4 * t + g) * R + r)));
        }
    };
    int64_t t = 0;
    for (; t + U <= count; t += U)
#pragma GCC unroll 2
        for (int u = 0; u < U; ++u) add(a[u], t + u);
    if (t < count) add(a[0], t);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
        __m512i total = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g)
#pragma GCC unroll 2
            for (int u = 0; u < U; ++u)
                total = _mm512_add_epi32(total, _mm512_srai_epi32(a[u][g][r], 2 * g));
        _mm512_store_si512(sums + r * PANEL, total);
    }
}

inline void many(const uint8_t* half0, const uint8_t* half1, const int8_t* q, int64_t rows,
                 int64_t steps, int32_t* sums) {
    static constexpr Dots BY_ROWS[] = {
        many_rows<1>, many_rows<2>,  many_rows<3>,  many_rows<4>,  many_rows<5>,
        many_rows<6>, many_rows<7>,  many_rows<8>,  many_rows<9>,  many_rows<10>,
        many_rows<11>, many_rows<12>, many_rows<13>, many_rows<14>};
    BY_ROWS[rows - 1](half0, half1, q, rows, steps, sums);
}

inline void few(const uint8_t* half0, const uint8_t* half1, const int8_t* q, int64_t rows,
                int64_t steps, int32_t* sums) {
    static constexpr decltype(&few_rows<1>) BY_ROWS[] = {few_rows<1>, few_rows<2>, few_rows<3>,
                                                         few_rows<4>, few_rows<5>, few_rows<6>};
    BY_ROWS[rows - 1](half0, q, steps / 4, sums);
    BY_ROWS[rows - 1](half1, q, steps / 4, sums + TILE);
}

AVX512 inline void widen(const uint8_t* tiles, int64_t columns, uint8_t* wide) {
    const __m512i mask = _mm512_set1_epi8(3);
    for (int64_t t = 0; t < columns; ++t, wide += 4 * TILE_BYTES) {
        const __m512i tile = _mm512_loadu_si512(tiles + t * TILE_BYTES);
        _mm512_store_si512(wide, _mm512_and_si512(tile, mask));
        _mm512_store_si512(wide + 64, _mm512_and_si512(_mm512_srli_epi32(tile, 2), mask));
        _mm512_store_si512(wide + 128, _mm512_and_si512(_mm512_srli_epi32(tile, 4), mask));
        _mm512_store_si512(wide + 192, _mm512_and_si512(_mm512_srli_epi32(tile, 6), mask));
    }
}

AVX512 inline void round(const Job& job, int64_t block) { round_block(job, block); }

AVX512 inline void multiply(const Job& job, const Panel& panel, Dots dots, int64_t block) {
    multiply_block(job, panel, dots, block);
}

AVX512 inline void dequantise(const Matrix& matrix, int64_t output) { dequantise_row(matrix, output); }

constexpr Level LEVEL = {few, many, widen, round, multiply, dequantise};

}  // namespace ternary::avx512

namespace ternary::avx2 {

#define AVX2 __attribute__((target("avx2,fma")))

constexpr int64_t STEPS = 32767 / (2 * 2 * 127);  // of whose products 16 bits hold the sums

// R rows and 16 outputs: products are added in 16 bits, and now and then those in 32 bits.
template <int R>
AVX2 void sixteen(const uint8_t* codes, const int8_t* q, int64_t rows, int64_t steps,
                   int32_t* sums) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int r = 0; r < R; ++r) std::memset(sums + r * PANEL, 0, 4 * TILE);
    for (int64_t s = 0; s < steps;) {
        const int64_t end = steps - s < STEPS ? steps : s + STEPS;
        __m256i part[R][2];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) part[r][0] = part[r][1] = _mm256_setzero_si256();
        for (; s < end; ++s) {
            const auto* const step = reinterpret_cast<const __m256i*>(codes + s * TILE_BYTES);
            const __m256i codes0 = _mm256_loadu_si256(step), codes1 = _mm256_loadu_si256(step + 1);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                int32_t bytes;
                std::memcpy(&bytes, q + 4 * (s * rows + r), 4);
                const __m256i inputs = _mm256_set1_epi32(bytes);
                part[r][0] = _mm256_add_epi16(part[r][0], _mm256_maddubs_epi16(codes0, inputs));
                part[r][1] = _mm256_add_epi16(part[r][1], _mm256_maddubs_epi16(codes1, inputs));
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                auto* const sum = reinterpret_cast<__m256i*>(sums + r * PANEL) + h;
                const __m256i wide = _mm256_madd_epi16(part[r][h], ones);
                _mm256_storeu_si256(sum, _mm256_add_epi32(_mm256_loadu_si256(sum), wide));
            }
    }
}

inline void many(const uint8_t* half0, const uint8_t* half1, const int8_t* q, int64_t rows,
                 int64_t steps, int32_t* sums) {
    by_fours({sixteen<1>, sixteen<2>, sixteen<3>, sixteen<4>}, half0, half1, q, rows, steps, sums);
}

AVX2 inline void widen(const uint8_t* tiles, int64_t columns, uint8_t* wide) {
    widen_tiles(tiles, columns, wide);
}

AVX2 inline void round(const Job& job, int64_t block) { round_block(job, block); }

AVX2 inline void multiply(const Job& job, const Panel& panel, Dots dots, int64_t block) {
    multiply_block(job, panel, dots, block);
}

AVX2 inline void dequantise(const Matrix& matrix, int64_t output) { dequantise_row(matrix, output); }

constexpr Level LEVEL = {nullptr, many, widen, round, multiply, dequantise};

}  // namespace ternary::avx2
