/* Vector kernels written with intrinsics, each for one level of the instruction set. */
#include "bench.h"

#include <immintrin.h>
#include <string.h>

#define SIZE 16384

static uint8_t bytes[SIZE] __attribute__((aligned(64)));
static uint8_t more[SIZE] __attribute__((aligned(64)));

static void fill(void)
{
    uint64_t state = BENCH_SEED;

    for (size_t i = 0; i < SIZE; i++) {
        bytes[i] = (uint8_t)bench_random(&state);
        more[i] = (uint8_t)(bytes[i] * 3 + i);
    }
}

static uint64_t fold128(__m128i v)
{
    uint64_t half[2];

    memcpy(half, &v, sizeof(half));
    return half[0] ^ half[1];
}

static bool has_ssse3(void)
{
    return __builtin_cpu_supports("ssse3");
}

static bool has_sse42(void)
{
    return __builtin_cpu_supports("sse4.2");
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}

static bool has_fma(void)
{
    return __builtin_cpu_supports("fma");
}

/* Sums of absolute differences, as in video coding. */
static uint64_t run_sse2_sad(void)
{
    __m128i sum = _mm_setzero_si128();

    fill();
    for (int pass = 0; pass < 8000; pass++) {
        for (size_t i = 0; i < SIZE; i += 16) {
            __m128i a = _mm_load_si128((const __m128i *)(const void *)(bytes + i));
            __m128i b = _mm_load_si128((const __m128i *)(const void *)(more + i));

            sum = _mm_add_epi64(sum, _mm_sad_epu8(a, b));
        }
    }
    return fold128(sum);
}

/* Blending with saturation, as in drawing. */
static uint64_t run_sse2_blend(void)
{
    __m128i acc = _mm_setzero_si128();
    const __m128i weight = _mm_set1_epi16(77);
    const __m128i zero = _mm_setzero_si128();

    fill();
    for (int pass = 0; pass < 4000; pass++) {
        for (size_t i = 0; i < SIZE; i += 16) {
            __m128i a = _mm_load_si128((const __m128i *)(const void *)(bytes + i));
            __m128i lo = _mm_mullo_epi16(_mm_unpacklo_epi8(a, zero), weight);
            __m128i hi = _mm_mullo_epi16(_mm_unpackhi_epi8(a, zero), weight);

            lo = _mm_srli_epi16(lo, 7);
            hi = _mm_srli_epi16(hi, 7);
            acc = _mm_adds_epu8(_mm_xor_si128(acc, a), _mm_packus_epi16(lo, hi));
        }
    }
    return fold128(acc);
}

static uint64_t run_sse2_saxpy(void)
{
    static float x[4096], y[4096];
    float out[4];

    for (int i = 0; i < 4096; i++) {
        x[i] = (float)i * 0.25f;
        y[i] = (float)(4096 - i);
    }
    for (int pass = 0; pass < 12000; pass++) {
        __m128 a = _mm_set1_ps(1.0f / (float)(pass + 3));

        for (int i = 0; i < 4096; i += 4) {
            _mm_storeu_ps(y + i, _mm_add_ps(_mm_mul_ps(a, _mm_loadu_ps(x + i)),
                                            _mm_mul_ps(_mm_set1_ps(0.5f), _mm_loadu_ps(y + i))));
        }
    }
    memcpy(out, y + 100, sizeof(out));
    return (uint64_t)(int64_t)(out[0] * 1000) ^ (uint64_t)(int64_t)(out[3] * 1000) << 32;
}

__attribute__((target("ssse3"))) static uint64_t run_ssse3_shuffle(void)
{
    const __m128i order = _mm_set_epi8(3, 7, 11, 15, 2, 6, 10, 14, 1, 5, 9, 13, 0, 4, 8, 12);
    __m128i acc = _mm_setzero_si128();

    fill();
    for (int pass = 0; pass < 6000; pass++) {
        for (size_t i = 0; i < SIZE; i += 16) {
            __m128i a = _mm_load_si128((const __m128i *)(const void *)(bytes + i));

            acc = _mm_add_epi8(_mm_shuffle_epi8(_mm_xor_si128(acc, a), order), a);
        }
    }
    return fold128(acc);
}

/* Finding a character of a set in text: PCMPISTRI. */
__attribute__((target("sse4.2"))) static uint64_t run_sse42_strings(void)
{
    const __m128i set = _mm_setr_epi8('<', '>', '&', '"', '\'', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    uint64_t found = 0;

    fill();
    for (size_t i = 0; i < SIZE; i++) {
        bytes[i] |= 1;
    }
    for (int pass = 0; pass < 2500; pass++) {
        for (size_t i = 0; i < SIZE; i += 16) {
            __m128i a = _mm_load_si128((const __m128i *)(const void *)(bytes + i));

            found += (uint64_t)_mm_cmpistri(set, a, _SIDD_CMP_EQUAL_ANY);
        }
    }
    return found;
}

__attribute__((target("avx2"))) static uint64_t run_avx2_integer(void)
{
    __m256i sum = _mm256_setzero_si256();
    const __m256i ones = _mm256_set1_epi16(1);

    fill();
    for (int pass = 0; pass < 10000; pass++) {
        for (size_t i = 0; i < SIZE; i += 32) {
            __m256i a = _mm256_load_si256((const __m256i *)(const void *)(bytes + i));
            __m256i b = _mm256_load_si256((const __m256i *)(const void *)(more + i));

            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
        }
    }
    return fold128(_mm_xor_si128(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1)));
}

__attribute__((target("avx2"))) static uint64_t run_avx2_gather(void)
{
    static int table[4096];
    __m256i index = _mm256_setr_epi32(1, 500, 1000, 1500, 2000, 2500, 3000, 3500);
    __m256i sum = _mm256_setzero_si256();

    for (int i = 0; i < 4096; i++) {
        table[i] = i * 7 + 3;
    }
    for (int i = 0; i < 1000000; i++) {
        __m256i v = _mm256_i32gather_epi32(table, index, 4);

        sum = _mm256_add_epi32(sum, v);
        index = _mm256_and_si256(_mm256_add_epi32(v, index), _mm256_set1_epi32(4095));
    }
    return fold128(_mm_xor_si128(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1)));
}

__attribute__((target("avx2,fma"))) static uint64_t run_avx2_fma(void)
{
    static float x[4096];
    __m256 acc[4] = {_mm256_set1_ps(0), _mm256_set1_ps(1), _mm256_set1_ps(2), _mm256_set1_ps(3)};
    float out[8];
    uint64_t sum = 0;

    for (int i = 0; i < 4096; i++) {
        x[i] = (float)(i & 255) * 0.001f;
    }
    for (int pass = 0; pass < 1200; pass++) {
        for (int i = 0; i < 4096; i += 32) {
            for (int k = 0; k < 4; k++) {
                __m256 v = _mm256_loadu_ps(x + i + 8 * k);

                acc[k] = _mm256_fmadd_ps(v, v, _mm256_mul_ps(acc[k], _mm256_set1_ps(0.5f)));
            }
        }
    }
    _mm256_storeu_ps(out,
                     _mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])));
    for (int i = 0; i < 8; i++) {
        sum = sum * 31 + (uint64_t)(int64_t)(out[i] * 1e6f);
    }
    return sum;
}

const struct bench simd_benches[] = {
    {"simd", "sse2-sad", run_sse2_sad, NULL, false},
    {"simd", "sse2-blend", run_sse2_blend, NULL, false},
    {"simd", "sse2-saxpy", run_sse2_saxpy, NULL, false},
    {"simd", "ssse3-shuffle", run_ssse3_shuffle, has_ssse3, false},
    {"simd", "sse42-strings", run_sse42_strings, has_sse42, false},
    {"simd", "avx2-integer", run_avx2_integer, has_avx2, false},
    {"simd", "avx2-gather", run_avx2_gather, has_avx2, false},
    {"simd", "avx2-fma", run_avx2_fma, has_fma, false},
    {.name = NULL},
};
