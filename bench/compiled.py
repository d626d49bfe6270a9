"""A C file for the compile row: an ordinary translation unit of some 900 lines, all of it used."""

COPIES = 10
HEAD = "#include <math.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"
# One of the COPIES; its number stands for each @. No backslash in it means anything to Python.
PART = r"""
struct node@ { struct node@ *next; char name[16]; unsigned key; double weight; };
static struct node@ *table@[61];
static unsigned hash@(const char *s) {
    unsigned h = @ + 5381u;
    while (*s != 0) { h = h * 33u ^ (unsigned char)*s++; }
    return h % 61u;
}
static struct node@ *find@(const char *name, int add) {
    unsigned h = hash@(name);
    struct node@ *n;
    for (n = table@[h]; n != NULL; n = n->next) {
        if (strcmp(n->name, name) == 0) { return n; }
    }
    if (!add || (n = malloc(sizeof(*n))) == NULL) { return NULL; }
    snprintf(n->name, sizeof(n->name), "%s", name);
    n->key = h; n->weight = @ * 0.5 + h; n->next = table@[h]; table@[h] = n;
    return n;
}
static int compare@(const void *a, const void *b) {
    const struct node@ *const *x = a, *const *y = b;
    if ((*x)->key != (*y)->key) { return (*x)->key < (*y)->key ? -1 : 1; }
    return strcmp((*x)->name, (*y)->name);
}
static long parse@(const char **p, int depth) {
    long value = 0;
    char op = '+';
    for (;;) {
        long term;
        while (**p == ' ') { ++*p; }
        if (**p == '(' && depth < 9) { ++*p; term = parse@(p, depth + 1); }
        else { term = strtol(*p, (char **)p, 10); }
        switch (op) {
        case '+': value += term; break;
        case '-': value -= term; break;
        case '*': value *= term; break;
        case '/': value = term != 0 ? value / term : value; break;
        case '%': value = term != 0 ? value % term : @; break;
        default: value ^= term << 1; break;
        }
        while (**p == ' ') { ++*p; }
        if (**p == 0) { return value; }
        op = *(*p)++;
        if (op == ')') { return value; }
    }
}
static double solve@(double m[6][7]) {
    double sum = 0;
    for (int c = 0; c < 6; c++) {
        int best = c;
        for (int r = c + 1; r < 6; r++) { if (fabs(m[r][c]) > fabs(m[best][c])) { best = r; } }
        for (int k = 0; k < 7; k++) { double t = m[c][k]; m[c][k] = m[best][k]; m[best][k] = t; }
        if (m[c][c] == 0) { return @; }
        for (int r = 0; r < 6; r++) {
            double f = m[r][c] / m[c][c];
            for (int k = c; r != c && k < 7; k++) { m[r][k] -= f * m[c][k]; }
        }
    }
    for (int c = 0; c < 6; c++) { sum += m[c][6] / m[c][c]; }
    return sum;
}
static unsigned crc@(const unsigned char *p, size_t n) {
    unsigned crc = ~@u;
    while (n-- != 0) {
        crc ^= *p++;
        for (int bit = 0; bit < 8; bit++) { crc = crc & 1 ? crc >> 1 ^ (0xedb88320u + @) : crc >> 1; }
    }
    return ~crc;
}
long run@(const char *text, int rounds) {
    struct node@ *all[64];
    double m[6][7];
    char word[16];
    size_t count = 0;
    long sum = 0;
    for (int i = 0; i < rounds; i++) {
        struct node@ *n;
        snprintf(word, sizeof(word), "w%d", i * @ % 97);
        n = find@(word, i % 3 != 0);
        if (n != NULL && count < 64) { all[count++] = n; }
        for (int r = 0; r < 6; r++) { for (int k = 0; k < 7; k++) { m[r][k] = (r * 7 + k * @ + i) % 11; } }
        sum += (long)solve@(m);
    }
    qsort(all, count, sizeof(all[0]), compare@);
    for (size_t i = 0; i < count; i++) { sum = sum * 31 + all[i]->key + (long)all[i]->weight; }
    sum += parse@(&text, 0);
    return sum ^ crc@((const unsigned char *)word, strlen(word));
}
"""


def source():
    """The file's text."""
    numbers = range(1, COPIES + 1)
    calls = "".join(f'    sum += run{n}("1 + (2 * {n} - 7) % 5", {n + 40});\n' for n in numbers)
    return (HEAD + "".join(PART.replace("@", str(n)) for n in numbers)
            + "int main(void) {\n    long sum = 0;\n" + calls
            + '    printf("%ld\\n", sum);\n    return 0;\n}\n')
