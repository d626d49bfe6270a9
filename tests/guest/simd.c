/* x87, SSE and AVX: a few of each, and the state they keep through XSAVE and FXSAVE. */
#include "user_level.h"

/* A guest is compiled without vector registers: there the compiler has none to lose. */
#ifdef HOSTED
#define XMMS , "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7"
#else
#define XMMS
#endif

static uint8_t area[1024] __attribute__((aligned(64)));
static uint8_t legacy[512] __attribute__((aligned(16)));

static bool has_avx(void)
{
    uint32_t a = 1;
    uint32_t b;
    uint32_t c = 0;
    uint32_t d;

    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return (c & 0x18000000u) == 0x18000000u;
}

static void x87(void)
{
    uint64_t bits;
    uint16_t word;

    __asm__ volatile("fninit\n\tfldpi\n\tfldl2e\n\tfmulp\n\tfsqrt\n\tfstpl %0" : "=m"(bits));
    show("x87 sqrt(pi*log2e)", bits);
    __asm__ volatile("fld1\n\tfldz\n\tfdivrp\n\tfnstsw %%ax\n\tfstpl %1" : "=a"(word), "=m"(bits));
    show("x87 1/0 or 0/1", bits);
    show("x87 status", word & 0x3f);
    __asm__ volatile("fninit\n\tfnstcw %0" : "=m"(word));
    show("x87 control", word);
    static const double angle = 0.75;
    __asm__ volatile("fldl %1\n\tfsin\n\tfstpl %0" : "=m"(bits) : "m"(angle));
    show("x87 sin", bits >> 8);
}

static void sse(void)
{
    static const float a[4] = {1.5f, -2.25f, 3.0e10f, 1e-20f};
    static const float b[4] = {3.0f, 7.0f, 9.5f, 1e-30f};
    uint64_t out[2] __attribute__((aligned(16)));
    static const uint8_t chars[16] = {48, 200, 50, 7,   52, 0x83, 54,  1,
                                      56, 57,  97, 255, 99, 4,    101, 2};
    uint32_t mxcsr = 0x1f80;

    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
    __asm__ volatile("movups %1, %%xmm0\n\tmovups %2, %%xmm1\n\tmulps %%xmm1, %%xmm0\n\t"
                     "sqrtps %%xmm1, %%xmm2\n\taddps %%xmm2, %%xmm0\n\tmovaps %%xmm0, %0"
                     : "=m"(out)
                     : "m"(a), "m"(b)
                     : "memory" XMMS);
    show("sse low", out[0]);
    show("sse high", out[1]);
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    show("mxcsr", mxcsr);
    __asm__ volatile("movups %1, %%xmm3\n\tpshufd $0x1b, %%xmm3, %%xmm4\n\tpaddq %%xmm3, %%xmm4\n\t"
                     "pshufb %%xmm3, %%xmm4\n\tpcmpgtb %%xmm3, %%xmm4\n\tpmovmskb %%xmm4, %%eax\n\t"
                     "movd %%eax, %%xmm5\n\tmovdqa %%xmm5, %0"
                     : "=m"(out)
                     : "m"(chars)
                     : "eax", "memory" XMMS);
    show("integer mask", out[0]);
}

static void saved_state(bool avx)
{
    const uint64_t one[2] = {0x1111111111111111ull, 0x2222222222222222ull};
    const uint64_t two[2] = {0x3333333333333333ull, 0x4444444444444444ull};
    uint64_t out[4] __attribute__((aligned(32))) = {0};

    memset(legacy, 0, sizeof(legacy));
    __asm__ volatile("movups %2, %%xmm7\n\tfxsave %0\n\tmovups %3, %%xmm7\n\tfxrstor %0\n\t"
                     "movaps %%xmm7, %1"
                     : "+m"(legacy), "=m"(out)
                     : "m"(one), "m"(two)
                     : "memory" XMMS);
    show("fxrstor", out[0]);
    if (!avx) {
        return;
    }
    memset(area, 0, sizeof(area));
    __asm__ volatile("vbroadcastf128 %[one], %%ymm7\n\t"
                     "mov $7, %%eax\n\txor %%edx, %%edx\n\txsave %[area]\n\t"
                     "vbroadcastf128 %[two], %%ymm7\n\t"
                     "xrstor %[area]\n\tvmovdqa %%ymm7, %[out]\n\tvzeroupper"
                     : [area] "+m"(area), [out] "=m"(out)
                     : [one] "m"(one), [two] "m"(two)
                     : "eax", "edx", "memory" XMMS);
    show("xrstor low", out[0]);
    show("xrstor high", out[3]);
    show("xsave components", area[512] & 4);
    /* A component that the mask leaves out keeps its registers. */
    __asm__ volatile("vbroadcastf128 %[two], %%ymm7\n\t"
                     "mov $2, %%eax\n\txor %%edx, %%edx\n\txrstor %[area]\n\t"
                     "vmovdqa %%ymm7, %[out]\n\tvzeroupper"
                     : [out] "=m"(out)
                     : [area] "m"(area), [two] "m"(two)
                     : "eax", "edx", "memory" XMMS);
    show("partial low", out[0]);
    show("partial high", out[3]);
}

static void avx_arithmetic(void)
{
    static const double a[4] = {1.5, -2.25, 3.0e100, 1e-200};
    static const double b[4] = {3.0, 7.0, 9.5, 1e-30};
    uint64_t out[4] __attribute__((aligned(32)));

    __asm__ volatile("vmovupd %1, %%ymm0\n\tvmovupd %2, %%ymm1\n\tvdivpd %%ymm1, %%ymm0, %%ymm2\n\t"
                     "vaddpd %%ymm1, %%ymm2, %%ymm3\n\tvperm2f128 $1, %%ymm3, %%ymm3, %%ymm3\n\t"
                     "vmovupd %%ymm3, %0\n\tvzeroupper"
                     : "=m"(out)
                     : "m"(a), "m"(b)
                     : "memory" XMMS);
    for (unsigned i = 0; i < 4; i++) {
        show("avx", out[i]);
    }
}

int main(void)
{
    const bool avx = has_avx();

    x87();
    sse();
    saved_state(avx);
    if (avx) {
        avx_arithmetic();
    }
    return 0;
}
