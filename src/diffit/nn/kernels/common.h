// What all instruction sets share: sizes and memory of a product, rounding of rows, the epilogue.
//
//   y[m, o] = s[m] a[o] (sum_k c[o, k] q[m, k] - sum_k q[m, k]) + b[o]
//
// with codes c = W + 1 in {0, 1, 2}, and rows x[m] = s[m] q[m] rounded to integers q in -127..127.
// With groups of inputs, a and both sums are those of a group, and groups are added in float32.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

// Into a function of an instruction set, whose vectors the compiler then uses for it.
#define INLINE __attribute__((always_inline)) inline

namespace ternary {

constexpr int TILE = 16;         // outputs and inputs of a tile
constexpr int TILE_BYTES = 64;   // of 2-bit codes; 4 inputs of 16 outputs, widened, take as many
constexpr int PANEL = 2 * TILE;  // outputs that are multiplied with at once
constexpr int MAX_ROWS = 14;     // rows of a block: with 32 outputs, 28 of 32 vector registers
constexpr int MAX_FEW = 6;       // rows for which codes are not widened first

enum Dtype : int { FLOAT32 = 0, BFLOAT16 = 1 };

// 16 numbers, in as many vectors as an instruction set needs for them.
typedef int32_t Ints __attribute__((vector_size(4 * TILE)));
typedef uint32_t Words __attribute__((vector_size(4 * TILE)));
typedef int16_t Shorts __attribute__((vector_size(2 * TILE)));
typedef uint16_t Halves __attribute__((vector_size(2 * TILE)));
typedef float Floats __attribute__((vector_size(4 * TILE)));
typedef int8_t Bytes __attribute__((vector_size(TILE)));

struct Job {
    const void* x;         // (rows, inputs)
    const uint8_t* tiles;  // (outputs / 16, inputs / 16, 64), rounded up
    const float* scale;    // a (scale_rows, groups)
    const float* bias;     // b (outputs) or null
    void* y;               // (rows, outputs), of the dtype of x
    int64_t rows, inputs, outputs, scale_rows, groups;
    int dtype;

    int64_t columns;   // tiles over the inputs
    int64_t blocks;    // of rows
    int64_t height;    // rows of a block; the last may have less
    int8_t* rounded;   // q, block by block: [input / 4][row][4], inputs padded by 0
    float* row_scale;  // s (rows)
    int32_t* row_sum;  // sum of q (rows, groups)

    int64_t padded() const { return columns * TILE; }
    int64_t group() const { return inputs / groups; }
    int64_t first_row(int64_t block) const { return block * height; }
    int64_t rows_of(int64_t block) const {
        const int64_t left = rows - first_row(block);
        return left < height ? left : height;
    }
};

// 32 outputs: two rows of tiles, packed or widened, with their scales and biases.
struct Panel {
    const uint8_t* half[2];
    int64_t step_bytes;    // of a half, for 4 inputs: 16 packed, 64 widened
    int64_t first, count;  // outputs
    const float* scale;    // (groups, 32)
    const float* bias;     // (32)
};

// sums[r, o] = sum of c[o, k] q[r, k] over 4 * steps inputs, for some rows and 32 outputs.
using Dots = void (*)(const uint8_t* half0, const uint8_t* half1, const int8_t* q, int64_t rows,
                      int64_t steps, int32_t* sums);

// A matrix of (outputs, inputs) weights a W to be written in full precision.
struct Matrix {
    const uint8_t* tiles;
    const float* scale;  // a (scale_rows, groups)
    void* weights;
    int64_t outputs, inputs, scale_rows, groups;
    int dtype;
};

// What an instruction set offers.
struct Level {
    Dots few;   // of packed codes, up to MAX_FEW rows; or null
    Dots many;  // of widened codes, up to MAX_ROWS rows
    void (*widen)(const uint8_t* tiles, int64_t columns, uint8_t* wide);
    void (*round)(const Job&, int64_t block);
    void (*multiply)(const Job&, const Panel&, Dots, int64_t block);
    void (*dequantise)(const Matrix&, int64_t output);
};

// Inputs k .. k + 15 of a row, beyond its end 0.
INLINE Floats sixteen_of(const Job& job, int64_t row, int64_t k) {
    const int64_t place = row * job.inputs + k;
    const int64_t count = job.inputs - k < TILE ? job.inputs - k : TILE;
    Floats values = {};
    if (job.dtype == FLOAT32) {
        const float* const x = static_cast<const float*>(job.x) + place;
        if (count == TILE) {
            std::memcpy(&values, x, sizeof values);
        } else {
            std::memcpy(&values, x, 4 * count);
        }
        return values;
    }
    Halves halves = {};
    const uint16_t* const x = static_cast<const uint16_t*>(job.x) + place;
    if (count == TILE) {
        std::memcpy(&halves, x, sizeof halves);
    } else {
        std::memcpy(&halves, x, 2 * count);
    }
    const Words bits = __builtin_convertvector(halves, Words) << 16;
    std::memcpy(&values, &bits, sizeof values);
    return values;
}

// The largest absolute value of a row, NaN if one is not finite.
INLINE float largest(const Job& job, int64_t row) {
    Words top = {};  // as integers, the bits of infinities and NaN exceed those of numbers
    for (int64_t k = 0; k < job.inputs; k += TILE) {
        const Floats values = sixteen_of(job, row, k);
        Words bits;
        std::memcpy(&bits, &values, sizeof bits);
        bits &= 0x7fffffff;
        top = bits > top ? bits : top;
    }
    uint32_t most = 0;
    for (int i = 0; i < TILE; ++i) most = top[i] > most ? top[i] : most;
    float value;
    std::memcpy(&value, &most, 4);
    return most < 0x7f800000 ? value : NAN;
}

// Rounds a block of rows: q, s and the sums of q.
INLINE void round_block(const Job& job, int64_t block) {
    const int64_t rows = job.rows_of(block);
    int8_t* const rounded = job.rounded + job.first_row(block) * job.padded();
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = job.first_row(block) + r;
        const float top = largest(job, row);
        // Rows of zeros, or too small for an inverse, become zeros; so do those without a number.
        const float inverse = std::fmin(127.0f / top, FLT_MAX);
        job.row_scale[row] = top / 127.0f;
        for (int64_t g = 0, k = 0; g < job.groups; ++g) {
            Ints sums = {};
            const int64_t end = (g + 1) * job.group();
            for (; k < end; k += TILE) {
                const Floats values = top == top ? sixteen_of(job, row, k) : Floats{};
                // Added to 1.5 * 2^23, a number is rounded to the nearest integer, halves to even.
                const Floats shifted = values * inverse + 12582912.0f;
                Ints q;
                std::memcpy(&q, &shifted, sizeof q);
                q -= 0x4b400000;
                sums += q;
                // In two steps: GCC 12 takes numbers to bytes one by one.
                const Shorts shorts = __builtin_convertvector(q, Shorts);
                const Bytes bytes = __builtin_convertvector(shorts, Bytes);
                for (int i = 0; i < 4; ++i) {
                    int32_t four;
                    std::memcpy(&four, reinterpret_cast<const int8_t*>(&bytes) + 4 * i, 4);
                    std::memcpy(rounded + (k + 4 * i) * rows + 4 * r, &four, 4);
                }
            }
            int32_t sum = 0;
            for (int i = 0; i < TILE; ++i) sum += sums[i];
            job.row_sum[row * job.groups + g] = sum;
        }
    }
}

// 16 numbers, rounded to nearest, halves to even.
INLINE void to_bfloat16(const float* values, uint16_t* out) {
    Words bits;
    std::memcpy(&bits, values, sizeof bits);
    const Words nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const Words is_nan = Words((bits & 0x7fffffff) > 0x7f800000);
    const Halves halves =
        __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & nearest), Halves);
    std::memcpy(out, &halves, sizeof halves);
}

// Into the place of `count` numbers of a dtype; most often all N.
template <int N>
INLINE void store(void* numbers, int dtype, int64_t place, const float (&values)[N],
                  int64_t count) {
    if (dtype == FLOAT32) {
        float* const out = static_cast<float*>(numbers) + place;
        if (count == N) {
            std::memcpy(out, values, 4 * N);
        } else {
            std::memcpy(out, values, 4 * count);
        }
        return;
    }
    uint16_t half[N];
    for (int i = 0; i < N; i += TILE) to_bfloat16(values + i, half + i);
    uint16_t* const out = static_cast<uint16_t*>(numbers) + place;
    if (count == N) {
        std::memcpy(out, half, 2 * N);
    } else {
        std::memcpy(out, half, 2 * count);
    }
}

// A panel's part of the product, for the rows of a block.
INLINE void multiply_block(const Job& job, const Panel& panel, Dots dots, int64_t block) {
    const int64_t rows = job.rows_of(block), first = job.first_row(block);
    const int8_t* const rounded = job.rounded + first * job.padded();
    alignas(64) int32_t sums[MAX_ROWS * PANEL];
    alignas(64) float total[MAX_ROWS * PANEL];
    for (int64_t g = 0; g < job.groups; ++g) {
        const int64_t start = g * job.group();
        const int64_t end = g + 1 == job.groups ? job.padded() : start + job.group();
        const int64_t offset = start / 4 * panel.step_bytes;
        dots(panel.half[0] + offset, panel.half[1] + offset, rounded + start * rows,
             rows, (end - start) / 4, sums);
        const float* const scale = panel.scale + g * PANEL;
        for (int64_t r = 0; r < rows; ++r) {
            const int32_t row_sum = job.row_sum[(first + r) * job.groups + g];
            for (int o = 0; o < PANEL; ++o) {
                const int64_t i = r * PANEL + o;
                const float part = static_cast<float>(sums[i] - row_sum) * scale[o];
                total[i] = g ? total[i] + part : part;
            }
        }
    }
    for (int64_t r = 0; r < rows; ++r) {
        alignas(64) float values[PANEL];
        const float s = job.row_scale[first + r];
        for (int o = 0; o < PANEL; ++o) values[o] = total[r * PANEL + o] * s + panel.bias[o];
        store(job.y, job.dtype, (first + r) * job.outputs + panel.first, values, panel.count);
    }
}

// Dot products of at most 4 rows and 16 outputs, and with them those of more rows and 32 outputs.
using Sixteen = void (*)(const uint8_t* codes, const int8_t* q, int64_t rows, int64_t steps,
                         int32_t* sums);

inline void by_fours(const Sixteen (&by_rows)[4], const uint8_t* half0, const uint8_t* half1,
                     const int8_t* q, int64_t rows, int64_t steps, int32_t* sums) {
    for (int64_t r = 0; r < rows; r += 4) {
        const Sixteen dots = by_rows[rows - r < 4 ? rows - r - 1 : 3];
        dots(half0, q + 4 * r, rows, steps, sums + r * PANEL);
        dots(half1, q + 4 * r, rows, steps, sums + r * PANEL + TILE);
    }
}

// The weights of an output.
INLINE void dequantise_row(const Matrix& matrix, int64_t output) {
    const Words shifts = {0, 8, 16, 24, 2, 10, 18, 26, 4, 12, 20, 28, 6, 14, 22, 30};
    const int64_t columns = (matrix.inputs + TILE - 1) / TILE;
    const int64_t columns_per_group = columns / matrix.groups;
    const uint8_t* tile = matrix.tiles + output / TILE * columns * TILE_BYTES;
    const float* scale = matrix.scale + (matrix.scale_rows == 1 ? 0 : output * matrix.groups);
    for (int64_t t = 0, end = 0; t < columns; ++scale)
        for (end += columns_per_group; t < end; ++t, tile += TILE_BYTES) {
            uint32_t bytes;  // byte j has at bits 2 g the code of input 4 g + j
            std::memcpy(&bytes, tile + 4 * (output % TILE), 4);
            const Ints weights = Ints((bytes - Words{}) >> shifts & 3) - 1;
            const Floats scaled = __builtin_convertvector(weights, Floats) * *scale;
            float values[TILE];
            std::memcpy(values, &scaled, sizeof values);
            const int64_t k = t * TILE, left = matrix.inputs - k;
            store(matrix.weights, matrix.dtype, output * matrix.inputs + k, values,
                  left < TILE ? left : TILE);
        }
}

// A row of tiles, a byte a code: [input / 4][output][4].
INLINE void widen_tiles(const uint8_t* tiles, int64_t columns, uint8_t* wide) {
    for (int64_t t = 0; t < columns; ++t, tiles += TILE_BYTES)
        for (int g = 0; g < 4; ++g, wide += TILE_BYTES)
            for (int i = 0; i < TILE_BYTES; ++i) wide[i] = tiles[i] >> 2 * g & 3;
}

}  // namespace ternary
