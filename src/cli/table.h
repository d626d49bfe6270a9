/* Rows of JSON objects as a table for people, and as JSON for programs. */
#ifndef CORBEL_CLI_TABLE_H
#define CORBEL_CLI_TABLE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum cell {
    CELL_TEXT,   /* as it is; lists with commas; "-" when absent */
    CELL_AGE,    /* seconds since 1970, as how long ago */
    CELL_MIB,    /* MiB as a size */
    CELL_GIB,    /* GiB as a size */
    CELL_BYTES,  /* bytes as a size */
    CELL_LIMIT,  /* a number; 0: "no limit" */
    CELL_PORTS,  /* forwards as 8080:80, the ssh port of the row among them */
    CELL_PERCENT /* a number with " %" */
};

struct column {
    const char *title;
    const char *field; /* of the object */
    enum cell cell;
};

#define CELL_TEXT_BYTES 256
#define TABLE_COLUMNS_MAX 12

/* The text of one cell into out[CELL_TEXT_BYTES], control characters made visible. */
void table_cell(const json_t *row, const struct column *column, char *out);

/* Columns end with a NULL title. */
void table_print(const json_t *rows, const struct column *columns);
/* Each field of an object on a line of its own. */
void table_print_object(const json_t *object, const struct column *columns);
void table_print_json(const json_t *value);

#endif
