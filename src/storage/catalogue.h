/*
 * The catalogue: names of images that can be fetched, each with its address,
 * its format and its checksum, or the address of a list of checksums. JSON
 * files, the product's and the user's; the user's wins.
 */
#ifndef CORBEL_STORAGE_CATALOGUE_H
#define CORBEL_STORAGE_CATALOGUE_H

#include "base/error.h"
#include "storage/import.h"

struct catalogue_entry {
    char name[48];
    char description[160];
    char url[1024];
    char checksum[DIGEST_TEXT_BYTES]; /* empty: see checksums_url */
    char checksums_url[1024];         /* lines of "HEX  NAME", as sha512sum writes; HTTPS only */
    enum import_format format;
    enum import_compression compression;
};

/* Reads one file; an absent one has no entries. -EINVAL, naming the file, when it is damaged. */
int catalogue_load(const char *path, struct catalogue_entry **ret_entries, unsigned *ret_count,
                   struct err *err) MUST_CHECK;

/* The same of what is in memory; from names it in errors. */
int catalogue_parse(const char *data, size_t len, const char *from,
                    struct catalogue_entry **ret_entries, unsigned *ret_count, struct err *err)
    MUST_CHECK;

/* The entry's checksum, fetched when it stands in a list on its server. */
int catalogue_find_digest(const struct catalogue_entry *entry, struct digest *ret_digest,
                          struct err *err) MUST_CHECK;

#endif
