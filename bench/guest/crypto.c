/* The instructions that ciphers and hashes use. Speed only: keys and rounds follow no standard. */
#include "bench.h"

#include <cpuid.h>
#include <immintrin.h>
#include <string.h>

static uint64_t fold(__m128i v)
{
    uint64_t half[2];

    memcpy(half, &v, sizeof(half));
    return half[0] ^ half[1];
}

static bool has_aes(void)
{
    return __builtin_cpu_supports("aes");
}

static bool has_pclmul(void)
{
    return __builtin_cpu_supports("pclmul");
}

static bool has_sha(void)
{
    unsigned a, b, c, d;

    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b >> 29 & 1) != 0;
}

__attribute__((target("aes"))) static uint64_t run_aes(void)
{
    __m128i block[4];
    __m128i key[10];
    __m128i sum = _mm_setzero_si128();

    for (int i = 0; i < 10; i++) {
        key[i] = _mm_set_epi32(i * 77, i + 5, ~i, i * i * 1234567);
    }
    for (int i = 0; i < 4; i++) {
        block[i] = _mm_set1_epi32(i);
    }
    for (int pass = 0; pass < 600000; pass++) {
        for (int r = 0; r < 9; r++) {
            for (int i = 0; i < 4; i++) {
                block[i] = _mm_aesenc_si128(block[i], key[r]);
            }
        }
        for (int i = 0; i < 4; i++) {
            block[i] = _mm_aesenclast_si128(block[i], key[9]);
            sum = _mm_xor_si128(sum, block[i]);
        }
    }
    return fold(sum);
}

__attribute__((target("pclmul"))) static uint64_t run_pclmul(void)
{
    __m128i h = _mm_set_epi64x(0x123456789abcdefll, 0x7edcba9876543210ll);
    __m128i y = _mm_set1_epi32(0x55aa1234);

    for (int i = 0; i < 5000000; i++) {
        __m128i lo = _mm_clmulepi64_si128(y, h, 0x00);
        __m128i hi = _mm_clmulepi64_si128(y, h, 0x11);
        __m128i mid = _mm_clmulepi64_si128(y, h, 0x10);

        y = _mm_xor_si128(_mm_xor_si128(lo, hi), _mm_slli_si128(mid, 8));
        y = _mm_xor_si128(y, _mm_srli_si128(mid, 8));
    }
    return fold(y);
}

__attribute__((target("sha,sse4.1"))) static uint64_t run_sha_ni(void)
{
    __m128i s0 = _mm_set1_epi32(0x6a09e667);
    __m128i s1 = _mm_set1_epi32(0x510e527f);
    __m128i w[4] = {_mm_set1_epi32(1), _mm_set1_epi32(2), _mm_set1_epi32(3), _mm_set1_epi32(4)};

    for (int i = 0; i < 3000000; i++) {
        s1 = _mm_sha256rnds2_epu32(s1, s0, w[0]);
        s0 = _mm_sha256rnds2_epu32(s0, s1, _mm_shuffle_epi32(w[0], 0x0e));
        w[0] = _mm_sha256msg1_epu32(w[0], w[1]);
        w[0] = _mm_sha256msg2_epu32(_mm_add_epi32(w[0], w[2]), w[3]);
        w[3] = _mm_xor_si128(w[3], s0);
    }
    return fold(_mm_xor_si128(s0, s1));
}

#define ROL(x, n) _mm_or_si128(_mm_slli_epi32(x, n), _mm_srli_epi32(x, 32 - (n)))

static uint64_t run_chacha(void)
{
    __m128i a = _mm_set_epi32(1, 22, 333, 0x61707865), b = _mm_set1_epi32(0x3320646e);
    __m128i c = _mm_set1_epi32(0x79622d32), d = _mm_set1_epi32(0x6b206574);

    for (int i = 0; i < 3000000; i++) {
        a = _mm_add_epi32(a, b);
        d = ROL(_mm_xor_si128(d, a), 16);
        c = _mm_add_epi32(c, d);
        b = ROL(_mm_xor_si128(b, c), 12);
        a = _mm_add_epi32(a, b);
        d = ROL(_mm_xor_si128(d, a), 8);
        c = _mm_add_epi32(c, d);
        b = ROL(_mm_xor_si128(b, c), 7);
    }
    return fold(_mm_xor_si128(a, _mm_xor_si128(b, _mm_xor_si128(c, d))));
}

const struct bench crypto_benches[] = {
    {"crypto", "aes-ni", run_aes, has_aes, false},
    {"crypto", "pclmul", run_pclmul, has_pclmul, false},
    {"crypto", "sha-ni", run_sha_ni, has_sha, false},
    {"crypto", "chacha-sse2", run_chacha, NULL, false},
    {.name = NULL},
};
