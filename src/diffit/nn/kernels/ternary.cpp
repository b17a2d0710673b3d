// Products of rows, rounded to 8 bits, with packed ternary matrices (W1.58A8); see common.h.
//
// A plain shared library with a C interface, opened by native.py. Rows are rounded in blocks. A few
// rows take the packed codes as they are; for more, those of some outputs are widened to bytes
// once and serve all blocks. The instruction set is chosen when it runs.

#include <algorithm>

#include "common.h"

#if defined(__x86_64__)
#include "x86.h"
#elif defined(__aarch64__)
#include "arm.h"
#endif

#ifdef _OPENMP
#include <omp.h>
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace ternary {

namespace portable {

void many(const uint8_t* half0, const uint8_t* half1, const int8_t* q, int64_t rows, int64_t steps,
          int32_t* sums) {
    std::memset(sums, 0, 4 * rows * PANEL);
    for (int64_t s = 0; s < steps; ++s, half0 += TILE_BYTES, half1 += TILE_BYTES)
        for (int64_t r = 0; r < rows; ++r, q += 4)
            for (int o = 0; o < PANEL; ++o) {
                const uint8_t* const c = (o < TILE ? half0 : half1) + 4 * (o % TILE);
                sums[r * PANEL + o] += c[0] * q[0] + c[1] * q[1] + c[2] * q[2] + c[3] * q[3];
            }
}

void widen(const uint8_t* tiles, int64_t columns, uint8_t* wide) {
    widen_tiles(tiles, columns, wide);
}

void round(const Job& job, int64_t block) { round_block(job, block); }

void multiply(const Job& job, const Panel& panel, Dots dots, int64_t block) {
    multiply_block(job, panel, dots, block);
}

void dequantise(const Matrix& matrix, int64_t output) { dequantise_row(matrix, output); }

constexpr Level LEVEL = {nullptr, many, widen, round, multiply, dequantise};

}  // namespace portable

constexpr int64_t CODE_BYTES = 1 << 19;  // widened codes that stay near a core
constexpr int64_t ROW_BYTES = 1 << 20;   // rounded rows that stay beside them
constexpr int64_t MIN_BLOCKS = 16;       // of rows, for which codes are worth widening again
constexpr int MAX_PANELS = 4;            // that a block of rows meets in turn

// Level `index` of this machine, the slowest first; null where there is none.
const Level* level_of(int index) {
    if (index == 0) return &portable::LEVEL;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2");
    const bool avx512 = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
    if (index == 1 && avx2) return &avx2::LEVEL;
    if (index == 2 && avx2 && avx512) return &avx512::LEVEL;
#elif defined(__aarch64__)
    if (index == 1 && neon::supported()) return &neon::LEVEL;
#endif
    return nullptr;
}

// Takes pieces of the caller's memory, each at a multiple of 64 bytes.
struct Memory {
    uint8_t* start;
    int64_t used = 0;

    template <typename T>
    T* take(int64_t count) {
        uint8_t* const piece = start ? start + used : nullptr;
        used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        return reinterpret_cast<T*>(piece);
    }
};

void divide(Job& job, Memory& memory) {
    job.columns = (job.inputs + TILE - 1) / TILE;
    job.blocks = (job.rows + MAX_ROWS - 1) / MAX_ROWS;
    job.height = (job.rows + job.blocks - 1) / job.blocks;
    job.rounded = memory.take<int8_t>(job.rows * job.padded());
    job.row_scale = memory.take<float>(job.rows);
    job.row_sum = memory.take<int32_t>(job.rows * job.groups);
}

// What a thread needs for the panels that it multiplies with in turn.
struct Workspace {
    int64_t panels;
    uint8_t* wide;  // (panels, 2, padded / 4, 64)
    float* scale;   // (panels, groups, 32)
    float* bias;    // (panels, 32)

    Workspace(const Job& job, Memory& memory) {
        const int64_t fit = CODE_BYTES / (PANEL * job.padded());
        panels = fit < 1 ? 1 : fit < MAX_PANELS ? fit : MAX_PANELS;
        wide = memory.take<uint8_t>(panels * PANEL * job.padded());
        scale = memory.take<float>(panels * job.groups * PANEL);
        bias = memory.take<float>(panels * PANEL);
    }

    // Panel `index` of the matrix in place `i`.
    Panel prepare(const Job& job, const Level& level, bool packed, int64_t index, int64_t i) const {
        Panel panel;
        const int64_t first = index * PANEL, left = job.outputs - first;
        panel.first = first;
        panel.count = left < PANEL ? left : PANEL;
        panel.step_bytes = packed ? TILE_BYTES / 4 : TILE_BYTES;
        for (int h = 0; h < 2; ++h) {
            // Without a second row of tiles the first one serves twice, and its sums go nowhere.
            const int64_t row = 2 * index + (panel.count > TILE ? h : 0);
            const uint8_t* const tiles = job.tiles + row * job.columns * TILE_BYTES;
            uint8_t* const half = wide + (2 * i + h) * TILE * job.padded();
            if (!packed) level.widen(tiles, job.columns, half);
            panel.half[h] = packed ? tiles : half;
        }
        float* const a = scale + i * job.groups * PANEL;
        float* const b = bias + i * PANEL;
        for (int o = 0; o < PANEL; ++o) {
            const bool inside = o < panel.count;
            const int64_t row = job.scale_rows == 1 ? 0 : first + o;
            for (int64_t g = 0; g < job.groups; ++g)
                a[g * PANEL + o] = inside ? job.scale[row * job.groups + g] : 0;
            b[o] = inside && job.bias ? job.bias[first + o] : 0;
        }
        panel.scale = a;
        panel.bias = b;
        return panel;
    }
};

void multiply_panels(const Job& job, const Level& level, const Workspace& space, int64_t first,
                     int64_t last) {
    const bool packed = level.few && job.rows <= MAX_FEW;
    const Dots dots = packed ? level.few : level.many;
    const int64_t near = std::max<int64_t>(MIN_BLOCKS, ROW_BYTES / (job.height * job.padded()));
    for (int64_t start = 0; start < job.blocks; start += near) {
        const int64_t end = std::min(job.blocks, start + near);
        for (int64_t p = first; p < last; p += space.panels) {
            const int64_t count = std::min(last - p, space.panels);
            Panel panels[MAX_PANELS];
            for (int64_t i = 0; i < count; ++i)
                panels[i] = space.prepare(job, level, packed, p + i, i);
            for (int64_t block = start; block < end; ++block)
                for (int64_t i = 0; i < count; ++i) level.multiply(job, panels[i], dots, block);
        }
    }
}

int64_t workspace_bytes(const Job& job) {
    Memory memory{nullptr};
    Workspace(job, memory);
    return memory.used;
}

void run(const Job& job, const Level& level, const Memory& memory, int threads) {
    const int64_t panels = (job.outputs + PANEL - 1) / PANEL;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int64_t thread = 0, team = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num();
        team = omp_get_num_threads();
#pragma omp for schedule(static)
#endif
        for (int64_t block = 0; block < job.blocks; ++block) level.round(job, block);
        Memory own{memory.start, memory.used + thread * workspace_bytes(job)};
        const Workspace space(job, own);
        multiply_panels(job, level, space, panels * thread / team, panels * (thread + 1) / team);
    }
}

}  // namespace ternary

// Goes up with every change of this interface.
EXPORT int diffit_ternary_version() { return 2; }

// Number of instruction sets that this machine has; they go from 0, portable, to the fastest.
EXPORT int diffit_ternary_levels() {
    int count = 0;
    while (ternary::level_of(count)) ++count;
    return count;
}

// Bytes of working memory that a product needs.
EXPORT int64_t diffit_ternary_memory(int64_t rows, int64_t inputs, int64_t outputs, int64_t groups,
                                     int threads) {
    ternary::Job job{};
    job.rows = rows;
    job.inputs = inputs;
    job.outputs = outputs;
    job.groups = groups;
    ternary::Memory memory{nullptr};
    ternary::divide(job, memory);
    return 64 + memory.used + threads * ternary::workspace_bytes(job);
}

// y = x (a W)^T + b. Groups are of a multiple of 16 inputs, or there is one; rows, inputs and
// outputs are at least 1, inputs at most 2^18, so that no sum overflows.
EXPORT void diffit_ternary_linear(const void* x, const uint8_t* tiles, const float* scale,
                                  const float* bias, void* y, void* memory, int64_t rows,
                                  int64_t inputs, int64_t outputs, int64_t scale_rows,
                                  int64_t groups, int dtype, int threads, int level) {
    ternary::Job job{};
    job.x = x;
    job.tiles = tiles;
    job.scale = scale;
    job.bias = bias;
    job.y = y;
    job.rows = rows;
    job.inputs = inputs;
    job.outputs = outputs;
    job.scale_rows = scale_rows;
    job.groups = groups;
    job.dtype = dtype;
    const auto start = (reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64;
    ternary::Memory pieces{reinterpret_cast<uint8_t*>(start)};
    ternary::divide(job, pieces);
    ternary::run(job, *ternary::level_of(level), pieces, threads);
}

// (outputs, inputs) weights a W; groups as above.
EXPORT void diffit_ternary_weights(const uint8_t* tiles, const float* scale, void* weights,
                                   int64_t outputs, int64_t inputs, int64_t scale_rows,
                                   int64_t groups, int dtype, int threads, int level) {
    const ternary::Matrix matrix{tiles,  scale,      weights, outputs,
                                 inputs, scale_rows, groups,  dtype};
    const auto dequantise = ternary::level_of(level)->dequantise;
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t output = 0; output < outputs; ++output) dequantise(matrix, output);
}
