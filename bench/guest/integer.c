/* Integer programs of different character. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

static uint64_t run_sieve(void)
{
    enum { LIMIT = 4000000 };
    char *composite = calloc(LIMIT, 1);
    uint64_t count = 0;

    if (composite == NULL) {
        bench_fail("memory");
    }
    for (uint64_t i = 2; i < LIMIT; i++) {
        if (composite[i] == 0) {
            count++;
            for (uint64_t j = i * i; j < LIMIT; j += i) {
                composite[j] = 1;
            }
        }
    }
    free(composite);
    return count;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static uint64_t run_qsort(void)
{
    enum { COUNT = 300000 };
    uint64_t *numbers = malloc(COUNT * sizeof(*numbers));
    uint64_t state = BENCH_SEED;
    uint64_t sum = 0;

    if (numbers == NULL) {
        bench_fail("memory");
    }
    for (size_t i = 0; i < COUNT; i++) {
        numbers[i] = bench_random(&state);
    }
    qsort(numbers, COUNT, sizeof(*numbers), compare_u64);
    for (size_t i = 0; i < COUNT; i += 1000) {
        sum = sum * 31 + numbers[i];
    }
    free(numbers);
    return sum;
}

static uint64_t fib(unsigned n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static uint64_t run_fib(void)
{
    volatile unsigned n = 33;

    return fib(n);
}

/* A bytecode interpreter: indirect jumps by a table, as Python and shells do. */
static uint64_t run_interpreter(void)
{
    static const uint8_t program[] = {0, 1, 2, 3, 1, 4, 2, 5, 0, 3, 6, 1, 4, 5, 2, 7};
    uint64_t acc = 1;
    uint64_t stack[16] = {0};
    unsigned sp = 0;

    for (uint64_t steps = 0, pc = 0; steps < 12000000; steps++) {
        switch (program[pc]) {
        case 0:
            stack[sp++ & 15] = acc;
            break;
        case 1:
            acc += stack[--sp & 15] + 1;
            break;
        case 2:
            acc ^= acc << 7;
            break;
        case 3:
            acc = acc * 3 + 1;
            break;
        case 4:
            acc ^= acc >> 9;
            break;
        case 5:
            stack[sp & 15] += acc;
            break;
        case 6:
            pc = (pc + (acc & 1)) & 15;
            break;
        default:
            sp &= 15;
            break;
        }
        pc = (pc + 1) & 15;
    }
    return acc;
}

struct node {
    struct node *left;
    struct node *right;
    uint64_t key;
};

static uint64_t run_tree(void)
{
    enum { COUNT = 60000 };
    struct node *nodes = calloc(COUNT, sizeof(*nodes));
    struct node *root = NULL;
    uint64_t state = BENCH_SEED;
    uint64_t found = 0;

    if (nodes == NULL) {
        bench_fail("memory");
    }
    for (size_t i = 0; i < COUNT; i++) {
        struct node **link = &root;

        nodes[i].key = bench_random(&state) >> 40;
        while (*link != NULL) {
            link = nodes[i].key < (*link)->key ? &(*link)->left : &(*link)->right;
        }
        *link = &nodes[i];
    }
    for (size_t i = 0; i < COUNT; i++) {
        uint64_t key = bench_random(&state) >> 40;

        for (const struct node *n = root; n != NULL; n = key < n->key ? n->left : n->right) {
            found += n->key == key;
        }
    }
    free(nodes);
    return found;
}

static uint64_t run_crc32(void)
{
    static uint8_t data[1 << 16];
    uint32_t table[256];
    uint32_t crc = ~0u;

    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;

        for (int k = 0; k < 8; k++) {
            c = (c & 1) != 0 ? 0xedb88320u ^ (c >> 1) : c >> 1;
        }
        table[i] = c;
    }
    for (size_t i = 0; i < sizeof(data); i++) {
        data[i] = (uint8_t)(i * 7);
    }
    for (int pass = 0; pass < 150; pass++) {
        for (size_t i = 0; i < sizeof(data); i++) {
            crc = table[(crc ^ data[i]) & 0xff] ^ (crc >> 8);
        }
    }
    return crc;
}

static uint64_t run_collatz(void)
{
    uint64_t longest = 0;

    for (uint64_t i = 1; i < 90000; i++) {
        uint64_t steps = 0;

        for (uint64_t n = i; n != 1; n = (n & 1) != 0 ? 3 * n + 1 : n / 2) {
            steps++;
        }
        longest = steps > longest ? steps : longest;
    }
    return longest;
}

static uint64_t run_divide(void)
{
    uint64_t state = BENCH_SEED;
    uint64_t sum = 0;

    for (int i = 0; i < 4000000; i++) {
        uint64_t a = bench_random(&state);
        uint32_t b = (uint32_t)(a >> 17) | 1;

        sum += a % b + (uint32_t)a / (b >> 8 | 1);
    }
    return sum;
}

/* Words into a hash table with strings: bytes, branches, memory. */
static uint64_t run_words(void)
{
    enum { SLOTS = 1 << 15, WORDS = 150000 };
    static struct {
        char text[12];
        uint32_t count;
    } slots[SLOTS];
    uint64_t state = BENCH_SEED;
    uint64_t sum = 0;

    memset(slots, 0, sizeof(slots));
    for (int i = 0; i < WORDS; i++) {
        char word[12] = {0};
        uint64_t r = bench_random(&state) % 20000;
        uint32_t h = 2166136261u;

        for (int k = 0; k < 8; k++, r /= 3) {
            word[k] = (char)('a' + r % 26);
        }
        for (int k = 0; word[k] != '\0'; k++) {
            h = (h ^ (uint8_t)word[k]) * 16777619u;
        }
        for (h &= SLOTS - 1; slots[h].count != 0 && strcmp(slots[h].text, word) != 0;) {
            h = (h + 1) & (SLOTS - 1);
        }
        memcpy(slots[h].text, word, sizeof(word));
        slots[h].count++;
    }
    for (int i = 0; i < SLOTS; i++) {
        sum = sum * 31 + slots[i].count;
    }
    return sum;
}

static uint64_t run_matrix(void)
{
    enum { N = 160 };
    static uint32_t a[N][N], b[N][N], c[N][N];
    uint64_t sum = 0;

    for (uint32_t i = 0; i < N; i++) {
        for (uint32_t j = 0; j < N; j++) {
            a[i][j] = i * 3 + j;
            b[i][j] = i ^ j;
        }
    }
    for (int pass = 0; pass < 6; pass++) {
        for (int i = 0; i < N; i++) {
            for (int j = 0; j < N; j++) {
                uint32_t s = (uint32_t)pass;

                for (int k = 0; k < N; k++) {
                    s += a[i][k] * b[k][j];
                }
                c[i][j] = s;
            }
        }
        sum += c[pass][N - 1 - pass];
    }
    return sum;
}

#define ROR32(x, n) (((x) >> (n)) | ((x) << (32 - (n))))

static void sha256_block(uint32_t h[8], const uint8_t *p, const uint32_t k[64])
{
    uint32_t w[64];
    uint32_t s[8];

    for (int i = 0; i < 16; i++) {
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 |
               (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    }
    for (int i = 16; i < 64; i++) {
        uint32_t s0 = ROR32(w[i - 15], 7) ^ ROR32(w[i - 15], 18) ^ (w[i - 15] >> 3);
        uint32_t s1 = ROR32(w[i - 2], 17) ^ ROR32(w[i - 2], 19) ^ (w[i - 2] >> 10);

        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    memcpy(s, h, sizeof(s));
    for (int i = 0; i < 64; i++) {
        uint32_t t1 = s[7] + (ROR32(s[4], 6) ^ ROR32(s[4], 11) ^ ROR32(s[4], 25)) +
                      ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
        uint32_t t2 = (ROR32(s[0], 2) ^ ROR32(s[0], 13) ^ ROR32(s[0], 22)) +
                      ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));

        memmove(s + 1, s, 7 * sizeof(s[0]));
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++) {
        h[i] += s[i];
    }
}

/* The compression function in plain C; constants from a generator, because only speed counts. */
static uint64_t run_sha256(void)
{
    static uint8_t data[1 << 14];
    uint64_t state = BENCH_SEED;
    uint32_t k[64];
    uint32_t h[8] = {1, 2, 3, 4, 5, 6, 7, 8};

    for (int i = 0; i < 64; i++) {
        k[i] = (uint32_t)bench_random(&state);
    }
    for (size_t i = 0; i < sizeof(data); i++) {
        data[i] = (uint8_t)(i * 11);
    }
    for (int pass = 0; pass < 200; pass++) {
        for (size_t i = 0; i < sizeof(data); i += 64) {
            sha256_block(h, data + i, k);
        }
    }
    return (uint64_t)h[0] << 32 | h[7];
}

const struct bench integer_benches[] = {
    {"integer", "sieve", run_sieve, NULL, false},
    {"integer", "qsort", run_qsort, NULL, false},
    {"integer", "fib", run_fib, NULL, false},
    {"integer", "interpreter", run_interpreter, NULL, false},
    {"integer", "tree", run_tree, NULL, false},
    {"integer", "crc32", run_crc32, NULL, false},
    {"integer", "collatz", run_collatz, NULL, false},
    {"integer", "divide", run_divide, NULL, false},
    {"integer", "words", run_words, NULL, false},
    {"integer", "matrix", run_matrix, NULL, false},
    {"integer", "sha256", run_sha256, NULL, false},
    {.name = NULL},
};
