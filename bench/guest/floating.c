/* Floating point: SSE doubles and floats as compilers make them, and the x87. */
#include "bench.h"

#include <math.h>
#include <string.h>

static uint64_t bits(double v)
{
    uint64_t u;

    memcpy(&u, &v, sizeof(u));
    return u;
}

static uint64_t run_matmul(void)
{
    enum { N = 144 };
    static double a[N][N], b[N][N], c[N][N];
    double sum = 0;

    for (int i = 0; i < N; i++) {
        for (int j = 0; j < N; j++) {
            a[i][j] = i + j * 0.5;
            b[i][j] = i * 0.25 - j;
        }
    }
    for (int pass = 0; pass < 4; pass++) {
        for (int i = 0; i < N; i++) {
            for (int j = 0; j < N; j++) {
                double s = pass;

                for (int k = 0; k < N; k++) {
                    s += a[i][k] * b[k][j];
                }
                c[i][j] = s;
            }
        }
        sum += c[pass][N - 1];
    }
    return bits(sum);
}

static uint64_t run_nbody(void)
{
    enum { BODIES = 5, STEPS = 120000 };
    double p[BODIES][3], v[BODIES][3], m[BODIES];

    for (int i = 0; i < BODIES; i++) {
        m[i] = 1.0 / (i + 1);
        for (int d = 0; d < 3; d++) {
            p[i][d] = i * 1.5 + d * 0.7;
            v[i][d] = (i - 2) * 0.01 * (d + 1);
        }
    }
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < BODIES; i++) {
            for (int j = i + 1; j < BODIES; j++) {
                double dx = p[i][0] - p[j][0], dy = p[i][1] - p[j][1], dz = p[i][2] - p[j][2];
                double d2 = dx * dx + dy * dy + dz * dz + 0.01;
                double mag = 0.001 / (d2 * sqrt(d2));

                v[i][0] -= dx * m[j] * mag;
                v[i][1] -= dy * m[j] * mag;
                v[i][2] -= dz * m[j] * mag;
                v[j][0] += dx * m[i] * mag;
                v[j][1] += dy * m[i] * mag;
                v[j][2] += dz * m[i] * mag;
            }
        }
        for (int i = 0; i < BODIES; i++) {
            for (int d = 0; d < 3; d++) {
                p[i][d] += v[i][d] * 0.001;
            }
        }
    }
    return bits(p[0][0] + v[4][2]);
}

#define MANDELBROT(type)                                                   \
    enum { SIZE = 150, DEPTH = 300 };                                      \
    uint64_t inside = 0;                                                   \
                                                                           \
    for (int y = 0; y < SIZE; y++) {                                       \
        for (int x = 0; x < SIZE; x++) {                                   \
            type cr = (type)x * 3 / SIZE - 2, ci = (type)y * 2 / SIZE - 1; \
            type zr = 0, zi = 0;                                           \
            int i = 0;                                                     \
                                                                           \
            for (; i < DEPTH && zr * zr + zi * zi < 4; i++) {              \
                type t = zr * zr - zi * zi + cr;                           \
                                                                           \
                zi = 2 * zr * zi + ci;                                     \
                zr = t;                                                    \
            }                                                              \
            inside += (uint64_t)i;                                         \
        }                                                                  \
    }                                                                      \
    return inside;

static uint64_t run_mandelbrot_sse(void)
{
    MANDELBROT(double)
}

static uint64_t run_mandelbrot_float(void)
{
    MANDELBROT(float)
}

static uint64_t run_mandelbrot_x87(void)
{
    MANDELBROT(long double)
}

static uint64_t run_spectral(void)
{
    enum { N = 220 };
    double u[N], v[N], t = 0;

    for (int i = 0; i < N; i++) {
        u[i] = 1;
    }
    for (int pass = 0; pass < 40; pass++) {
        for (int i = 0; i < N; i++) {
            double s = 0;

            for (int j = 0; j < N; j++) {
                s += u[j] / ((double)((i + j) * (i + j + 1) / 2) + i + 1);
            }
            v[i] = s;
        }
        memcpy(u, v, sizeof(u));
    }
    for (int i = 0; i < N; i++) {
        t += u[i];
    }
    return bits(t);
}

static uint64_t run_convert(void)
{
    uint64_t state = BENCH_SEED;
    double sum = 0;
    int64_t back = 0;

    for (int i = 0; i < 6000000; i++) {
        double d = (double)(int64_t)(bench_random(&state) >> 20);

        sum = sum * 0.5 + d;
        back += (int64_t)(d * 0.3) ^ (int32_t)(float)i;
    }
    return bits(sum) ^ (uint64_t)back;
}

const struct bench floating_benches[] = {
    {"floating", "matmul", run_matmul, NULL, false},
    {"floating", "nbody", run_nbody, NULL, false},
    {"floating", "mandelbrot-double", run_mandelbrot_sse, NULL, false},
    {"floating", "mandelbrot-float", run_mandelbrot_float, NULL, false},
    {"floating", "mandelbrot-x87", run_mandelbrot_x87, NULL, false},
    {"floating", "spectral", run_spectral, NULL, false},
    {"floating", "convert", run_convert, NULL, false},
    {.name = NULL},
};
