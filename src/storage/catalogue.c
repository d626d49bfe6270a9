#include "storage/catalogue.h"

#include "base/io.h"
#include "storage/fetch.h"
#include "storage/json_text.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE_BYTES (1u << 20)
#define MAX_ENTRIES 4096u

static int check_entry(const struct catalogue_entry *entry)
{
    struct digest digest;

    if (entry->name[0] == '\0' || entry->url[0] == '\0') {
        return -EINVAL;
    }
    if (entry->checksum[0] != '\0') {
        return digest_parse(entry->checksum, &digest);
    }
    /* Checksums over an open line would vouch for nothing. */
    return strncasecmp(entry->checksums_url, "https://", 8) == 0 ? 0 : -EINVAL;
}

static int take_entry(const json_t *object, struct catalogue_entry *entry)
{
    char word[16];
    int rc = json_is_object(object) ? 0 : -EINVAL;

    rc = rc < 0 ? rc : json_text_copy(object, "name", entry->name, sizeof(entry->name));
    rc = rc < 0 ? rc
                : json_text_copy(object, "description", entry->description,
                                 sizeof(entry->description));
    rc = rc < 0 ? rc : json_text_copy(object, "url", entry->url, sizeof(entry->url));
    rc = rc < 0 ? rc : json_text_copy(object, "checksum", entry->checksum, sizeof(entry->checksum));
    rc = rc < 0 ? rc
                : json_text_copy(object, "checksums_url", entry->checksums_url,
                                 sizeof(entry->checksums_url));
    rc = rc < 0 ? rc : json_text_copy(object, "format", word, sizeof(word));
    rc = rc < 0 ? rc : import_format_parse(word, &entry->format);
    rc = rc < 0 ? rc : json_text_copy(object, "compression", word, sizeof(word));
    rc = rc < 0 ? rc
                : import_compression_parse(word[0] != '\0' ? word : "none", &entry->compression);
    return rc < 0 ? rc : check_entry(entry);
}

int catalogue_parse(const char *data, size_t len, const char *from,
                    struct catalogue_entry **ret_entries, unsigned *ret_count, struct err *err)
{
    json_t *root = json_loadb(data, len, JSON_REJECT_DUPLICATES, NULL);
    const json_t *list = json_object_get(root, "images");
    size_t count = json_array_size(list);
    struct catalogue_entry *entries;
    int rc = 0;

    if (!json_is_array(list) || count > MAX_ENTRIES) {
        json_decref(root);
        return err_set(err, -EINVAL, "%s is no catalogue: no list \"images\" in it", from);
    }
    entries = calloc(count + 1, sizeof(*entries));
    for (size_t i = 0; entries != NULL && rc == 0 && i < count; i++) {
        rc = take_entry(json_array_get(list, i), &entries[i]);
        if (rc < 0) {
            rc = err_set(err, -EINVAL,
                         "%s: entry %zu is damaged; it needs name, url, format and checksum (or an "
                         "https:// checksums_url)",
                         from, i + 1);
        }
    }
    json_decref(root);
    if (entries == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    if (rc < 0) {
        free(entries);
        return rc;
    }
    *ret_entries = entries;
    *ret_count = (unsigned)count;
    return 0;
}

int catalogue_load(const char *path, struct catalogue_entry **ret_entries, unsigned *ret_count,
                   struct err *err)
{
    CLEANUP_FREE void *data = NULL;
    size_t len;
    int rc = io_read_file(path, MAX_FILE_BYTES, &data, &len);

    if (rc == -ENOENT || rc == -ENOTDIR) {
        *ret_entries = NULL;
        *ret_count = 0;
        return 0;
    }
    if (rc < 0) {
        return err_set_errno(err, rc, "%s cannot be read", path);
    }
    return catalogue_parse(data, len, path, ret_entries, ret_count, err);
}

/* Finds "HEX  NAME" (or "HEX *NAME", "HEX  ./NAME") in a list of checksums. */
static int find_line(char *text, const char *name, struct digest *ret_digest)
{
    char *save = NULL;

    for (char *line = strtok_r(text, "\r\n", &save); line != NULL;
         line = strtok_r(NULL, "\r\n", &save)) {
        char *word = strpbrk(line, " \t");

        if (word == NULL) {
            continue;
        }
        *word++ = '\0';
        word += strspn(word, " \t*");
        word += strncmp(word, "./", 2) == 0 ? 2 : 0;
        if (strcmp(word, name) == 0) {
            return digest_parse(line, ret_digest);
        }
    }
    return -ENOENT;
}

int catalogue_find_digest(const struct catalogue_entry *entry, struct digest *ret_digest,
                          struct err *err)
{
    const char *slash = strrchr(entry->url, '/');
    CLEANUP_FREE char *text = NULL;
    int rc;

    if (entry->checksum[0] != '\0') {
        return digest_parse(entry->checksum, ret_digest);
    }
    rc = fetch_to_text(entry->checksums_url, MAX_FILE_BYTES, &text, err);
    if (rc < 0) {
        return rc;
    }
    rc = find_line(text, slash != NULL ? slash + 1 : entry->url, ret_digest);
    return rc < 0 ? err_set(err, -EBADMSG, "%s has no checksum of %s", entry->checksums_url,
                            slash != NULL ? slash + 1 : entry->url)
                  : 0;
}
