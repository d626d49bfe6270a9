#include "cli/table.h"

#include "base/compiler.h"
#include "cli/size.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define GAP 2

static void add(char *out, const char *text)
{
    size_t used = strlen(out);

    (void)snprintf(out + used, CELL_TEXT_BYTES - used, "%s%s", used > 0 ? "," : "", text);
}

static void format_age(double then, char *out)
{
    static const struct {
        double seconds;
        const char *unit;
    } units[] = {{86400, "d"}, {3600, "h"}, {60, "m"}, {1, "s"}};
    double age = (double)time(NULL) - then;

    age = age < 0 ? 0 : age;
    for (size_t i = 0; i < ARRAY_LEN(units); i++) {
        if (age >= 2 * units[i].seconds || i + 1 == ARRAY_LEN(units)) {
            (void)snprintf(out, CELL_TEXT_BYTES, "%.0f%s ago", age / units[i].seconds,
                           units[i].unit);
            return;
        }
    }
}

static void format_value(const json_t *value, char *out);

/* As deep as an answer, which jansson bounds. */
/* NOLINTNEXTLINE(misc-no-recursion) */
static void format_members(const json_t *value, char *out)
{
    const char *name;
    json_t *member;

    json_object_foreach((json_t *)(uintptr_t)value, name, member)
    {
        char pair[CELL_TEXT_BYTES], text[CELL_TEXT_BYTES] = "";

        format_value(member, text);
        (void)snprintf(pair, sizeof(pair), "%.80s=%.160s", name, text);
        add(out, pair);
    }
}

/* NOLINTNEXTLINE(misc-no-recursion) */
static void format_value(const json_t *value, char *out)
{
    switch (json_typeof(value)) {
    case JSON_STRING:
        (void)snprintf(out, CELL_TEXT_BYTES, "%s", json_string_value(value));
        break;
    case JSON_INTEGER:
        (void)snprintf(out, CELL_TEXT_BYTES, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        break;
    case JSON_REAL:
        (void)snprintf(out, CELL_TEXT_BYTES, "%.3f", json_real_value(value));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        (void)snprintf(out, CELL_TEXT_BYTES, "%s", json_is_true(value) ? "yes" : "no");
        break;
    case JSON_ARRAY:
        for (size_t i = 0; i < json_array_size(value); i++) {
            char text[CELL_TEXT_BYTES] = "";

            format_value(json_array_get(value, i), text);
            add(out, text);
        }
        break;
    case JSON_OBJECT:
        format_members(value, out);
        break;
    case JSON_NULL:
        break;
    }
}

static void format_ports(const json_t *row, const json_t *ports, char *out)
{
    json_int_t ssh = json_integer_value(json_object_get(row, "ssh_port"));
    char text[64];

    if (ssh != 0) {
        (void)snprintf(text, sizeof(text), "%" JSON_INTEGER_FORMAT ":22", ssh);
        add(out, text);
    }
    for (size_t i = 0; i < json_array_size(ports); i++) {
        const json_t *port = json_array_get(ports, i);

        (void)snprintf(text, sizeof(text), "%" JSON_INTEGER_FORMAT ":%" JSON_INTEGER_FORMAT,
                       json_integer_value(json_object_get(port, "host_port")),
                       json_integer_value(json_object_get(port, "guest_port")));
        add(out, text);
    }
}

static void format_size(double number, unsigned shift, char *out)
{
    char size[SIZE_TEXT_BYTES];

    (void)snprintf(out, CELL_TEXT_BYTES, "%s", size_format((uint64_t)number << shift, size));
}

void table_cell(const json_t *row, const struct column *column, char *out)
{
    const json_t *value = json_object_get(row, column->field);
    double number = json_number_value(value);

    out[0] = '\0';
    if (column->cell == CELL_PORTS) {
        format_ports(row, value, out);
    } else if (json_is_number(value)) {
        switch (column->cell) {
        case CELL_AGE:
            format_age(number, out);
            break;
        case CELL_MIB:
            format_size(number, 20, out);
            break;
        case CELL_GIB:
            format_size(number, 30, out);
            break;
        case CELL_BYTES:
            format_size(number, 0, out);
            break;
        case CELL_LIMIT:
            (void)snprintf(out, CELL_TEXT_BYTES, number > 0 ? "%.0f" : "no limit", number);
            break;
        case CELL_PERCENT:
            (void)snprintf(out, CELL_TEXT_BYTES, "%.0f %%", number);
            break;
        default:
            format_value(value, out);
            break;
        }
    } else if (value != NULL) {
        format_value(value, out);
    }
    for (char *p = out; *p != '\0'; p++) {
        *p = iscntrl((unsigned char)*p) ? '?' : *p;
    }
    if (out[0] == '\0') {
        (void)snprintf(out, CELL_TEXT_BYTES, "-");
    }
}

void table_print(const json_t *rows, const struct column *columns)
{
    size_t widths[TABLE_COLUMNS_MAX] = {0};
    char text[CELL_TEXT_BYTES];

    for (size_t c = 0; columns[c].title != NULL; c++) {
        widths[c] = strlen(columns[c].title);
        for (size_t r = 0; r < json_array_size(rows); r++) {
            size_t len;

            table_cell(json_array_get(rows, r), &columns[c], text);
            len = strlen(text);
            widths[c] = len > widths[c] ? len : widths[c];
        }
    }
    for (size_t r = 0; r <= json_array_size(rows); r++) {
        for (size_t c = 0; columns[c].title != NULL; c++) {
            bool is_last = columns[c + 1].title == NULL;

            if (r == 0) {
                (void)snprintf(text, sizeof(text), "%s", columns[c].title);
            } else {
                table_cell(json_array_get(rows, r - 1), &columns[c], text);
            }
            printf("%-*s%s", is_last ? 0 : (int)(widths[c] + GAP), text, is_last ? "\n" : "");
        }
    }
}

void table_print_object(const json_t *object, const struct column *columns)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)object, name, value)
    {
        struct column column = {.title = name, .field = name, .cell = CELL_TEXT};
        char text[CELL_TEXT_BYTES];

        for (size_t i = 0; columns[i].title != NULL; i++) {
            if (strcmp(columns[i].field, name) == 0) {
                column.cell = columns[i].cell;
            }
        }
        table_cell(object, &column, text);
        printf("%-16s %s\n", name, text);
    }
}

void table_print_json(const json_t *value)
{
    (void)json_dumpf(value, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY);
    (void)putchar('\n');
}
