// y = softmax(q·kᵀ/√d)·v for each head, forward and backward, without ever storing the scores.
//
// Forward: a block takes some queries of one head and walks the keys in tiles, with the softmax's running maximum and
// sum (FlashAttention: Dao et al. 2022). It saves of each query that maximum m·log₂e/√d and 1/Σe^(s − m), not their
// logarithm: of scores in the thousands a sum with a logarithm keeps too few digits.
//
// Backward computes the scores again. With P the softmax, dP = dy·vᵀ and D = rowsum(dy∘y) (= rowsum(P∘dP)):
// dS = P∘(dP − D), dq = dS·k/√d, dk = dSᵀ·q/√d, dv = Pᵀ·dy. One kernel walks the keys for a block of queries and gives
// dq; another walks a part of the queries for a block of keys and gives what that part adds to dk and dv, which
// `sum_partials` adds up. This costs 7 products where one kernel with atomic additions would need 5, and gives the
// same bits every time.
//
// Half precision with d of at most 64 uses the tensor cores: P and dS are rounded to the type for their products, all
// else is f32. Float32, and wider heads, use plain multiply-adds. Either pads d with zeros to the next of 16, 32, 64
// or 128, so any d up to 128 works, and moves 16 bytes at a time where d and the addresses allow it.
#include <common.cuh>
#include <ptx.cuh>
#include <windows.cuh>

constexpr int kThreads = 128;
constexpr unsigned kAllLanes = 0xffffffffu;

// A running maximum stays until a score is more than 2^kSlack times as large in the softmax: what was summed up under
// it needs no new factor then, and no sum comes near the end of its range.
constexpr float kSlack = 8.0f;

// The sizes of a problem, and 1/√d.
struct Sizes {
    int queries, keys, c, d;
    float scale;

    // log₂e/√d, which turns a score into a power of two.
    __device__ float exponent() const { return scale * 1.44269504f; }
};

// The part of head blockIdx.y of sample blockIdx.z in x (samples, rows, width).
template <class T> __device__ inline T* head_of(T* x, int rows, int width, int d) {
    return x + static_cast<size_t>(blockIdx.z) * rows * width + blockIdx.y * d;
}

// The same in numbers of which each row has one: (samples, heads, rows).
template <class T> __device__ inline T* rows_of(T* x, int rows) {
    return x + (static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y) * rows;
}

// What backward needs of a query: the two statistics of forward and D.
struct alignas(16) Row { float most, factor, dot, unused; };

// Tiles of 16-bit numbers in shared memory and products of them on the tensor cores.
namespace tensor {

constexpr int kWarps = kThreads / kWarp;

// Where a tile with rows of DIM numbers has a number. The groups of 8 of a row change places so that the 8 rows that
// ldmatrix reads at a time lie in different banks.
template <int DIM> __device__ inline int place(int row, int column) {
    constexpr int kGroups = DIM / 8, kRowsOf128Bytes = 64 / DIM;
    return row * DIM + ((column / 8) ^ (row / kRowsOf128Bytes % kGroups)) * 8 + column % 8;
}

// Starts to fill a tile of ROWS rows with `rows` rows of d numbers, and zeros.
template <int DIM, int ROWS, class T>
__device__ inline void load_tile(T* tile, const T* from, int rows, int stride, int d, bool vectors) {
    constexpr int kGroups = DIM / 8;
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * kGroups; i += kThreads) {
        const int row = i / kGroups, column = i % kGroups * 8;
        T* to = tile + place<DIM>(row, column);
        const T* at = from + static_cast<size_t>(row) * stride + column;
        if (vectors) {
            const bool valid = row < rows && column < d;
            cp_async_16(to, valid ? at : from, valid);
        } else {
            for (int j = 0; j < 8; ++j) to[j] = row < rows && column + j < d ? at[j] : from_float<T>(0.0f);
        }
    }
}

// The stage of KEYS keys and their values from key `from` on: two take turns.
template <int DIM, int KEYS, class T> __device__ inline T* stage_of(T* stages, int from) {
    return stages + from / KEYS % 2 * (2 * KEYS * DIM);
}

// Starts to fill a stage from the rows of kv.
template <int DIM, int KEYS, class T>
__device__ inline void load_keys(T* stage, const T* kv, int from, const Sizes& sizes, bool vectors) {
    const T* k = kv + static_cast<size_t>(from) * 2 * sizes.c;
    load_tile<DIM, KEYS>(stage, k, sizes.keys - from, 2 * sizes.c, sizes.d, vectors);
    load_tile<DIM, KEYS>(stage + KEYS * DIM, k + sizes.c, sizes.keys - from, 2 * sizes.c, sizes.d, vectors);
    cp_async_commit();
}

// Stores the ROWS rows from `first` on, which are one warp's, of a tile: those below `rows`, of d numbers. Lane i knows of
// row first + i where it goes.
template <int DIM, int ROWS, class T>
__device__ inline void store_rows(const T* tile, int first, T* to, int target, int rows, int stride, int d,
                                  bool vectors) {
    constexpr int kGroups = DIM / 8;
    __syncwarp();
#pragma unroll
    for (int i = threadIdx.x % kWarp; i < ROWS * kGroups; i += kWarp) {
        const int row = first + i / kGroups, column = i % kGroups * 8;
        const T* from = tile + place<DIM>(row, column);
        T* at = to + static_cast<size_t>(__shfl_sync(kAllLanes, target, i / kGroups)) * stride + column;
        if (row >= rows || column >= d) continue;
        if (vectors) {
            *reinterpret_cast<Pack<T, 8>*>(at) = *reinterpret_cast<const Pack<T, 8>*>(from);
        } else {
            for (int j = 0; j < min(8, d - column); ++j) at[j] = from[j];
        }
    }
}

// The factor a of a product: rows and columns of a tile, 16 of each.
template <int DIM, class T> __device__ inline void load_a(unsigned (&a)[4], const T* tile, int row, int column) {
    const int lane = threadIdx.x % kWarp;
    ldmatrix_x4(a, tile + place<DIM>(row + lane % 16, column + lane / 16 * 8));
}

// The factors b of two products side by side, 16 rows and 16 columns, whose columns are rows of a tile.
template <int DIM, class T>
__device__ inline void load_b_columns(unsigned (&b)[2][2], const T* tile, int row, int column) {
    const int lane = threadIdx.x % kWarp;
    unsigned r[4];
    ldmatrix_x4(r, tile + place<DIM>(row + lane / 16 * 8 + lane % 8, column + lane / 8 % 2 * 8));
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

// The same where their rows are rows of the tile.
template <int DIM, class T>
__device__ inline void load_b_rows(unsigned (&b)[2][2], const T* tile, int row, int column) {
    const int lane = threadIdx.x % kWarp;
    unsigned r[4];
    ldmatrix_x4_trans(r, tile + place<DIM>(row + lane % 16, column + lane / 16 * 8));
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

__device__ inline unsigned rounded(float x, float y, __half) {
    const __half2 pair = __floats2half2_rn(x, y);
    unsigned bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}
__device__ inline unsigned rounded(float x, float y, __nv_bfloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
    unsigned bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

// Two products side by side, rounded, as the factor a of another one: the lanes hold its numbers already.
template <class T> __device__ inline void as_a(unsigned (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = rounded(left[0], left[1], T{});
    a[1] = rounded(left[2], left[3], T{});
    a[2] = rounded(right[0], right[1], T{});
    a[3] = rounded(right[2], right[3], T{});
}

// A warp takes 16·TILES queries. Of each 16 a lane holds, in a product, columns lane % 4 · 2 and the next of every 8,
// of rows lane / 4 (numbers 0 and 1) and lane / 4 + 8 (numbers 2 and 3).
//
// Shared memory: the block's queries; two stages of a tile of keys and one of values.
template <int DIM, int TILES, class T>
__device__ void forward(const T* q, const T* kv, T* y, float* statistics, Sizes sizes, Windows windows) {
    constexpr int kQueries = 16 * TILES * kWarps, kKeys = 64, kSteps = DIM / 16;
    const int lane = threadIdx.x % kWarp, first = threadIdx.x / kWarp * 16 * TILES, start = blockIdx.x * kQueries;
    const int keys = sizes.keys, c = sizes.c, d = sizes.d, queries = sizes.queries - start;
    const bool vectors = aligned<T>(d, q, kv, y);
    q = head_of(q, sizes.queries, c, d) + static_cast<size_t>(start) * c;
    y = head_of(y, sizes.queries, c, d);
    kv = head_of(kv, keys, 2 * c, d);

    T* tile_q = shared_memory<T>();
    T* stages = tile_q + kQueries * DIM;
    const auto load_stage = [&](int from) {
        load_keys<DIM, kKeys>(stage_of<DIM, kKeys>(stages, from), kv, from, sizes, vectors);
    };
    load_tile<DIM, kQueries>(tile_q, q, queries, c, d, vectors);
    load_stage(0);

    const float exponent = sizes.exponent(), slack = kSlack / exponent;
    unsigned a[TILES][kSteps][4];
    float o[TILES][DIM / 8][4] = {}, most[TILES][2], sum[TILES][2] = {};
#pragma unroll
    for (int t = 0; t < TILES; ++t) most[t][0] = most[t][1] = -INFINITY;

    for (int from = 0; from < keys; from += kKeys) {
        cp_async_wait<0>();
        __syncthreads();  // This stage has arrived, and nobody reads the other one any more.
        if (from == 0) {
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
#pragma unroll
                for (int step = 0; step < kSteps; ++step) load_a<DIM>(a[t][step], tile_q, first + 16 * t, 16 * step);
            }
        }
        if (from + kKeys < keys) load_stage(from + kKeys);
        const T* tile_k = stage_of<DIM, kKeys>(stages, from);
        const T* tile_v = tile_k + kKeys * DIM;

        float s[TILES][kKeys / 8][4] = {};
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
            for (int n = 0; n < kKeys / 16; ++n) {
                unsigned b[2][2];
                load_b_columns<DIM>(b, tile_k, 16 * n, 16 * step);
#pragma unroll
                for (int t = 0; t < TILES; ++t) {
                    mma_m16n16k16(s[t][2 * n], s[t][2 * n + 1], a[t][step], b, T{});
                }
            }
        }
        if (from + kKeys > keys) {
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const bool missing = from + 8 * n + lane % 4 * 2 + i % 2 >= keys;
#pragma unroll
                    for (int t = 0; t < TILES; ++t) s[t][n][i] = missing ? -INFINITY : s[t][n][i];
                }
            }
        }

        float top[TILES][2];
        bool grew = false;
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float x = s[t][0][2 * half];
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n) x = fmaxf(x, fmaxf(s[t][n][2 * half], s[t][n][2 * half + 1]));
                x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
                x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
                top[t][half] = x;
                grew |= x > most[t][half] + slack;
            }
        }
        if (__any_sync(kAllLanes, grew)) {
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                float factor[2];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float now = fmaxf(most[t][half], top[t][half]);
                    factor[half] = exp2_approx((most[t][half] - now) * exponent);
                    most[t][half] = now;
                    sum[t][half] *= factor[half];
                }
#pragma unroll
                for (int n = 0; n < DIM / 8; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) o[t][n][i] *= factor[i / 2];
                }
            }
        }
#pragma unroll
        for (int n = 0; n < kKeys / 16; ++n) {
            unsigned p[TILES][4];
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                const float shift[2] = {-most[t][0] * exponent, -most[t][1] * exponent};
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    float& x = s[t][2 * n + i / 4][i % 4];
                    x = exp2_approx(fmaf(x, exponent, shift[i % 4 / 2]));
                    sum[t][i % 4 / 2] += x;
                }
                as_a<T>(p[t], s[t][2 * n], s[t][2 * n + 1]);
            }
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                unsigned b[2][2];
                load_b_rows<DIM>(b, tile_v, 16 * n, 16 * step);
#pragma unroll
                for (int t = 0; t < TILES; ++t) {
                    mma_m16n16k16(o[t][2 * step], o[t][2 * step + 1], p[t], b, T{});
                }
            }
        }
    }

    // The warp's own queries were read long ago; their place takes the output.
    __syncwarp();
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first + 16 * t + 8 * half + lane / 4;
            float total = sum[t][half];
            total += __shfl_xor_sync(kAllLanes, total, 1);
            total += __shfl_xor_sync(kAllLanes, total, 2);
            const float factor = 1.0f / total;
#pragma unroll
            for (int n = 0; n < DIM / 8; ++n) {
                const float pair[2] = {o[t][n][2 * half] * factor, o[t][n][2 * half + 1] * factor};
                store(tile_q + place<DIM>(row, 8 * n + lane % 4 * 2), pair);
            }
            if (statistics && lane % 4 == 0 && row < queries) {
                const float saved[2] = {most[t][half] * exponent, factor};
                store(rows_of(reinterpret_cast<Pack<float, 2>*>(statistics), sizes.queries)[start + row].v, saved);
            }
        }
    }
    store_rows<DIM, 16 * TILES>(tile_q, first, y, windows.pixel(start + first + lane), queries, c, d, vectors);
}

// dq, and what the other kernel needs of each query. Shared memory: the block's queries and dy; two stages of a tile of
// keys and one of values.
template <int DIM, class T>
__device__ void backward_queries(const T* dy, const T* q, const T* kv, const T* y, const float* statistics, T* dq,
                                 Row* rows, Sizes sizes) {
    constexpr int kTiles = 2, kQueries = 16 * kTiles * kWarps, kKeys = 32, kSteps = DIM / 16;
    const int lane = threadIdx.x % kWarp, first = threadIdx.x / kWarp * kWarp, start = blockIdx.x * kQueries;
    const int keys = sizes.keys, c = sizes.c, d = sizes.d, queries = sizes.queries - start;
    const bool vectors = aligned<T>(d, dy, q, kv, y, dq);
    const size_t offset = static_cast<size_t>(start) * c;
    q = head_of(q, sizes.queries, c, d) + offset;
    y = head_of(y, sizes.queries, c, d) + offset;
    dy = head_of(dy, sizes.queries, c, d) + offset;
    dq = head_of(dq, sizes.queries, c, d) + offset;
    kv = head_of(kv, keys, 2 * c, d);
    statistics = rows_of(reinterpret_cast<const Pack<float, 2>*>(statistics), sizes.queries)[start].v;
    rows = rows_of(rows, sizes.queries) + start;

    T* tile_q = shared_memory<T>();
    T* tile_dy = tile_q + kQueries * DIM;
    T* stages = tile_dy + kQueries * DIM;
    const auto load_stage = [&](int from) {
        load_keys<DIM, kKeys>(stage_of<DIM, kKeys>(stages, from), kv, from, sizes, vectors);
    };
    load_tile<DIM, kQueries>(tile_q, q, queries, c, d, vectors);
    load_tile<DIM, kQueries>(tile_dy, dy, queries, c, d, vectors);
    load_stage(0);

    // A lane finds what is to be known of a query, and the lanes that hold its scores get it from there.
    Row own = {};
    if (first + lane < queries) {
        const size_t at = static_cast<size_t>(first + lane) * c;
        own.most = statistics[2 * (first + lane)];
        own.factor = statistics[2 * (first + lane) + 1];
        if (vectors) {
            for (int e = 0; e < d; e += 8) {
                float g[8], v[8];
                load(dy + at + e, g);
                load(y + at + e, v);
#pragma unroll
                for (int j = 0; j < 8; ++j) own.dot += g[j] * v[j];
            }
        } else {
            for (int e = 0; e < d; ++e) own.dot += to_float(dy[at + e]) * to_float(y[at + e]);
        }
        rows[first + lane] = own;
    }
    float shift[kTiles][2], factor[kTiles][2], dot[kTiles][2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = 16 * t + 8 * half + lane / 4;
            shift[t][half] = -__shfl_sync(kAllLanes, own.most, row);
            factor[t][half] = __shfl_sync(kAllLanes, own.factor, row);
            dot[t][half] = __shfl_sync(kAllLanes, own.dot, row);
        }
    }

    const float exponent = sizes.exponent();
    unsigned a[kTiles][kSteps][4], g[kTiles][kSteps][4];
    float sum[kTiles][DIM / 8][4] = {};
    for (int from = 0; from < keys; from += kKeys) {
        cp_async_wait<0>();
        __syncthreads();
        if (from == 0) {
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
#pragma unroll
                for (int step = 0; step < kSteps; ++step) {
                    load_a<DIM>(a[t][step], tile_q, first + 16 * t, 16 * step);
                    load_a<DIM>(g[t][step], tile_dy, first + 16 * t, 16 * step);
                }
            }
        }
        if (from + kKeys < keys) load_stage(from + kKeys);
        const T* tile_k = stage_of<DIM, kKeys>(stages, from);
        const T* tile_v = tile_k + kKeys * DIM;
#pragma unroll
        for (int n = 0; n < kKeys / 16; ++n) {
            float s[kTiles][2][4] = {}, dp[kTiles][2][4] = {};
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                unsigned k[2][2], v[2][2];
                load_b_columns<DIM>(k, tile_k, 16 * n, 16 * step);
                load_b_columns<DIM>(v, tile_v, 16 * n, 16 * step);
#pragma unroll
                for (int t = 0; t < kTiles; ++t) {
                    mma_m16n16k16(s[t][0], s[t][1], a[t][step], k, T{});
                    mma_m16n16k16(dp[t][0], dp[t][1], g[t][step], v, T{});
                }
            }
            unsigned ds[kTiles][4];
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const int half = i % 4 / 2, key = from + 16 * n + i / 4 * 8 + lane % 4 * 2 + i % 2;
                    float& x = s[t][i / 4][i % 4];
                    const float p = exp2_approx(fmaf(x, exponent, shift[t][half])) * factor[t][half];
                    x = key < keys ? p * (dp[t][i / 4][i % 4] - dot[t][half]) : 0.0f;
                }
                as_a<T>(ds[t], s[t][0], s[t][1]);
            }
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                unsigned k[2][2];
                load_b_rows<DIM>(k, tile_k, 16 * n, 16 * step);
#pragma unroll
                for (int t = 0; t < kTiles; ++t) {
                    mma_m16n16k16(sum[t][2 * step], sum[t][2 * step + 1], ds[t], k, T{});
                }
            }
        }
    }

    __syncwarp();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first + 16 * t + 8 * half + lane / 4;
#pragma unroll
            for (int n = 0; n < DIM / 8; ++n) {
                const float pair[2] = {sum[t][n][2 * half] * sizes.scale, sum[t][n][2 * half + 1] * sizes.scale};
                store(tile_q + place<DIM>(row, 8 * n + lane % 4 * 2), pair);
            }
        }
    }
    store_rows<DIM, kWarp>(tile_q, first, dq, first + lane, queries, c, d, vectors);
}

// What `per_part` queries add to dk and dv of 64 keys. A warp takes 16 keys, and computes the transposed scores.
//
// Grid: for each part its blocks of keys, heads, samples. partial (parts, samples, keys, 2C). Shared memory: two stages
// of a tile of queries, one of dy and the rows of both; the second one holds the keys and the values at first.
template <int DIM, class T>
__device__ void backward_keys(const T* dy, const T* q, const T* kv, const Row* rows, float* partial, int per_part,
                              Sizes sizes) {
    constexpr int kKeys = 16 * kWarps, kQueries = 64, kSteps = DIM / 16;
    constexpr int kStage = 2 * kQueries * DIM + kQueries * static_cast<int>(sizeof(Row) / sizeof(T));
    static_assert(kKeys <= kQueries, "keys and values fit into a stage");
    const int blocks = (sizes.keys + kKeys - 1) / kKeys, part = blockIdx.x / blocks;
    const int lane = threadIdx.x % kWarp, first = threadIdx.x / kWarp * 16, start = blockIdx.x % blocks * kKeys;
    const int c = sizes.c, d = sizes.d, keys = sizes.keys - start;
    const int begin = part * per_part, end = min(sizes.queries, begin + per_part);
    const bool vectors = aligned<T>(d, dy, q, kv);
    q = head_of(q, sizes.queries, c, d);
    dy = head_of(dy, sizes.queries, c, d);
    kv = head_of(kv, sizes.keys, 2 * c, d) + static_cast<size_t>(start) * 2 * c;
    rows = rows_of(rows, sizes.queries);
    partial += static_cast<size_t>(part) * gridDim.z * sizes.keys * 2 * c;
    partial = head_of(partial, sizes.keys, 2 * c, d) + static_cast<size_t>(start) * 2 * c;

    T* stages = shared_memory<T>();
    const auto load_stage = [&](int from, int number) {
        T* stage = stages + number * kStage;
        const size_t at = static_cast<size_t>(from) * c;
        load_tile<DIM, kQueries>(stage, q + at, end - from, c, d, vectors);
        load_tile<DIM, kQueries>(stage + kQueries * DIM, dy + at, end - from, c, d, vectors);
        Row* stage_rows = reinterpret_cast<Row*>(stage + 2 * kQueries * DIM);
        for (int i = threadIdx.x; i < kQueries; i += kThreads) {
            cp_async_16(stage_rows + i, from + i < end ? rows + from + i : rows, from + i < end);
        }
        cp_async_commit();
    };
    T* tile_k = stages + kStage;
    T* tile_v = tile_k + kQueries * DIM;
    load_tile<DIM, kKeys>(tile_k, kv, keys, 2 * c, d, vectors);
    load_tile<DIM, kKeys>(tile_v, kv + c, keys, 2 * c, d, vectors);
    load_stage(begin, 0);
    cp_async_wait<0>();
    __syncthreads();
    unsigned k[kSteps][4], v[kSteps][4];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        load_a<DIM>(k[step], tile_k, first, 16 * step);
        load_a<DIM>(v[step], tile_v, first, 16 * step);
    }

    const float exponent = sizes.exponent();
    float dk[DIM / 8][4] = {}, dv[DIM / 8][4] = {};
    int number = 0;
    for (int from = begin; from < end; from += kQueries, number ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        if (from + kQueries < end) load_stage(from + kQueries, number ^ 1);
        const T* tile_q = stages + number * kStage;
        const T* tile_dy = tile_q + kQueries * DIM;
        const Row* tile_rows = reinterpret_cast<const Row*>(tile_dy + kQueries * DIM);
#pragma unroll
        for (int n = 0; n < kQueries / 16; ++n) {
            float s[2][4] = {}, dp[2][4] = {};
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                unsigned b[2][2], g[2][2];
                load_b_columns<DIM>(b, tile_q, 16 * n, 16 * step);
                load_b_columns<DIM>(g, tile_dy, 16 * n, 16 * step);
                mma_m16n16k16(s[0], s[1], k[step], b, T{});
                mma_m16n16k16(dp[0], dp[1], v[step], g, T{});
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const Row row = tile_rows[16 * n + i / 2 * 8 + lane % 4 * 2 + i % 2];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float& x = s[i / 2][i % 2 + 2 * half];
                    float& g = dp[i / 2][i % 2 + 2 * half];
                    x = exp2_approx(fmaf(x, exponent, -row.most)) * row.factor;
                    g = x * (g - row.dot);
                }
            }
            unsigned p[4], ds[4];
            as_a<T>(p, s[0], s[1]);
            as_a<T>(ds, dp[0], dp[1]);
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                unsigned b[2][2], g[2][2];
                load_b_rows<DIM>(g, tile_dy, 16 * n, 16 * step);
                load_b_rows<DIM>(b, tile_q, 16 * n, 16 * step);
                mma_m16n16k16(dv[2 * step], dv[2 * step + 1], p, g, T{});
                mma_m16n16k16(dk[2 * step], dk[2 * step + 1], ds, b, T{});
            }
        }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int key = first + 8 * half + lane / 4;
        float* to = partial + static_cast<size_t>(key) * 2 * c;
        if (key >= keys) continue;
#pragma unroll
        for (int n = 0; n < DIM / 8; ++n) {
            const int column = 8 * n + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (column + i >= d) continue;
                to[column + i] = dk[n][2 * half + i] * sizes.scale;
                to[c + column + i] = dv[n][2 * half + i];
            }
        }
    }
}

}  // namespace tensor

// The same in multiply-adds. 1, 2 or 4 neighbouring lanes share a row (a query, or a key) and hold 16 or 32 numbers of
// each of its vectors in registers; the rows that it meets come in tiles of shared memory, which all lanes read at
// nearly the same address.
namespace plain {

// Rows of a tile.
constexpr int kTile = 32;

// Lanes that share a row, what each holds of it, and the rows that a block takes at a time.
template <int DIM> constexpr int kLanesOfRow = DIM <= 32 ? 1 : DIM / 32;
template <int DIM> constexpr int kHeld = DIM / kLanesOfRow<DIM>;
template <int DIM> constexpr int kRows = kThreads / kLanesOfRow<DIM>;

// The lane's numbers are the groups of 4 with this offset, by turns with its neighbours': no two lanes use one bank.
template <int DIM> __device__ inline int column_of(int group) {
    return (group * kLanesOfRow<DIM> + threadIdx.x % kLanesOfRow<DIM>) * 4;
}

// Each number becomes its sum over the lanes that share a row.
template <int DIM, int N> __device__ inline void sum_over_row(float (&x)[N]) {
#pragma unroll
    for (int lane = 1; lane < kLanesOfRow<DIM>; lane *= 2) {
        float other[N];
        shuffle_xor(x, other, lane);
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] += other[i];
    }
}

// 4 numbers of a row of d from `column` on; zeros beyond its end, or where not `valid`.
template <class T>
__device__ inline void load_group(float (&x)[4], const T* row, int column, int d, bool valid, bool vectors) {
    if (vectors && valid && column < d) {
        load(row + column, x);
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) x[j] = valid && column + j < d ? to_float(row[column + j]) : 0.0f;
    }
}

template <class T>
__device__ inline void store_group(T* row, const float (&x)[4], int column, int d, bool vectors) {
    if (vectors && column < d) {
        store(row + column, x);
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (column + j < d) row[column + j] = from_float<T>(x[j]);
        }
    }
}

// What a lane holds of a row of global memory.
template <int DIM, class T>
__device__ inline void load_row(float (&x)[kHeld<DIM>], const T* row, int d, bool valid, bool vectors) {
#pragma unroll
    for (int i = 0; i < kHeld<DIM> / 4; ++i) {
        float group[4];
        load_group(group, row, column_of<DIM>(i), d, valid, vectors);
#pragma unroll
        for (int j = 0; j < 4; ++j) x[4 * i + j] = group[j];
    }
}

template <int DIM, class T>
__device__ inline void store_row(T* row, const float (&x)[kHeld<DIM>], float factor, int d, bool vectors) {
#pragma unroll
    for (int i = 0; i < kHeld<DIM> / 4; ++i) {
        float group[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) group[j] = x[4 * i + j] * factor;
        store_group(row, group, column_of<DIM>(i), d, vectors);
    }
}

// What a lane holds of a row of a tile.
template <int DIM> __device__ inline void read_row(float (&x)[kHeld<DIM>], const float* row) {
#pragma unroll
    for (int i = 0; i < kHeld<DIM> / 4; ++i) {
        float group[4];
        load(row + column_of<DIM>(i), group);
#pragma unroll
        for (int j = 0; j < 4; ++j) x[4 * i + j] = group[j];
    }
}

template <int N> __device__ inline float dot(const float (&x)[N], const float (&y)[N]) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) sum = fmaf(x[i], y[i], sum);
    return sum;
}

// sum += x·row.
template <int N> __device__ inline void add(float (&sum)[N], float x, const float (&row)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] = fmaf(x, row[i], sum[i]);
}

template <int DIM, class T>
__device__ inline void load_tile(float* tile, const T* from, int rows, int stride, int d, bool vectors) {
    for (int i = threadIdx.x; i < kTile * DIM / 4; i += kThreads) {
        const int row = i / (DIM / 4), column = i % (DIM / 4) * 4;
        float group[4];
        load_group(group, from + static_cast<size_t>(row) * stride, column, d, row < rows, vectors);
        store(tile + row * DIM + column, group);
    }
}

// A thread takes part in two queries. Shared memory: a tile of keys and one of values.
template <int DIM, class T>
__device__ void forward(const T* q, const T* kv, T* y, float* statistics, Sizes sizes, Windows windows) {
    constexpr int kQueries = 2, kGroup = 4;
    const int keys = sizes.keys, c = sizes.c, d = sizes.d;
    const bool vectors = aligned<T>(d, q, kv, y);
    q = head_of(q, sizes.queries, c, d);
    y = head_of(y, sizes.queries, c, d);
    kv = head_of(kv, keys, 2 * c, d);
    if (statistics) statistics = rows_of(reinterpret_cast<Pack<float, 2>*>(statistics), sizes.queries)->v;
    const int first = blockIdx.x * kQueries * kRows<DIM> + threadIdx.x / kLanesOfRow<DIM>;
    float held[kQueries][kHeld<DIM>], o[kQueries][kHeld<DIM>] = {}, most[kQueries], sum[kQueries] = {};
#pragma unroll
    for (int r = 0; r < kQueries; ++r) {
        const int row = first + r * kRows<DIM>;
        load_row<DIM>(held[r], q + static_cast<size_t>(row) * c, d, row < sizes.queries, vectors);
        most[r] = -INFINITY;
    }
    const float exponent = sizes.exponent(), slack = kSlack / exponent;
    float* tile_k = shared_memory<float>();
    float* tile_v = tile_k + kTile * DIM;
    for (int from = 0; from < keys; from += kTile) {
        const T* k = kv + static_cast<size_t>(from) * 2 * c;
        __syncthreads();
        load_tile<DIM>(tile_k, k, keys - from, 2 * c, d, vectors);
        load_tile<DIM>(tile_v, k + c, keys - from, 2 * c, d, vectors);
        __syncthreads();
        for (int key = 0; key < min(kTile, keys - from); key += kGroup) {
            float s[kQueries][kGroup];
#pragma unroll
            for (int j = 0; j < kGroup; ++j) {
                float row[kHeld<DIM>];
                read_row<DIM>(row, tile_k + (key + j) * DIM);
#pragma unroll
                for (int r = 0; r < kQueries; ++r) s[r][j] = dot(held[r], row);
            }
#pragma unroll
            for (int r = 0; r < kQueries; ++r) {
                sum_over_row<DIM>(s[r]);
#pragma unroll
                for (int j = 0; j < kGroup; ++j) s[r][j] = from + key + j < keys ? s[r][j] : -INFINITY;
                float top = s[r][0];
#pragma unroll
                for (int j = 1; j < kGroup; ++j) top = fmaxf(top, s[r][j]);
                if (top > most[r] + slack) {
                    const float factor = exp2f((most[r] - top) * exponent);
                    most[r] = top;
                    sum[r] *= factor;
#pragma unroll
                    for (int i = 0; i < kHeld<DIM>; ++i) o[r][i] *= factor;
                }
                const float shift = -most[r] * exponent;
#pragma unroll
                for (int j = 0; j < kGroup; ++j) {
                    s[r][j] = exp2f(fmaf(s[r][j], exponent, shift));
                    sum[r] += s[r][j];
                }
            }
#pragma unroll
            for (int j = 0; j < kGroup; ++j) {
                float row[kHeld<DIM>];
                read_row<DIM>(row, tile_v + (key + j) * DIM);
#pragma unroll
                for (int r = 0; r < kQueries; ++r) add(o[r], s[r][j], row);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < kQueries; ++r) {
        const int row = first + r * kRows<DIM>;
        if (row >= sizes.queries) continue;
        const float saved[2] = {most[r] * exponent, 1.0f / sum[r]};
        store_row<DIM>(y + static_cast<size_t>(windows.pixel(row)) * c, o[r], saved[1], d, vectors);
        if (statistics && threadIdx.x % kLanesOfRow<DIM> == 0) store(statistics + 2 * row, saved);
    }
}

// dq, and what the other kernel needs of each query. Shared memory: a tile of keys and one of values.
template <int DIM, class T>
__device__ void backward_queries(const T* dy, const T* q, const T* kv, const T* y, const float* statistics, T* dq,
                                 Row* rows, Sizes sizes) {
    const int keys = sizes.keys, c = sizes.c, d = sizes.d;
    const bool vectors = aligned<T>(d, dy, q, kv, y, dq);
    const int query = blockIdx.x * kRows<DIM> + threadIdx.x / kLanesOfRow<DIM>;
    const bool valid = query < sizes.queries;
    const size_t at = static_cast<size_t>(query) * c;
    kv = head_of(kv, keys, 2 * c, d);
    statistics = rows_of(reinterpret_cast<const Pack<float, 2>*>(statistics), sizes.queries)->v;
    float held[kHeld<DIM>], g[kHeld<DIM>], sum[kHeld<DIM>];
    load_row<DIM>(g, head_of(dy, sizes.queries, c, d) + at, d, valid, vectors);
    load_row<DIM>(sum, head_of(y, sizes.queries, c, d) + at, d, valid, vectors);
    load_row<DIM>(held, head_of(q, sizes.queries, c, d) + at, d, valid, vectors);
    Row own = {};
    float product[1] = {dot(g, sum)};
    sum_over_row<DIM>(product);
    own.dot = product[0];
    if (valid) {
        own.most = statistics[2 * query];
        own.factor = statistics[2 * query + 1];
        if (threadIdx.x % kLanesOfRow<DIM> == 0) rows_of(rows, sizes.queries)[query] = own;
    }
#pragma unroll
    for (int i = 0; i < kHeld<DIM>; ++i) sum[i] = 0.0f;

    const float exponent = sizes.exponent();
    float* tile_k = shared_memory<float>();
    float* tile_v = tile_k + kTile * DIM;
    for (int from = 0; from < keys; from += kTile) {
        const T* k = kv + static_cast<size_t>(from) * 2 * c;
        __syncthreads();
        load_tile<DIM>(tile_k, k, keys - from, 2 * c, d, vectors);
        load_tile<DIM>(tile_v, k + c, keys - from, 2 * c, d, vectors);
        __syncthreads();
#pragma unroll 2
        for (int key = 0; key < min(kTile, keys - from); ++key) {
            float row[kHeld<DIM>], value[kHeld<DIM>];
            read_row<DIM>(row, tile_k + key * DIM);
            read_row<DIM>(value, tile_v + key * DIM);
            float s[2] = {dot(held, row), dot(g, value)};  // the score, and dP
            sum_over_row<DIM>(s);
            add(sum, exp2f(fmaf(s[0], exponent, -own.most)) * own.factor * (s[1] - own.dot), row);
        }
    }
    if (valid) store_row<DIM>(head_of(dq, sizes.queries, c, d) + at, sum, sizes.scale, d, vectors);
}

// What `per_part` queries add to dk and dv of a block of keys; grid and `partial` as above. Shared memory: a tile of
// queries, one of dy, and their rows.
template <int DIM, class T>
__device__ void backward_keys(const T* dy, const T* q, const T* kv, const Row* rows, float* partial, int per_part,
                              Sizes sizes) {
    const int blocks = (sizes.keys + kRows<DIM> - 1) / kRows<DIM>, part = blockIdx.x / blocks;
    const int key = blockIdx.x % blocks * kRows<DIM> + threadIdx.x / kLanesOfRow<DIM>, c = sizes.c, d = sizes.d;
    const int begin = part * per_part, end = min(sizes.queries, begin + per_part);
    const bool vectors = aligned<T>(d, dy, q, kv), valid = key < sizes.keys;
    q = head_of(q, sizes.queries, c, d);
    dy = head_of(dy, sizes.queries, c, d);
    kv = head_of(kv, sizes.keys, 2 * c, d) + static_cast<size_t>(key) * 2 * c;
    rows = rows_of(rows, sizes.queries);
    partial += static_cast<size_t>(part) * gridDim.z * sizes.keys * 2 * c;
    partial = head_of(partial, sizes.keys, 2 * c, d) + static_cast<size_t>(key) * 2 * c;
    float k[kHeld<DIM>], v[kHeld<DIM>], dk[kHeld<DIM>] = {}, dv[kHeld<DIM>] = {};
    load_row<DIM>(k, kv, d, valid, vectors);
    load_row<DIM>(v, kv + c, d, valid, vectors);

    const float exponent = sizes.exponent();
    float* tile_q = shared_memory<float>();
    float* tile_dy = tile_q + kTile * DIM;
    Row* tile_rows = reinterpret_cast<Row*>(tile_dy + kTile * DIM);
    for (int from = begin; from < end; from += kTile) {
        const size_t at = static_cast<size_t>(from) * c;
        __syncthreads();
        load_tile<DIM>(tile_q, q + at, end - from, c, d, vectors);
        load_tile<DIM>(tile_dy, dy + at, end - from, c, d, vectors);
        if (threadIdx.x < min(kTile, end - from)) tile_rows[threadIdx.x] = rows[from + threadIdx.x];
        __syncthreads();
        for (int query = 0; query < min(kTile, end - from); ++query) {
            const Row row = tile_rows[query];
            float x[kHeld<DIM>], g[kHeld<DIM>];
            read_row<DIM>(x, tile_q + query * DIM);
            read_row<DIM>(g, tile_dy + query * DIM);
            float s[2] = {dot(k, x), dot(v, g)};  // the score, and dP
            sum_over_row<DIM>(s);
            const float p = exp2f(fmaf(s[0], exponent, -row.most)) * row.factor;
            add(dv, p, g);
            add(dk, p * (s[1] - row.dot), x);
        }
    }
    if (!valid) return;
    // Sums are f32 beside each other as q and kv are: their groups of 4 are aligned when those of f32 numbers are.
    const bool groups = aligned<float>(d, partial);
    store_row<DIM>(partial, dk, sizes.scale, d, groups);
    store_row<DIM>(partial + c, dv, 1.0f, d, groups);
}

}  // namespace plain

// Whether heads of up to DIM channels go to the tensor cores.
template <int DIM, class T> constexpr bool kTensor = sizeof(T) == 2 && DIM <= 64;

template <int DIM, int TILES, class T>
__device__ void forward(const T* q, const T* kv, T* y, float* statistics, Sizes sizes, Windows windows) {
    if constexpr (kTensor<DIM, T>) {
        tensor::forward<DIM, TILES>(q, kv, y, statistics, sizes, windows);
    } else {
        plain::forward<DIM>(q, kv, y, statistics, sizes, windows);
    }
}

template <int DIM, class T>
__device__ void backward_queries(const T* dy, const T* q, const T* kv, const T* y, const float* statistics, T* dq,
                                 float* rows, Sizes sizes) {
    if constexpr (kTensor<DIM, T>) {
        tensor::backward_queries<DIM>(dy, q, kv, y, statistics, dq, reinterpret_cast<Row*>(rows), sizes);
    } else {
        plain::backward_queries<DIM>(dy, q, kv, y, statistics, dq, reinterpret_cast<Row*>(rows), sizes);
    }
}

template <int DIM, class T>
__device__ void backward_keys(const T* dy, const T* q, const T* kv, const float* rows, float* partial, int per_part,
                              Sizes sizes) {
    if constexpr (kTensor<DIM, T>) {
        tensor::backward_keys<DIM>(dy, q, kv, reinterpret_cast<const Row*>(rows), partial, per_part, sizes);
    } else {
        plain::backward_keys<DIM>(dy, q, kv, reinterpret_cast<const Row*>(rows), partial, per_part, sizes);
    }
}

// q, y, dy, dq (samples, N, C), in forward q in the order of `Windows` and y in that of the image; kv (samples, M, 2C)
// with the keys in the first C channels; statistics (samples, heads, N, 2), or null in forward; rows (samples, heads, N,
// 4). Grid: blocks of queries (for the last kernel, of keys), heads, samples; blocks of 128 threads.
#define KERNELS_OF(DIM, T, t)                                                                                        \
    extern "C" __global__ void __launch_bounds__(kThreads) attention_##DIM##_##t(                                    \
        const T* q, const T* kv, T* y, float* statistics, int width, int side, int queries, int keys, int c, int d,  \
        float scale) {                                                                                               \
        forward<DIM, 2>(q, kv, y, statistics, Sizes{queries, keys, c, d, scale}, Windows{width, side});              \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(kThreads) attention_queries_##DIM##_##t(                            \
        const T* dy, const T* q, const T* kv, const T* y, const float* statistics, T* dq, float* rows, int queries,  \
        int keys, int c, int d, float scale) {                                                                       \
        backward_queries<DIM>(dy, q, kv, y, statistics, dq, rows, Sizes{queries, keys, c, d, scale});                \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(kThreads) attention_keys_##DIM##_##t(                               \
        const T* dy, const T* q, const T* kv, const float* rows, float* partial, int per_part, int queries, int keys, \
        int c, int d, float scale) {                                                                                 \
        backward_keys<DIM>(dy, q, kv, rows, partial, per_part, Sizes{queries, keys, c, d, scale});                   \
    }
#define KERNELS(T, t) KERNELS_OF(16, T, t) KERNELS_OF(32, T, t) KERNELS_OF(64, T, t) KERNELS_OF(128, T, t)
FOR_TYPES(KERNELS)

// With half as many queries to a block on the tensor cores: for problems that would leave much of the device idle.
#define SMALL_KERNEL_OF(DIM, T, t)                                                                                   \
    extern "C" __global__ void __launch_bounds__(kThreads) attention_small_##DIM##_##t(                              \
        const T* q, const T* kv, T* y, float* statistics, int width, int side, int queries, int keys, int c, int d,  \
        float scale) {                                                                                               \
        forward<DIM, 1>(q, kv, y, statistics, Sizes{queries, keys, c, d, scale}, Windows{width, side});              \
    }
#define SMALL_KERNELS(T, t) SMALL_KERNEL_OF(16, T, t) SMALL_KERNEL_OF(32, T, t) SMALL_KERNEL_OF(64, T, t)
SMALL_KERNELS(__half, f16)
SMALL_KERNELS(__nv_bfloat16, bf16)
